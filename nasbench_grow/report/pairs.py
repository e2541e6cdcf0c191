"""Differences between two methods, paired by seed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import pandas as pd

from nasbench_grow.report.protocol import PROTOCOL, Block
from nasbench_grow.report.statistics import estimate
from nasbench_grow.report.wording import MINUS, NOTHING, with_interval


def differences(block: Block, method: str, other: str, budget: float) -> pd.Series[float]:
    """Test metric of ``method`` minus that of ``other``, for each seed (the index) that both finished.

    An ``other`` that ignores the budget is taken as it is.
    """
    at_budget = block.of(other, budget)
    chosen = block.of(other, 1.0) if at_budget.empty and set(block.of(other)["budget"]) == {1.0} else at_budget
    mine = block.of(method, budget).set_index("seed")["test_metric"]
    return (mine - chosen.set_index("seed")["test_metric"]).dropna().astype(float)


def pair(block: Block, method: str, other: str, budget: float, values: Iterable[float]) -> dict[str, Any]:
    """A row on the mean of such differences, unrounded."""
    values = list(values)
    result = estimate(values)
    return {
        **{name: getattr(block, name) for name in (*PROTOCOL, "metric")},
        "budget": budget,
        "reference": method,
        "method": other,
        "n": result.n,
        "difference": result.mean,
        "half_width": result.half_width,
        "low": result.low,
        "high": result.high,
        "excludes_zero": result.excludes_zero,
        "higher": sum(value > 0 for value in values),
    }


def pair_text(block: Block, row: dict[str, Any]) -> dict[str, str]:
    """Such a row for reading."""
    unit = "points" if block.in_percent else block.metric
    known = not math.isnan(row["half_width"])
    return {
        "budget": f"{row['budget']:g}",
        "difference": f"{row['reference']} {MINUS} {row['method']}",
        "seeds": str(row["n"]),
        f"test {block.metric} ({unit})": with_interval(row["difference"], row["half_width"], block.scale, "+"),
        "interval excludes zero": ("yes" if row["excludes_zero"] else "no") if known else NOTHING,
        "seeds where the first is higher": f"{row['higher']} of {row['n']}",
    }
