"""The part of a recipe's schedule that one training goes through."""

from __future__ import annotations

from dataclasses import dataclass, field

from nasbench_grow.contract.clock import Clock
from nasbench_grow.contract.task import Recipe


@dataclass(frozen=True)
class Schedule:
    """Steps to train and their learning rates.

    Either the run's own schedule, which successive trainings go through together (its clock stands where the last one
    ended), or one of the training's own.
    """

    recipe: Recipe
    last: int
    """The step of the clock after which the training ends."""
    total: int
    """Steps from the beginning of ``span`` to its end."""
    per_epoch: int
    """Steps of an epoch."""
    span: tuple[float, float] = (0.0, 1.0)
    """The part of the recipe's schedule to go through."""
    rate: float = 1.0
    """Factor on the recipe's learning rate."""
    seen: int = 0
    """Epochs trained before by schedules of a model's own: the next ones are shuffled otherwise."""
    clock: Clock = field(default_factory=Clock)

    def learning_rate(self, step: int) -> float:
        """The rate of step ``step``, from 0, for a batch of the recipe's size."""
        begin, end = self.span
        progress = begin + (end - begin) * min(1.0, (step + 1) / self.total)
        return self.rate * self.recipe.learning_rate_at(progress)

    def end_of_epoch(self) -> int:
        """The step at which the epoch in hand ends, or the training."""
        return min(self.last, (self.clock.end // self.per_epoch + 1) * self.per_epoch)
