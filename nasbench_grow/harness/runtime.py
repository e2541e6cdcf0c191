"""How a set-up runs steps: where tensors lie, in what precision, in batches of what size, in how many processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from nasbench_grow.base import parallel
from nasbench_grow.base.errors import UserError
from nasbench_grow.contract import Batch, ElasticModel
from nasbench_grow.contract.clock import Clock
from nasbench_grow.contract.runtime import Runtime
from nasbench_grow.harness.adaptive import AdaptiveBatch
from nasbench_grow.harness.setups import PARALLEL, Setup


class SetupRuntime(Runtime):
    """Runs steps as a set-up says.

    Args:
        setup: the set-up.
        batch_size: the recipe's.
        adaptive: chooses batches by the network in training; None: they keep their size.
    """

    def __init__(self, setup: Setup, batch_size: int, adaptive: AdaptiveBatch | None) -> None:
        self.setup, self.batch_size, self.adaptive = setup, batch_size, adaptive

    def batches(
        self, batches: Iterator[Batch], clock: Clock, model: ElasticModel, steps: int, samples: int
    ) -> Iterator[Batch]:
        """The batches on the set-up's device, of which this process takes its part."""
        if self.adaptive is not None:
            batches = self.adaptive.regrouped(batches, samples, lambda: model.network)
        for inputs, targets in clock.pace(batches, steps, samples, min(self.batch_size, samples)):
            yield self.setup.place(self._part(inputs)), self._part(targets)

    def _part(self, batch: Tensor) -> Tensor:
        """This process's part of a batch."""
        count = parallel.processes()
        if len(batch) % count:
            raise UserError(
                f"setup {self.setup.name!r} cannot share batches of {len(batch)} equally among {count} processes; use "
                f"setup {self.setup.name.removesuffix(PARALLEL)!r}"
            )
        return batch.chunk(count)[parallel.rank()]

    def autocast(self) -> AbstractContextManager[object]:
        """The set-up's precision."""
        return self.setup.autocast()

    def accelerate(self, network: nn.Module) -> nn.Module:
        """Compiled, if the set-up says so."""
        return self.setup.accelerate(network)

    def mean(self, loss: float) -> float:
        """The mean over the processes, the same in each."""
        if parallel.processes() == 1:
            return loss
        return parallel.mean_over_processes(self.setup.place(torch.tensor(loss))).item()
