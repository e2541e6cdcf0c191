"""What a task gives: data, loss, metric and the recipe by which every method trains on it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from nasbench_grow.contract.definition import plain_attributes

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

    def set_rate(self, optimizer: torch.optim.Optimizer, rate: float) -> None:
        """Sets the learning rate of the optimizer's fastest parameter group; the others keep their ratio to it."""
        own = [group.setdefault("initial_lr", group["lr"]) for group in optimizer.param_groups]
        fastest = max(own)
        for group, initial in zip(optimizer.param_groups, own, strict=True):
            group["lr"] = rate if initial == fastest else rate * initial / fastest

    def optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        """SGD with Nesterov momentum; no weight decay on normalisation parameters and biases (1-d tensors), and
        neither decay nor momentum on tables with sparse gradients, all of whose rows would move by it."""
        sparse = [module.weight for module in network.modules() if getattr(module, "sparse", None) is True]
        others = [p for p in network.parameters() if all(p is not table for table in sparse)]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in others if p.ndim > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
            {"params": sparse, "weight_decay": 0.0, "momentum": 0.0, "nesterov": False},
        ]
        groups = [group for group in groups if group["params"]]
        # one kernel for all parameters, where there is one
        fused = not sparse and all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in others)
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
    """A training split: also gives shuffled, augmented epochs, and a part of itself to judge a search on.

    Its plain batches serve calibration: every beginning of their order is as class-balanced as the data allow.
    """

    def epoch(self, epoch: int, batch_size: int, seed: int) -> Iterator[Batch]:
        """The batches of one epoch, a pure function of the arguments (so that a run can resume). Drops the last
        incomplete batch unless it is the only one."""
        ...

    def steps_per_epoch(self, batch_size: int) -> int:
        """Number of batches that :meth:`epoch` yields."""
        ...

    def hold_out(self, share: float, batch_size: int = 1) -> tuple[TrainSplit, Split]:
        """The training samples that are left, and the share of them that an architecture search is judged on.

        A fixed, class-balanced choice where the samples have classes; the end of a text. The two parts are disjoint
        and together all samples. Architectures that are chosen so have seen neither validation nor test split; the
        network that is chosen trains on all training samples again.

        Args:
            share: of the samples, above 0 and below 1; at least one sample is held out.
            batch_size: a batch of this size at least is left to train on.
        Raises:
            UserError: ``share`` is out of range, or the split is too small.
        """
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
    version: ClassVar[int] = 1
    """Raise this when the data, the loss or the metric change in a way that no class attribute shows."""
    metric: ClassVar[str]
    higher_is_better: ClassVar[bool]
    metric_scale: ClassVar[float]
    """The metric is shown times this: 100 where it is a share, shown in percent."""
    metric_unit: ClassVar[str]
    """Stands behind the number that is shown: ``"%"``, or nothing."""
    num_classes: ClassVar[int]
    input_shape: ClassVar[tuple[int, ...]]
    """Shape of one input without the batch axis, e.g. (3, 32, 32)."""
    recipe: ClassVar[Recipe] = Recipe()
    batch_may_change: ClassVar[bool] = True
    """False where the batches of an epoch go on from each other row by row."""
    not_defining: ClassVar[frozenset[str]] = frozenset(
        {"summary", "metric_scale", "metric_unit", "recipe", "not_defining"}
    )
    """Class attributes that no result depends on, or that are keyed apart: :meth:`definition` leaves them out."""

    @classmethod
    def definition(cls) -> dict[str, Any]:
        """All of the task that its results depend on, as JSON holds it, the same in every process: every public class
        attribute but the recipe and words for the reader.

        Raises:
            UserError: the task does not state one of its attributes, or one is no plain data.
        """
        return plain_attributes(cls, cls.not_defining)

    @classmethod
    def score(cls, metric: float) -> float:
        """The metric so that higher is better: with its sign changed where lower is."""
        return metric if cls.higher_is_better else -metric

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
