"""Uniform width: every channel group keeps the same share of its filters, chosen so that the MACs meet the budget."""

from __future__ import annotations

from torch import nn

from nasbench_grow.contract import Job
from nasbench_grow.discovery import discover
from nasbench_grow.selection import select, uniform_keys
from nasbench_grow.subnetwork import extract
from nasbench_grow.training import FixedNetwork


class Uniform(FixedNetwork):
    """A width multiplier found by bisection, all layers kept; trained from the start."""

    name = "uniform"
    summary = "the same share of filters in every channel group, trained from the start"
    source = "Howard et al., MobileNets, arXiv 1704.04861, section 3.3 (width multiplier)"

    def choose(self, job: Job) -> nn.Module:
        """The thinner backbone, exact to a filter: rounding widths would make them less uniform."""
        model = job.build()
        space = discover(model, job.example)
        return extract(space, model, select(space, uniform_keys(space), job.budget * space.macs(space.full())))
