"""What can be named on the command line: methods, tasks, backbones, set-ups, profiles.

Adding a method is adding one file to ``baselines``, or installing a package with an entry point in the group
``nasbench_grow.methods`` (``my-method = my_module:MyMethod``). Adding a task is adding one file to
``nasbench_grow/tasks``. Nothing has to be listed anywhere.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import pkgutil
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import TypeVar

import torch
from torch import nn

from nasbench_grow.base.errors import UserError, unknown
from nasbench_grow.contract import Method, Task
from nasbench_grow.contract import settings as spelling
from nasbench_grow.harness.profiles import PROFILES, Profile
from nasbench_grow.harness.setups import SETUPS, Setup

ENTRY_POINTS = "nasbench_grow.methods"

_OWN_TASKS: dict[str, type[Task]] = {}
"""Tasks that a user's own data make, for as long as this process lives."""

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


@cache
def methods() -> dict[str, type[Method]]:
    """Every method by name, in alphabetical order.

    Raises:
        UserError: two classes claim the same name.
    """
    found: dict[str, type[Method]] = {}
    for cls in [*_classes("nasbench_grow.baselines", Method), *_plugins()]:
        other = found.setdefault(cls.name, cls)
        if other is not cls:
            raise UserError(
                f"two methods are named {cls.name!r}: {_path(other)} and {_path(cls)}; rename or uninstall one"
            )
    return dict(sorted(found.items()))


@cache
def tasks() -> dict[str, type[Task]]:
    """Every task by name, in alphabetical order."""
    return dict(sorted((cls.name, cls) for cls in _classes("nasbench_grow.tasks", Task)))


@cache
def backbones() -> dict[str, str]:
    """The suite's own backbones: name to one-line summary. Every other timm name works too."""
    from nasbench_grow.backbones import SUMMARIES  # imports timm, which takes seconds

    return dict(sorted(SUMMARIES.items()))


def backbones_for(task: Task) -> list[str]:
    """Those of the suite's own backbones whose output has the shape that ``task`` needs."""
    fitting = []
    for name in backbones():
        with torch.device("meta"), suppress(UserError, RuntimeError, TypeError, ValueError, AssertionError):
            output = build_backbone(name, task).eval()(task.example())  # shapes alone: no memory, no arithmetic
            if output.shape[1:] == task.output_shape():
                fitting.append(name)
    return fitting


def setups() -> dict[str, Setup]:
    """Every set-up (device, memory layout, width granularity) by name."""
    return SETUPS


def profiles() -> dict[str, Profile]:
    """Every profile (a list of grids of cells) by name."""
    return PROFILES


@cache
def method(name: str) -> Method:
    """The method called ``name``, which may have settings, ``name[setting=value,...]``.

    ``str`` of it is its one spelling, whichever was given.

    Raises:
        UserError: no such method (the line gives the nearest name), or it has no such setting or value.
    """
    base, given = spelling.split(name)
    found = _lookup("method", base, methods())
    return found(spelling.read(base, found.Settings, given, lambda other: str(method(other))))


def task(name: str) -> type[Task]:
    """The task called ``name``; raises UserError with the nearest known name."""
    return _OWN_TASKS.get(name) or _lookup("task", name, tasks())


def add_task(cls: type[Task]) -> None:
    """Make a task that no file of ``nasbench_grow/tasks`` defines known to this process."""
    _OWN_TASKS[cls.name] = cls


def setup(name: str) -> Setup:
    """The set-up called ``name``, whether or not this machine can run it; raises UserError where it is unknown."""
    return _lookup("setup", name, setups())


def usable_setup(name: str) -> Setup:
    """The set-up called ``name``; raises UserError where it is unknown or this machine cannot run it."""
    found = setup(name)
    available, reason = found.available()
    if not available:
        raise UserError(f"setup {name!r} is not available here: {reason}; see nasbench-grow list setups")
    return found


def profile(name: str) -> Profile:
    """The profile called ``name``; raises UserError with the nearest known name."""
    return _lookup("profile", name, profiles())


def build_backbone(name: str, task: Task) -> nn.Module:
    """A fresh dense network on the CPU, with the input channels and classes of ``task`` and random weights.

    Raises:
        UserError: timm does not know ``name`` (the line gives the nearest name), or cannot build it for this task.
    """
    from nasbench_grow.backbones import create, options_for  # imports timm, which takes seconds

    try:
        return create(name, task.num_classes, task.input_shape[0], **options_for(name, task.input_shape))
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"backbone {name!r} cannot be built for task {task.name!r} ({task.input_shape[0]} input channels, "
            f"{task.num_classes} classes): {reason}; choose one of {', '.join(backbones())}"
        ) from error


def _lookup(kind: str, name: str, known: dict[str, _T]) -> _T:
    if name not in known:
        raise unknown(kind, name, known, hint=f"see nasbench-grow list {kind}s")
    return known[name]


def _classes(package: str, base: type[_T]) -> Iterator[type[_T]]:
    """The concrete subclasses of ``base`` that the modules of ``package`` define."""
    for info in pkgutil.iter_modules(importlib.import_module(package).__path__, prefix=f"{package}."):
        module = _import(info.name)
        if module is not None:
            for _, cls in inspect.getmembers(module, inspect.isclass):
                if cls.__module__ == module.__name__ and issubclass(cls, base) and not inspect.isabstract(cls):
                    yield cls


def _import(name: str) -> ModuleType | None:
    """The module, or None with a warning: one broken file must not take the others away."""
    try:
        return importlib.import_module(name)
    except Exception as error:
        _log.warning("left out %s, which cannot be imported (%s: %s)", name, type(error).__name__, error)
        return None


def _plugins() -> Iterator[type[Method]]:
    """The methods of other installed packages."""
    for point in entry_points(group=ENTRY_POINTS):
        cls = _load(point)
        if cls is not None:
            yield cls


def _load(point: EntryPoint) -> type[Method] | None:
    try:
        cls = point.load()
    except Exception as error:
        _log.warning("left out %s, which cannot be imported (%s: %s)", point.value, type(error).__name__, error)
        return None
    if not (inspect.isclass(cls) and issubclass(cls, Method)) or inspect.isabstract(cls):
        _log.warning("left out %s, which is not a complete subclass of nasbench_grow.contract.Method", point.value)
        return None
    return cls


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
