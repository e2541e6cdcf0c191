"""Compound scaling while training: width and depth rise by schedule: see :mod:`nasbench_grow.growing.scaling`."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from nasbench_grow.contract import Job, Method, Run
from nasbench_grow.growing import scaling


class Scaled(Method):
    """Grows a network by schedule; which structures it has is decided by chance, not learnt."""

    name = "scaled"
    summary = "width and depth rise from a one-filter seed to the budget by a schedule that learns nothing"
    family = "control"
    citation = "Tan and Le, EfficientNet, arXiv 1905.11946, section 3.3 (compound scaling), followed while training"
    Settings = scaling.ScalingSettings

    @property
    def budget_of(self) -> Literal["macs", "time"]:
        """MACs, or with ``cost=time`` the time of a training step."""
        return "time" if self.settings.cost == "time" else "macs"

    def in_cell(self, granularity: int, epochs: int) -> Method:
        """Without a granularity that is the set-up's own."""
        own = self.settings.granularity == granularity
        return Scaled(replace(self.settings, granularity=None)) if own else self

    def run(self, job: Job) -> Run:
        """Grows."""
        return scaling.run(job, self.settings)
