"""Growing by the paper's equations, with constants of ours: see :mod:`nasbench_grow.growing.relaxation`."""

from __future__ import annotations

from nasbench_grow.growing import relaxation
from nasbench_grow.growing.method import GrowingMethod


class GrowPaper(GrowingMethod):
    """Soft gates, Bernoulli sampling, a proportional budget controller."""

    name = "grow-paper"
    summary = "grow by the paper's equations: soft gates, Bernoulli sampling, proportional price; constants are ours"
    family = "growing"
    citation = "Yuan, Savarese, Maire, arXiv 2007.15353"
    Settings = relaxation.RelaxationSettings
    version = 2  # constants that fit runs of any length
