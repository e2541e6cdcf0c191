"""Random structures: filters drawn at random until the budget is spent, in as many layers as ``grow`` would have.

The layers are drawn from the very distribution that ``grow`` draws them from, by the same seed: what is left between
the two is not depth.
"""

from __future__ import annotations

import torch
from torch import nn

from nasbench_grow import discover, extract, planned_layers, select
from nasbench_grow.contract import FixedNetwork, Job


class Random(FixedNetwork):
    """Every filter draws a number; the highest that fit the budget are trained."""

    name = "random"
    summary = "filters drawn at random, depth as grow draws it; trained from the start"
    family = "control"
    citation = "Li and Talwalkar, Random Search and Reproducibility for NAS, arXiv 1902.07638"
    version = 3  # its depth is drawn as that of grow

    def choose(self, job: Job) -> nn.Module:
        """A random sub-network of the budget's cost, a function of the job's seed."""
        model = job.build()
        space = discover(model, job.example)
        keys = torch.rand(len(space), generator=torch.Generator().manual_seed(job.seed))
        layers = planned_layers(space, job.budget, job.granularity, job.seed)
        keys[space.filters :] = torch.where(layers, torch.inf, -torch.inf)
        return extract(space, model, select(space, keys, job.budget * space.macs(space.full()), job.granularity))
