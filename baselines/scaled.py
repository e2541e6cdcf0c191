"""Compound scaling while training: width and depth rise by schedule: see :mod:`nasbench_grow.growing.scaling`."""

from __future__ import annotations

from nasbench_grow.growing import scaling
from nasbench_grow.growing.method import GrowingMethod


class Scaled(GrowingMethod):
    """Grows a network by schedule; which structures it has is decided by chance, not learnt."""

    name = "scaled"
    summary = "width and depth rise from a one-filter seed to the budget by a schedule that learns nothing"
    family = "control"
    citation = "Tan and Le, EfficientNet, arXiv 1905.11946, section 3.3 (compound scaling), followed while training"
    Settings = scaling.ScalingSettings
