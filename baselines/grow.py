"""Growing from one filter a layer to the budget while training: see :mod:`nasbench_grow.growing.sampling`."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

from nasbench_grow.contract import Job, Method, Run
from nasbench_grow.growing import sampling


class Grow(Method):
    """Samples sub-networks while the network grows, and learns from their losses which widths and layers pay."""

    name = "grow"
    summary = "grow filters and layers from a one-filter seed to the budget, where they lower the loss; no fine-tuning"
    family: ClassVar[Literal["control", "growing"]] = "growing"
    citation = "Yuan, Savarese, Maire, arXiv 2007.15353; departures: docs/method.md"
    Settings = sampling.SamplingSettings
    version = 5  # what is present is learnt
    placebo: ClassVar[bool] = False

    @property
    def budget_of(self) -> Literal["macs", "time"]:
        """MACs, or with ``cost=time`` the time of a training step."""
        return "time" if self.settings.cost == "time" else "macs"

    def in_cell(self, granularity: int, epochs: int) -> Method:
        """Without a granularity that is the set-up's own."""
        own = self.settings.granularity == granularity
        return type(self)(replace(self.settings, granularity=None)) if own else self

    def run(self, job: Job) -> Run:
        """Grows."""
        return sampling.run(job, self.settings, placebo=self.placebo)
