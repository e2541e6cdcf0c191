"""Growing from one filter a layer to the budget while training: see :mod:`nasbench_grow.growing.sampling`."""

from __future__ import annotations

from typing import ClassVar, Literal

from nasbench_grow.contract import ElasticModel, Job
from nasbench_grow.growing import sampling
from nasbench_grow.growing.growing import Growing
from nasbench_grow.growing.method import GrowingMethod


class Grow(GrowingMethod):
    """Grows to the budget, then moves it to the widths and layers that are worth most for their cost."""

    name = "grow"
    summary = "grow filters and layers from a one-filter seed to the budget, where they are worth most; no fine-tuning"
    family: ClassVar[Literal["control", "growing"]] = "growing"
    citation = "Yuan, Savarese, Maire, arXiv 2007.15353; departures: docs/method.md"
    Settings = sampling.SamplingSettings
    version = 9  # least_search: shorter searches learn nothing; with longer ones all is as in version 8
    placebo: ClassVar[bool] = False

    def begin(self, job: Job) -> tuple[ElasticModel, Growing]:
        """The seed, and what grows it."""
        return sampling.begin(job, self.settings, placebo=self.placebo)
