"""The public contract: what a task gives, what a method gets, what a method must do.

A *task* (data, loss, metric) and a *method* (how to arrive at a small trained network) never see each other;
the harness joins them through the classes below. See ``docs/adding-a-method.md``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, Self

import torch
from torch import Tensor, nn

from nasbench_grow.clock import Clock
from nasbench_grow.cost import TrainingMeter
from nasbench_grow.errors import UserError
from nasbench_grow.step_time import Timing

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Recipe:
    """How a task is trained: the same for every method (fair comparison)."""

    batch_size: int = 128
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup: float = 0.05
    """Share of the steps over which the learning rate rises linearly from zero."""

    def for_samples(self, samples: int | None) -> Recipe:
        """The recipe for a run on that many training samples (None: all of them).

        Few samples make few steps, so the batch shrinks with them: the largest power of two that leaves 80 steps an
        epoch, but at least 32, the learning rate in proportion.
        """
        if samples is None:
            return self
        batch_size = min(self.batch_size, max(32, 2 ** int(math.log2(max(1, samples // 80)))))
        return replace(self, batch_size=batch_size, learning_rate=self.learning_rate * batch_size / self.batch_size)

    def learning_rate_at(self, progress: float) -> float:
        """Linear warm-up, then a cosine to zero; ``progress`` in [0, 1] is the share of the steps done."""
        if progress < self.warmup:
            return self.learning_rate * progress / self.warmup
        rest = (progress - self.warmup) / (1 - self.warmup)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * rest))

    def optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        """SGD with Nesterov momentum; no weight decay on normalisation parameters and biases (1-d tensors)."""
        decayed = [p for p in network.parameters() if p.ndim > 1]
        plain = [p for p in network.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": self.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        groups = [group for group in groups if group["params"]]
        fused = all(p.device.type in ("cpu", "cuda") for p in decayed + plain)  # one kernel for all parameters
        return torch.optim.SGD(
            groups, lr=self.learning_rate, momentum=self.momentum, nesterov=self.momentum > 0, fused=fused
        )


class Split(Protocol):
    """One fixed part of a data set: training, validation or test."""

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Every sample once, in a fixed order, not augmented: for evaluation."""
        ...


class TrainSplit(Split, Protocol):
    """A training split: also gives shuffled, augmented epochs."""

    def epoch(self, epoch: int, batch_size: int, seed: int) -> Iterator[Batch]:
        """The batches of one epoch, a pure function of the arguments (so that a run can resume). Drops the last
        incomplete batch unless it is the only one."""
        ...

    def steps_per_epoch(self, batch_size: int) -> int:
        """Number of batches that :meth:`epoch` yields."""
        ...


@dataclass(frozen=True)
class Splits:
    """The three fixed splits of a task."""

    train: TrainSplit
    val: Split
    test: Split


class Task(ABC):
    """A data set with its loss, metric and recipe. One file in ``nasbench_grow/tasks`` each."""

    name: ClassVar[str]
    summary: ClassVar[str]
    metric: ClassVar[str]
    higher_is_better: ClassVar[bool] = True
    num_classes: ClassVar[int]
    input_shape: ClassVar[tuple[int, ...]]
    """Shape of one input without the batch axis, e.g. (3, 32, 32)."""
    recipe: ClassVar[Recipe] = Recipe()
    batch_may_change: ClassVar[bool] = True
    """False where the batches of an epoch go on from each other row by row."""

    @abstractmethod
    def load(self, device: torch.device, train_samples: int | None = None) -> Splits:
        """The splits, on ``device``; ``train_samples`` keeps that many training samples (a fixed, balanced choice)
        and leaves validation and test whole. Raises UserError where the data cannot be had."""

    @abstractmethod
    def loss(self, output: Any, target: Tensor) -> Tensor:
        """Scalar training loss (mean over the batch)."""

    @abstractmethod
    def evaluate(self, network: nn.Module, split: Split, batch_size: int = 512) -> float:
        """The metric of ``network`` (put in eval mode, restored after) over a whole split; a share as a fraction."""

    def fetch(self) -> Path | None:
        """Finds or downloads the data; returns where they lie, None if the task makes them itself."""
        return None

    def initialise(self, network: nn.Module, train: TrainSplit) -> None:  # noqa: B027 (most data tell nothing)
        """Set, in place, those initial weights of a network just built that the training data tell: here none."""

    def output_shape(self) -> tuple[int, ...]:
        """Shape of what a network must give for one input, without the batch axis: a logit for each class."""
        return (self.num_classes,)

    def example(self) -> Tensor:
        """One zero input with a batch axis of 1, float32: for tracing and counting."""
        return torch.zeros(1, *self.input_shape)


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
    """Widths are rounded to multiples of this (smaller ones as :func:`nasbench_grow.selection.allowed_width` says);
    1 = no rounding."""
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
