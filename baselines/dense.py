"""The whole backbone, trained by the recipe: what every saving is measured against."""

from __future__ import annotations

from torch import nn

from nasbench_grow.contract.method import Job
from nasbench_grow.contract.training import FixedNetwork


class Dense(FixedNetwork):
    """Trains the full network; ignores the budget."""

    name = "dense"
    summary = "the whole network, trained by the recipe"
    uses_budget = False

    def choose(self, job: Job) -> nn.Module:
        """The backbone as it is."""
        return job.build()
