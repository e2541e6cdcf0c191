"""What a method must say and do. One file in ``baselines`` each; see ``docs/adding-a-method.md``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator
from dataclasses import is_dataclass
from typing import Any, ClassVar, Literal

from torch import nn

from nasbench_grow.contract import settings as spelling
from nasbench_grow.contract.job import Job
from nasbench_grow.contract.settings import NoSettings
from nasbench_grow.contract.stage import Stage
from nasbench_grow.contract.task import Task

Run = Generator[Stage, None, nn.Module]
"""What ``run`` gives: a stage after every epoch of training, at the end the network to return."""


class Method(ABC):
    """How to arrive at a small trained network.

    Args:
        settings: an instance of ``Settings``; None: its defaults.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    family: ClassVar[Literal["control", "pruning", "growing", "search"]]
    citation: ClassVar[str] = ""
    """Where the method was published."""
    Settings: ClassVar[type[Any]] = NoSettings
    """A frozen dataclass of what can be set, every field with a default; its ``__post_init__`` refuses values, and
    values beside each other, that make no sense (UserError)."""
    version: ClassVar[int] = 1
    """Raise this when the method changes so that its finished records no longer compare."""
    uses_budget: ClassVar[bool] = True
    """False for a method that ignores the budget: it then runs once a seed, at budget 1."""
    aims_at_budget: ClassVar[bool] = True
    """False for a control whose network is of another size on purpose: nothing is then said of its budget."""

    takes: ClassVar[Literal["record", "architecture", "network"]] = "record"
    """What of its source's cell (see :attr:`source`) the method takes at most."""

    def __init__(self, settings: Any = None) -> None:
        self.settings: Any = self.Settings() if settings is None else settings
        if is_dataclass(self.settings):
            spelling.check_types(self.settings)

    def __str__(self) -> str:
        """The method's one spelling, with the settings that are not at their defaults."""
        return spelling.spell(self.name, self.settings)

    @property
    def source(self) -> str | None:
        """The method whose finished cell, the same otherwise, this one begins with (``job.source``); None: no other."""
        return None

    @property
    def budget_of(self) -> Literal["macs", "time"]:
        """What the budget is a share of: the dense network's MACs, or the time of its training step."""
        return "macs"

    def in_cell(self, granularity: int, epochs: int) -> Method:
        """The same method, settings left out that say no more than such a cell does: so that it has one spelling."""
        return self

    def skip(self, task: Task, network: nn.Module) -> str | None:
        """Why the method's idea has no meaning for a task and a dense network, in a few words; None: it has one."""
        return None

    @abstractmethod
    def run(self, job: Job) -> Run:
        """Trains as the method does, with what ``job`` offers, and returns the network, which must be as small as it
        claims: nothing masked.

        Straight code: ``yield from job.fit(model)``, decide, ``yield from job.fit(model)``, ``return model.network``.
        A killed run is taken up by running this again, where trainings that are done give what they gave
        (:mod:`nasbench_grow.contract.journal`). So everything random must come from ``job.seed`` or from the global
        generators, and whatever changes during a training must be part of its model or of its callback's state.

        Raises:
            UserError: the job cannot be done, e.g. because the budget is out of reach.
        """


class FixedNetwork(Method):
    """A method that chooses a network once and then trains it by the recipe; a subclass says which network."""

    @abstractmethod
    def choose(self, job: Job) -> nn.Module:
        """The network to train, on the device of the run; a pure function of ``job``."""

    def run(self, job: Job) -> Run:
        """Plain training."""
        model = job.model(self.choose(job))
        yield from job.fit(model)
        return model.network
