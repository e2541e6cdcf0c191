"""What a class says of itself in its attributes, as plain data: what a run key is made of."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from dataclasses import fields, is_dataclass
from typing import Any

from nasbench_grow.base.errors import UserError


def plain_attributes(cls: type, left_out: Collection[str] = ()) -> dict[str, Any]:
    """The public class attributes of ``cls`` and its bases by name, sorted; no methods and no classes.

    Args:
        cls: any class.
        left_out: names that are not wanted.

    Raises:
        UserError: an attribute is no plain data (see :func:`plain`), or declared as a ``ClassVar`` but missing.
    """
    names = {name for base in cls.__mro__ for name in (*vars(base), *_declared(base)) if not name.startswith("_")}
    found = {}
    for name in sorted(names - set(left_out)):
        if not hasattr(cls, name):
            raise UserError(f"{cls.__name__}.{name} is missing; give the class this attribute")
        value = getattr(cls, name)
        if isinstance(value, type) or hasattr(value, "__get__"):  # properties and functions are descriptors
            continue
        try:
            found[name] = plain(value)
        except TypeError as error:
            raise UserError(
                f"{cls.__name__}.{name} holds {error}, which a run key cannot tell from another; use numbers, strings, "
                "lists, dicts or dataclasses of them, or begin its name with an underscore and raise the version when "
                "it changes"
            ) from error
    return found


def _declared(cls: type) -> list[str]:
    """The class attributes that ``cls`` itself says it, or a subclass, has."""
    return [name for name, kind in inspect.get_annotations(cls).items() if "ClassVar" in str(kind)]


def plain(value: Any) -> Any:
    """``value`` as JSON holds it: a dataclass becomes a dict of its fields and, as ``"is"``, its name.

    Raises:
        TypeError: it is no number, string, None, or list, tuple, dict with strings as keys, or dataclass of them; the
            message says what it is.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, dict) and all(type(key) is str for key in value):
        return {key: plain(each) for key, each in sorted(value.items())}
    if is_dataclass(value) and not isinstance(value, type):
        return {
            "is": type(value).__name__,
            **{field.name: plain(getattr(value, field.name)) for field in fields(value)},
        }
    raise TypeError(f"a {type(value).__name__}")
