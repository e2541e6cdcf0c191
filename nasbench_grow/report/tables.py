"""The tables of the report: comparison of the methods, paired differences, requirements on growing.

A :class:`Table` carries its numbers twice: ``data`` is tidy and unrounded (for CSV), ``parts`` are rounded text, one
for each protocol (for Markdown and LaTeX). Every number is computed from the records.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd

from nasbench_grow.contract import settings as variants
from nasbench_grow.report.pairs import differences, pair, pair_text
from nasbench_grow.report.protocol import PROTOCOL, Block, is_growing, largest_step, paid
from nasbench_grow.report.statistics import estimate
from nasbench_grow.report.wording import MINUS, NOTHING, TIMES, floats, number, with_interval

BUDGET_LIMIT = 0.02
"""Largest accepted distance of the returned network's MACs from the budget, as a share of dense MACs."""
COMMITMENT_LIMIT = 0.002
"""Largest accepted distance in the validation metric between the last sampled and the returned network."""
STEP_LIMIT = 0.25
"""Largest accepted change of the cost by one restructuring, as a share of dense MACs."""

REFERENCE = "grow"
_PROTOCOL = (*PROTOCOL, "metric")
_MEANS = (
    "val_metric",
    "macs",
    "macs_share",
    "params",
    "train_macs",
    "train_macs_share",
    "wall_s",
    "latency_ms_batch1",
    "latency_ms_batch64",
    "peak_memory_bytes",
)


@dataclass(frozen=True)
class Part:
    """One protocol's share of a table, as rounded text; ``note`` says how its rows are computed."""

    block: Block
    note: str
    rows: pd.DataFrame


@dataclass(frozen=True)
class Table:
    """A table of the report; ``name`` is its file's stem."""

    name: str
    title: str
    data: pd.DataFrame
    parts: list[Part]


def comparison(blocks: list[Block]) -> Table:
    """A row for each method and budget: metric with its interval over seeds, and every cost."""
    data, parts = [], []
    for block in blocks:
        rows = [compare(block, method, budget) for method, budget in _method_budgets(block)]
        for row in rows:
            row["wall_share"] = time_share(block.of(row["method"], row["budget"]), block.of("dense"))
        data += rows
        note = (
            "Means over seeds; ± is the 95 % Student t interval of the mean; shares are of the dense network's MACs; "
            "training time does not include evaluation, and is not compared where the number of threads was another."
        )
        parts.append(Part(block, note, pd.DataFrame([_comparison_text(block, row) for row in rows])))
    return Table("comparison", "Comparison of the methods", pd.DataFrame(data), parts)


def paired(blocks: list[Block]) -> Table:
    """A row for each budget and pair of methods: the test metric of ``grow``, or of a variant of it, minus that of the
    other method, paired by seed."""
    columns = [*_PROTOCOL, "budget", "reference", "method", "n", "difference", "half_width", "low", "high"]
    data, parts = [], []
    for block in blocks:
        rows = [row for budget in sorted(set(block.finished["budget"]), reverse=True) for row in _pairs(block, budget)]
        data += rows
        if rows:
            note = (
                f"{REFERENCE} (or a variant of it) minus the other method, seed by seed, at the same budget (a method "
                "without a budget is taken as it is); ± is the 95 % Student t interval of the mean difference."
            )
            parts.append(Part(block, note, pd.DataFrame([pair_text(block, row) for row in rows])))
    frame = pd.DataFrame(data) if data else pd.DataFrame(columns=columns)
    return Table("paired", f"Paired differences to {REFERENCE}", frame, parts)


def _pairs(block: Block, budget: float) -> list[dict[str, Any]]:
    """``grow`` and its variants against all other methods, each pair once."""
    references = [method for method in block.methods if variants.split(method)[0] == REFERENCE]
    rows = []
    for place, reference in enumerate(references):
        for method in block.methods:
            by_seed = differences(block, reference, method, budget)
            if method not in references[: place + 1] and not by_seed.empty:
                rows.append(pair(block, reference, method, budget, by_seed))
    return rows


def requirements(blocks: list[Block], histories: pd.DataFrame) -> Table:
    """A row for each growing run: is the budget met, does the run commit, does it grow gradually?"""
    columns = [*_PROTOCOL, "method", "budget", "seed", "macs_share"]
    data, parts = [], []
    for block in blocks:
        growing = block.finished[block.finished["method"].isin(filter(is_growing, block.methods))]
        growing = growing.sort_values(["method", "budget", "seed"])
        rows = [
            _require(block, cell, paid(cell, histories), largest_step(cell, histories))
            for _, cell in growing.iterrows()
        ]
        data += rows
        if rows:
            note = (
                f"Limits: MACs (with cost=time: estimated step time) within {BUDGET_LIMIT} of the budget, "
                f"{block.metric} of the last sampled network within {COMMITMENT_LIMIT} of the returned one's "
                f"(validation split), cost never changing by more than {STEP_LIMIT} of the dense one's at once (where "
                "a method does not log that: within an epoch)."
            )
            parts.append(Part(block, note, pd.DataFrame([_requirement_text(row) for row in rows])))
    frame = pd.DataFrame(data) if data else pd.DataFrame(columns=columns)
    return Table("requirements", "Requirements on growing runs", frame, parts)


def protocol_columns(block: Block) -> dict[str, Any]:
    """The columns that say under which protocol a row was measured."""
    return {name: getattr(block, name) for name in _PROTOCOL}


