"""Uniform width: every channel group keeps the same share of its filters, chosen so that the MACs meet the budget."""

from __future__ import annotations

from torch import nn

from nasbench_grow.contract.method import Job
from nasbench_grow.contract.training import FixedNetwork
from nasbench_grow.structure.discovery import discover
from nasbench_grow.structure.selection import select, uniform_keys
from nasbench_grow.structure.subnetwork import extract


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
