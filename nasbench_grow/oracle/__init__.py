"""The oracle: a small space of networks, every one trained, so that a search can be judged without training any."""

from nasbench_grow.oracle.grid import Architecture
from nasbench_grow.oracle.table import Entry, Table

__all__ = ["Architecture", "Entry", "Table"]
