"""How steps are run: the business of the set-up, out of a method's sight."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

from torch import nn

from nasbench_grow.contract.clock import Clock
from nasbench_grow.contract.task import Batch
from nasbench_grow.structure.elastic import ElasticModel


class Runtime:
    """Runs steps as they come, on whatever device the batches are; a set-up's own does better."""

    def batches(
        self, batches: Iterator[Batch], clock: Clock, model: ElasticModel, steps: int, samples: int
    ) -> Iterator[Batch]:
        """The batches of an epoch as this process is to have them; the clock moves on with each.

        Args:
            batches: of the recipe's size, each worth one step.
            clock: to be moved on.
            model: the one that trains; its structure may change before any batch is drawn.
            steps, samples: how many the batches hold together.
        """
        for batch in batches:
            clock.draw()
            yield batch

    def autocast(self) -> AbstractContextManager[object]:
        """The precision of everything that runs inside."""
        return nullcontext()

    def accelerate(self, network: nn.Module) -> nn.Module:
        """A module that trains the network's parameters, faster if possible: for a structure that stays for long."""
        return network

    def mean(self, loss: float) -> float:
        """The mean of a figure over all processes that share the batches."""
        return loss
