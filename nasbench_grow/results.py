"""Finished cells as pandas frames: see :mod:`nasbench_grow.report.frames`."""

from nasbench_grow.report.frames import COLUMNS, histories, load, structures, widths

__all__ = ["COLUMNS", "histories", "load", "structures", "widths"]
