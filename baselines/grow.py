"""Growing from one filter a layer to the budget while training: see :mod:`nasbench_grow.growing.scaling`."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from nasbench_grow.contract import Job, Method, Run
from nasbench_grow.growing import scaling


class Grow(Method):
    """Grows a network by schedule; which structures it has is decided by chance, not learnt."""

    name = "grow"
    summary = "grow filters and layers from a one-filter seed to the budget while training, by schedule"
    family = "growing"
    citation = (
        "after Yuan, Savarese, Maire, arXiv 2007.15353, with compound scaling (Tan and Le, arXiv 1905.11946) in "
        "place of its learnt masks"
    )
    Settings = scaling.ScalingSettings
    version = 4

    @property
    def budget_of(self) -> Literal["macs", "time"]:
        """MACs, or with ``cost=time`` the time of a training step."""
        return "time" if self.settings.cost == "time" else "macs"

    def in_cell(self, granularity: int, epochs: int) -> Method:
        """Without a granularity that is the set-up's own."""
        own = self.settings.granularity == granularity
        return Grow(replace(self.settings, granularity=None)) if own else self

    def run(self, job: Job) -> Run:
        """Grows."""
        return scaling.run(job, self.settings)
