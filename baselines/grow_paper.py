"""Growing by the paper's equations, with constants of ours: see :mod:`nasbench_grow.growing.relaxation`."""

from __future__ import annotations

from nasbench_grow.contract import Job, Method, Run
from nasbench_grow.growing import relaxation


class GrowPaper(Method):
    """Soft gates, Bernoulli sampling, a proportional budget controller."""

    name = "grow-paper"
    summary = "grow by the paper's equations: soft gates, Bernoulli sampling, proportional price; constants are ours"
    family = "growing"
    citation = "Yuan, Savarese, Maire, arXiv 2007.15353"
    Settings = relaxation.RelaxationSettings
    version = 2  # constants that fit runs of any length

    def run(self, job: Job) -> Run:
        """Grows."""
        return relaxation.run(job, self.settings)
