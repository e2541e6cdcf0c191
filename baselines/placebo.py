"""The placebo of ``grow``: the same dynamics, schedule and cost, and nothing known.

What one structure has learnt moves the logit of another, so the networks differ from each other as much as those of
``grow``. A claim that growing learns is ``retrain`` against ``retrain[of=placebo]``.
"""

from __future__ import annotations

from nasbench_grow.baselines.grow import Grow


class Placebo(Grow):
    """``grow`` with its evidence permuted among the structures."""

    name = "placebo"
    summary = "grow, but what is learnt of one structure is applied to another: a control for learning"
    family = "control"
    citation = "a control of this suite"
    version = 5  # follows version 9 of grow
    placebo = True
