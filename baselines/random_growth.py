"""Growing by width with newborn filters that are simply random: the control of every method that starts them otherwise.

The network grows on the schedule of ``grow``, from a quarter of its widths, and ends with the widths of ``uniform``.
What a newborn filter takes in and gives out has the weights that the dense backbone was initialised with, so the
network's function changes at every growth step. It is the baseline "random" of the papers on growing (e.g. section 4
of Evci et al., *GradMax*, arXiv 2201.05125). The schedule's settings are those of all methods that grow so; ours.
"""

from __future__ import annotations

from nasbench_grow.contract import Growth


class RandomGrowth(Growth):
    """Widens on a schedule, with initial weights."""

    name = "random_growth"
    summary = "widths rise by schedule to those of uniform; newborn filters have random initial weights"
    family = "control"
    citation = "the random baseline of Evci et al., GradMax, arXiv 2201.05125"