def _method_budgets(block: Block) -> list[tuple[str, float]]:
    """Every method and budget with a cell, the largest budget first."""
    pairs = {
        (str(method), float(budget))
        for method, budget in zip(block.cells["method"], block.cells["budget"], strict=True)
    }
    return sorted(pairs, key=lambda pair: (-pair[1], block.methods.index(pair[0])))


def compare(block: Block, method: str, budget: float) -> dict[str, Any]:
    """One row of the comparison, unrounded."""
    all_cells = block.cells[(block.cells["method"] == method) & (block.cells["budget"] == budget)]
    finished = block.of(method, budget)
    test = estimate(floats(finished["test_metric"]))
    row: dict[str, Any] = {
        **protocol_columns(block),
        "budget": budget,
        "method": method,
        "cells": len(all_cells),
        "finished": len(finished),
        "failed": int((all_cells["status"] == "failed").sum()),
        "diverged": int((all_cells["status"] == "diverged").sum()),
        "test_metric": test.mean,
        "test_metric_half_width": test.half_width,
    }
    for column in _MEANS:
        row[column] = estimate(floats(finished[column])).mean
    row["val_metric_half_width"] = estimate(floats(finished["val_metric"])).half_width
    return row


def time_share(cells: pd.DataFrame, dense: pd.DataFrame) -> float:
    """Mean training time of some cells over that of the dense ones; NaN where there are none, or where the numbers of
    threads differ."""
    if _threads(cells) != _threads(dense):
        return math.nan
    return estimate(floats(cells["wall_s"])).mean / estimate(floats(dense["wall_s"])).mean


def _threads(cells: pd.DataFrame) -> set[float]:
    """How many threads the cells were run with; empty where their records do not say."""
    return set(cells["hardware_threads"].dropna()) if "hardware_threads" in cells else set()


def _comparison_text(block: Block, row: dict[str, Any]) -> dict[str, str]:
    """One row of the comparison for reading."""
    scale = block.scale
    return {
        "budget": f"{row['budget']:g}",
        "method": row["method"],
        "seeds": seeds_text(row),
        f"test {block.metric_label}": with_interval(row["test_metric"], row["test_metric_half_width"], scale),
        f"val {block.metric_label}": with_interval(row["val_metric"], row["val_metric_half_width"], scale),
        "MACs share": number(row["macs_share"], 3),
        "MACs (M)": number(row["macs"] / 1e6, 2),
        "params (k)": number(row["params"] / 1e3, 1),
        "training MACs share": number(row["train_macs_share"], 3),
        "training (s)": number(row["wall_s"], 1),
        f"training time ({TIMES} dense)": number(row["wall_share"], 2),
        "latency, batch 1 (ms)": number(row["latency_ms_batch1"], 2),
        "latency, batch 64 (ms)": number(row["latency_ms_batch64"], 1),
        "peak memory (MiB)": number(row["peak_memory_bytes"] / 2**20, 0),
    }


def seeds_text(row: dict[str, Any]) -> str:
    """``3``, or ``2 of 3, 1 failed`` where not every cell ended well."""
    bad = [f"{row[status]} {status}" for status in ("failed", "diverged") if row[status]]
    return ", ".join([f"{row['finished']} of {row['cells']}", *bad]) if bad else str(row["finished"])


def _require(block: Block, cell: pd.Series[Any], cost: float, largest: float) -> dict[str, Any]:
    """One row of the requirements, unrounded; a check without its figure is missing, neither passed nor failed."""
    off_budget = abs(cost - cell["budget"])
    commitment = abs(cell["soft_val_metric"] - cell["val_metric"])
    return {
        **protocol_columns(block),
        "method": cell["method"],
        "budget": cell["budget"],
        "seed": int(cell["seed"]),
        "macs_share": cell["macs_share"],
        "off_budget": off_budget,
        "meets_budget": _within(off_budget, BUDGET_LIMIT),
        "soft_minus_hard": cell["soft_val_metric"] - cell["val_metric"],
        "commits": _within(commitment, COMMITMENT_LIMIT),
        "largest_step": largest,
        "grows_gradually": _within(largest, STEP_LIMIT),
        "train_macs_share": cell["train_macs_share"],
    }


def _requirement_text(row: dict[str, Any]) -> dict[str, str]:
    """One row of the requirements for reading."""
    return {
        "method": row["method"],
        "budget": f"{row['budget']:g}",
        "seed": str(row["seed"]),
        "MACs share": number(row["macs_share"], 3),
        f"off budget (≤ {BUDGET_LIMIT})": _judged(row["off_budget"], row["meets_budget"], 3),
        f"sampled {MINUS} returned (≤ {COMMITMENT_LIMIT})": _judged(row["soft_minus_hard"], row["commits"], 4),
        f"largest step (≤ {STEP_LIMIT})": _judged(row["largest_step"], row["grows_gradually"], 3),
        "training MACs share": number(row["train_macs_share"], 3),
    }


def _within(value: float, limit: float) -> bool | None:
    """Whether a limit is kept, with room for rounding in the last bit; None for a missing value."""
    return None if math.isnan(value) else bool(value <= limit * (1 + 1e-9))


def _judged(value: float, kept: bool | None, digits: int) -> str:
    """A figure with its verdict, e.g. ``0.004 pass``."""
    return NOTHING if kept is None else f"{number(value, digits)} {'pass' if kept else 'FAIL'}"
