"""The public contract: what a task gives, what a method gets, what a method must do.

A *task* (data, loss, metric) and a *method* (how to arrive at a small trained network) never see each other;
the harness joins them through the classes below. See ``docs/adding-a-method.md``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

from torch import Tensor, nn

from nasbench_grow.base.errors import UserError
from nasbench_grow.contract.clock import Clock
from nasbench_grow.contract.task import Batch, Recipe
from nasbench_grow.cost.macs import TrainingMeter
from nasbench_grow.structure.step_time import Timing


def _as_it_is(network: nn.Module) -> nn.Module:
    return network


@dataclass(frozen=True)
class Job:
    """All that a method may know of the cell it runs."""

    budget: float
    """Inference MACs of the returned network as a share of the dense network's, in (0, 1]."""
    seed: int
    epochs: int
    steps_per_epoch: int
    granularity: int
    """Widths are rounded to multiples of this (smaller ones as :func:`nasbench_grow.structure.selection.allowed_width`
    says); 1 = no rounding."""
    example: Tensor
    """One input with a batch axis of 1, on the device of the run."""
    recipe: Recipe
    loss: Callable[[Any, Tensor], Tensor]
    build: Callable[[], nn.Module]
    """A fresh dense backbone on the device of the run; the same initial weights at each call."""
    meter: TrainingMeter
    """Sums 3 x forward MACs x batch over the steps that ran; a method calls ``meter.step(macs, batch)``."""
    accelerate: Callable[[nn.Module], nn.Module] = _as_it_is
    """Gives a module that computes what a network does with its parameters, faster if the set-up can: to be called
    while training, for a network whose structure stays for long."""
    timing: Timing = field(default_factory=Timing)
    """How a training step is run, for a method that plans with its time."""
    clock: Clock = field(default_factory=Clock)
    """Where the run stands, in steps of the recipe's batch size. The harness moves it on with every batch that it hands
    over; a batch may be worth several steps."""
    architecture: str | None = None
    """What ``Method.architecture_from`` arrived at, as text for ``nasbench_grow.rebuild``; None: not asked for."""

    @property
    def total_steps(self) -> int:
        """Steps of the whole run's schedule: batches of the recipe's size."""
        return self.epochs * self.steps_per_epoch

    def learning_rate_at(self, step: int) -> float:
        """The recipe's learning rate for step ``step`` of the schedule (from 0)."""
        return self.recipe.learning_rate_at((step + 1) / self.total_steps)

    def learning_rate(self) -> float:
        """The learning rate for the batch in hand: the schedule's, in proportion to the size of the batch."""
        return self.clock.scale * self.learning_rate_at(self.clock.start)


class Method(ABC):
    """How to arrive at a small trained network. One file in ``baselines`` each; see ``docs/adding-a-method.md``.

    The harness calls ``__init__`` once, ``train_epoch`` once an epoch, ``network`` whenever it evaluates, ``finish``
    after the last epoch. Everything random must come from ``job.seed``, or a resumed run would differ.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str] = ""
    """Where the method was published."""
    uses_budget: ClassVar[bool] = True
    """False for a method that ignores the budget: the harness then runs it once, at budget 1."""
    budget_of: ClassVar[Literal["macs", "time"]] = "macs"
    """What the budget is a share of: the dense network's MACs, or the time of its training step."""
    architecture_from: ClassVar[str] = ""
    """The method whose network, found in a cell that is the same otherwise, is handed over as ``job.architecture``."""
    version: ClassVar[int] = 1
    """Raise this when the method changes so that its finished records no longer compare."""

    @abstractmethod
    def __init__(self, job: Job) -> None: ...

    @classmethod
    def variant(cls, settings: Mapping[str, str]) -> type[Self]:
        """The method with some settings changed, as ``name[setting=value,...]`` asks for; see ``variants``.

        Its name must be the same however the settings were ordered and their values spelt.

        Raises:
            UserError: a method without settings, or without this one or this value of it.
        """
        raise UserError(f"method {cls.name!r} has no settings; give the plain name")

    @abstractmethod
    def train_epoch(self, batches: Iterable[Batch]) -> float:
        """Train on every batch once; returns the mean training loss."""

    @abstractmethod
    def network(self) -> nn.Module:
        """The network as it stands now: an ordinary module, ready to be evaluated (not to be changed)."""

    def in_training(self) -> nn.Module:
        """The network that the next batch trains, not a copy: another object after every change of its structure.
        What is to change before that batch must have changed by then; asked for before each batch by some set-ups."""
        return self.network()

    def finish(self) -> nn.Module:
        """The network to return, after the last epoch. Must not train."""
        return self.network()

    def log(self) -> dict[str, float]:
        """Figures of the method's own to keep with each epoch (e.g. target and sampled cost as shares of dense)."""
        return {}

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """All that ``load_state_dict`` needs to go on after this epoch as if nothing had happened: tensors, numbers,
        strings, lists and dicts of them only (it is read back with ``weights_only=True``)."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state that ``state_dict`` gave, in a fresh instance made from the same job."""
