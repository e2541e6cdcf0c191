"""Numbers as the report's tables write them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import pandas as pd

NOTHING = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
TIMES = "\N{MULTIPLICATION SIGN}"
MISSED = "\N{BALLOT X}"
"""Marks a network that misses its budget."""


def with_interval(mean: float, half_width: float, scale: float = 1.0, sign: str = "") -> str:
    """``61.20 ± 1.30``; the interval is a dash where there is none."""
    if math.isnan(mean):
        return NOTHING
    return f"{mean * scale:{sign}z.2f} ± {number(half_width * scale, 2)}"


def number(value: float, digits: int) -> str:
    """A rounded number, or a dash for a missing one."""
    return NOTHING if math.isnan(value) else f"{value:z,.{digits}f}"


def floats(column: pd.Series[Any]) -> Iterable[float]:
    """A column as plain floats, NaN where a value is missing."""
    return column.astype("Float64").to_numpy(dtype="float64", na_value=math.nan)


def listed(values: Iterable[Any]) -> str:
    """The distinct values as text, in order of appearance, missing ones left out."""
    found = dict.fromkeys(value for value in values if not pd.isna(value))
    return ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in found)
