"""Random structures: filters and layers drawn at random until the budget is spent."""

from __future__ import annotations

import torch
from torch import nn

from nasbench_grow.contract.method import Job
from nasbench_grow.contract.training import FixedNetwork
from nasbench_grow.structure.discovery import discover
from nasbench_grow.structure.selection import select
from nasbench_grow.structure.subnetwork import extract


class Random(FixedNetwork):
    """Every filter and every removable layer draws a number; the highest that fit the budget are trained."""

    name = "random"
    summary = "filters and layers drawn at random, trained from the start"
    version = 2  # widths are rounded to the nearest allowed one
    source = "Li and Talwalkar, Random Search and Reproducibility for NAS, arXiv 1902.07638"

    def choose(self, job: Job) -> nn.Module:
        """A random sub-network of the budget's cost, a function of the job's seed."""
        model = job.build()
        space = discover(model, job.example)
        keys = torch.rand(len(space), generator=torch.Generator().manual_seed(job.seed))
        return extract(space, model, select(space, keys, job.budget * space.macs(space.full()), job.granularity))
