"""Uniform width: every channel group keeps the same share of its filters, chosen so that the MACs meet the budget."""

from __future__ import annotations

from torch import nn

from nasbench_grow import discover, extract, select, uniform_keys
from nasbench_grow.contract import FixedNetwork, Job


class Uniform(FixedNetwork):
    """A width multiplier found by bisection, all layers kept; trained from the start."""

    name = "uniform"
    summary = "the same share of filters in every channel group, trained from the start"
    family = "control"
    citation = "Howard et al., MobileNets, arXiv 1704.04861, section 3.3 (width multiplier)"
    version = 2  # widths are rounded like everybody else's

    def choose(self, job: Job) -> nn.Module:
        """The thinner backbone."""
        model = job.build()
        space = discover(model, job.example)
        limit = job.budget * space.macs(space.full())
        return extract(space, model, select(space, uniform_keys(space), limit, job.granularity))
