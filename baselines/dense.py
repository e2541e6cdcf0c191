"""The whole backbone, trained by the recipe: what every saving is measured against."""

from __future__ import annotations

from torch import nn

from nasbench_grow.contract import FixedNetwork, Job


class Dense(FixedNetwork):
    """Trains the full network; ignores the budget."""

    name = "dense"
    summary = "the whole network, trained by the recipe"
    family = "control"
    uses_budget = False
    aims_at_budget = False

    def choose(self, job: Job) -> nn.Module:
        """The backbone as it is."""
        return job.build()
