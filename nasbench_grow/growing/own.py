"""What a job needs where there is no task: a user's own batches, optimizer and learning rates."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from nasbench_grow.base.errors import UserError
from nasbench_grow.contract import Batch, Recipe, Split, TrainSplit


@dataclass(frozen=True)
class OwnRecipe(Recipe):
    """A user's optimizer and learning rates in the place of the recipe's."""

    make: Callable[[nn.Module], torch.optim.Optimizer] | None = None
    """None: the recipe's optimizer."""
    rate: Callable[[float], float] | None = None
    """Learning rate for the share of the run that is done, in (0, 1]; None: the optimizer's own rates stay."""

    def learning_rate_at(self, progress: float) -> float:
        """The user's rate; NaN, which is not used, where there is none."""
        return math.nan if self.rate is None else self.rate(progress)

    def set_rate(self, optimizer: torch.optim.Optimizer, rate: float) -> None:
        """Sets the user's rate, if there is one."""
        if self.rate is not None:
            super().set_rate(optimizer, rate)

    def optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        """The user's optimizer."""
        return super().optimizer(network) if self.make is None else self.make(network)


class OwnBatches:
    """A user's batches as a training split, in their own order and size.

    Args:
        batches: gives the batches of epoch 1, 2, ...
        count: how many they are in each epoch.
    """

    def __init__(self, batches: Callable[[int], Iterable[Batch]], count: int) -> None:
        self._batches, self._count = batches, count

    def __len__(self) -> int:
        """Batches of an epoch: how many samples they hold is not known."""
        return self._count

    def steps_per_epoch(self, batch_size: int) -> int:
        """Batches of an epoch."""
        return self._count

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """The batches of the first epoch."""
        return iter(self._batches(1))

    def epoch(self, epoch: int, batch_size: int, seed: int) -> Iterator[Batch]:
        """The batches of an epoch."""
        return iter(self._batches(epoch))

    def hold_out(self, share: float, batch_size: int = 1) -> tuple[TrainSplit, Split]:
        """Own batches are used whole."""
        raise UserError("a loader cannot be divided; give this method a task")
