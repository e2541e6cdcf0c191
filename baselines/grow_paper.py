"""The growing method with the ``paper`` preset: the published equations as they stand."""

from __future__ import annotations

from typing import ClassVar

from nasbench_grow.baselines.grow import Grow
from nasbench_grow.growing.presets import Preset


class GrowPaper(Grow):
    """Soft gates, Bernoulli sampling once an epoch, a proportional budget controller."""

    name = "grow-paper"
    summary = "the same by the paper's equations: soft gates, Bernoulli sampling, proportional budget controller"
    source = "Yuan, Savarese, Maire, arXiv 2007.15353"
    version = 1  # its own: what the default preset went through since changed nothing here
    preset: ClassVar[str | Preset] = "paper"
