"""What the methods that grow have in common."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from nasbench_grow.contract import ElasticModel, Job, Method, Run
from nasbench_grow.growing.beginning import begin
from nasbench_grow.growing.growing import Growing
from nasbench_grow.growing.settings import SolvedSettings


class GrowingMethod(Method):
    """Grows the seed of a dense backbone in the way of its settings."""

    @property
    def budget_of(self) -> Literal["macs", "time"]:
        """MACs, or with ``cost=time`` the time of a training step."""
        return self.settings.cost if isinstance(self.settings, SolvedSettings) else "macs"

    def in_cell(self, granularity: int, epochs: int) -> Method:
        """Without a granularity that is the set-up's own."""
        if not isinstance(self.settings, SolvedSettings) or self.settings.granularity != granularity:
            return self
        return type(self)(replace(self.settings, granularity=None))

    def begin(self, job: Job) -> tuple[ElasticModel, Growing]:
        """The seed, and what grows it."""
        return begin(job, self.settings)

    def run(self, job: Job) -> Run:
        """Grows."""
        model, growing = self.begin(job)
        return (yield from growing.run(job, model))
