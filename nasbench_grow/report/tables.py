"""The tables of the report: comparison of the methods, paired differences, requirements on growing.

A :class:`Table` carries its numbers twice: ``data`` is tidy and unrounded (for CSV), ``parts`` are rounded text, one
for each block (for Markdown and LaTeX). Every number is computed from the records.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd

from nasbench_grow.harness.record import BUDGET_LIMIT
from nasbench_grow.report.block import PROTOCOL, Block, base, by_epoch, commits, values_by_seed
from nasbench_grow.report.statistics import CONFIDENCE, estimate, holm
from nasbench_grow.report.wording import MINUS, MISSED, NOTHING, TIMES, floats, listed, number, with_interval

REFERENCE = "grow"
"""What every other method is compared with, seed by seed."""
COMMITMENT_LIMIT = 0.002
"""Largest accepted distance in the validation metric between the last sampled and the returned network."""
STEP_LIMIT = 0.25
"""Largest accepted change of the cost by one restructuring, as a share of dense MACs."""

_PROTOCOL = (*PROTOCOL, "comparison_key", "metric")
_MEANS = (
    *("params", "macs", "macs_share", "train_macs", "train_macs_share", "wall_s", "cpu_s", "search_s", "total_s"),
    *("peak_memory_bytes", "latency_ms_batch1", "latency_ms_batch64"),
)
_PARTS = ("search", "source", "calibration")
"""What is billed within the training MACs besides the training of the returned network."""
_TIMES = {"wall_s": "training time", "cpu_s": "CPU time of training"}
_BATCHES = (1, 64)
FRONT = "\N{BLACK STAR}"
_ALWAYS = 3
"""The first columns of the comparison stand even where they are empty: budget, method, seeds."""


@dataclass(frozen=True)
class Part:
    """One block's share of a table, as rounded text; each of the notes is a line below it."""

    block: Block
    notes: list[str]
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
        rows = [compare(block, method, budget) for method, budget in block.rows]
        for row in rows:
            row["pareto"] = on_front(block, row, rows)
        apart = set(block.without_draws().rows)
        shown = [row for row in rows if (row["method"], row["budget"]) in apart]
        texts = pd.DataFrame([_comparison_text(block, row) for row in shown])
        empty = [name for name in texts.columns[_ALWAYS:] if (texts[name] == NOTHING).all()]
        data += rows
        notes = [*_comparison_notes(block, rows), *_marks(block, {row["method"] for row in shown})]
        if len(shown) < len(rows):
            drawn = len(rows) - len(shown)
            notes.append(f"In the CSV alone: {drawn} numbered draws of random, which the table of headroom sums up.")
        parts.append(Part(block, notes, texts.drop(columns=empty)))
    return Table("comparison", "Comparison of the methods", pd.DataFrame(data), parts)


def compare(block: Block, method: str, budget: float) -> dict[str, Any]:
    """One row of the comparison, unrounded."""
    all_cells = block.cells[(block.cells["method"] == method) & (block.cells["budget"] == budget)]
    finished = block.of(method, budget)
    row: dict[str, Any] = {
        **_protocol(block),
        "budget": budget,
        "method": method,
        "family": block.families[method],
        "cells": len(all_cells),
        "finished": len(finished),
        **{status: int((all_cells["status"] == status).sum()) for status in ("failed", "diverged", "skipped")},
        "missed_budget": block.missed(method, budget),
    }
    for column in dict.fromkeys((block.column, "val_metric")):
        found = estimate(floats(finished[column]))
        row |= {column: found.mean, f"{column}_half_width": found.half_width}
    row |= {column: estimate(floats(finished[column])).mean for column in _MEANS}
    found = estimate(advantage(block, finished, block.of("dense")))
    row |= {"dense_advantage": found.mean, "dense_advantage_half_width": found.half_width}
    row["params_share"] = row["params"] / estimate(floats(finished["dense_params"])).mean
    dense_training = pd.Series(list(floats(finished["dense_train_macs"])), dtype=float)
    for part in _PARTS:
        billed = pd.Series(list(floats(finished[f"{part}_macs"])), dtype=float)
        row[f"{part}_macs_share"] = estimate(billed / dense_training).mean
    for column in (*_TIMES, "peak_memory_bytes"):
        found = estimate(block.ratios(method, budget, column))
        row |= {f"{column}_ratio": found.mean, f"{column}_ratio_half_width": found.half_width}
    for batch in _BATCHES:
        row |= _latency(finished, batch)
    return row | {"commits": commits(all_cells)}


def on_front(block: Block, row: dict[str, Any], rows: list[dict[str, Any]]) -> bool:
    """Whether no other row is at least as good in the mean for no more inference and no more training MACs, in
    hundredths of the dense network's: no budget is met more closely than that."""

    def figures(row: dict[str, Any]) -> tuple[float, float, float]:
        return block.direction * row[block.column], -round(row["macs_share"], 2), -round(row["train_macs_share"], 2)

    mine = figures(row)
    known = not any(map(math.isnan, mine)) and not row["missed_budget"]
    others = [figures(other) for other in rows if not other["missed_budget"]]
    return known and not any(
        theirs != mine and all(their >= own for their, own in zip(theirs, mine, strict=True)) for theirs in others
    )


def _latency(finished: pd.DataFrame, batch: int) -> dict[str, float]:
    """Latency over the dense network's: mean and interval over seeds; of one seed, the interval that was measured."""
    found = estimate(floats(finished[f"latency_ratio_batch{batch}"]))
    low, high = found.mean - found.half_width, found.mean + found.half_width
    if found.n == 1:
        low, high = (estimate(floats(finished[f"latency_ratio_{end}_batch{batch}"])).mean for end in ("low", "high"))
    name = "latency_ratio"
    return {f"{name}_batch{batch}": found.mean, f"{name}_low_batch{batch}": low, f"{name}_high_batch{batch}": high}


def _comparison_text(block: Block, row: dict[str, Any]) -> dict[str, str]:
    """One row of the comparison for reading."""
    splits = dict.fromkeys((block.split, "val"))
    metrics = {
        block.label(split): with_interval(row[f"{split}_metric"], row[f"{split}_metric_half_width"], block.scale)
        for split in splits
    }
    shares = {part: row[f"{part}_macs_share"] for part in _PARTS}
    latencies = {
        f"latency, batch {batch} ({TIMES} dense)": NOTHING
        if math.isnan(row[f"latency_ratio_batch{batch}"])
        else f"{row[f'latency_ratio_batch{batch}']:.2f} ({number(row[f'latency_ratio_low_batch{batch}'], 2)} to "
        f"{number(row[f'latency_ratio_high_batch{batch}'], 2)})"
        for batch in _BATCHES
    }
    return {
        "budget": f"{row['budget']:g}",
        "method": named(block, row["method"], row["budget"]),
        "seeds": _seeds(row),
        FRONT: FRONT if row["pareto"] else "",
        **metrics,
        f"over dense, {block.step_label}": NOTHING
        if row["method"] == "dense"
        else with_interval(row["dense_advantage"], row["dense_advantage_half_width"], block.scale, "+"),
        "MACs share": number(row["macs_share"], 3),
        "params (k)": number(row["params"] / 1e3, 1),
        "params share": number(row["params_share"], 3),
        "training MACs share": number(row["train_macs_share"], 3),
        **{f"of which {part}": number(share, 3) if share > 0 else NOTHING for part, share in shares.items()},
        **{
            f"{head} ({TIMES} dense)": with_interval(row[f"{column}_ratio"], row[f"{column}_ratio_half_width"])
            for column, head in _TIMES.items()
        },
        **latencies,
    }


def named(block: Block, method: str, budget: float) -> str:
    """The method, marked where one of its networks misses the budget."""
    return f"{method} {MISSED}" if block.missed(method, budget) else method


def _seeds(row: dict[str, Any]) -> str:
    """``3``; ``2 of 3, 1 failed`` where not every cell ended well; ``skipped``."""
    tried = row["cells"] - row["skipped"]
    bad = [f"{row[status]} {status}" for status in ("failed", "diverged") if row[status]]
    if not tried:
        return "skipped"
    return ", ".join([f"{row['finished']} of {tried}", *bad]) if bad else str(row["finished"])


def _comparison_notes(block: Block, rows: list[dict[str, Any]]) -> list[str]:
    """How the numbers are computed, and what is not in the table."""
    notes = [
        "Means over seeds; ± is the 95 % Student t interval of the mean. The metric is that of the network returned. "
        "MACs shares are of the dense network's MACs, training MACs shares of training it; training time, without "
        "evaluation, is over that of dense with the same seed, and stands only where all of these cells and all "
        "dense ones ran on one machine with equal threads. Times of cells that ran beside others are left out. "
        f"{FRONT}: on the Pareto front of the means; no other row is as good for no more MACs and training MACs, "
        "in hundredths."
    ]
    if block.split == "val":
        notes.append(
            "Validation only: this folder holds several settings of one method, which is a choice; test is kept for "
            "what is chosen."
        )
    skipped = block.cells[block.cells["status"] == "skipped"].drop_duplicates(["method", "error"])
    if len(skipped):
        reasons = [f"{cell['method']} ({cell['error'] or 'no reason given'})" for _, cell in skipped.iterrows()]
        notes.append(f"Skipped: {'; '.join(reasons)}.")
    old = block.left_out.groupby(["method", "budget"])
    if len(old):
        left = [f"{method} at {budget:g}, {len(cells)} from {commits(cells)}" for (method, budget), cells in old]
        notes.append(f"Left out, as settings or version of the method were others: {'; '.join(left)}.")
    dirty = sorted({row["method"] for row in rows if "-dirty" in row["commits"]})
    if dirty:
        notes.append(f"From uncommitted changes, so nobody can run them again: {listed(dirty)}.")
    return notes


def _marks(block: Block, methods: set[str]) -> list[str]:
    """The footnotes that rows of these methods need."""
    notes = []
    if any(block.missed(method, budget) for method, budget in block.rows if method in methods):
        notes.append(
            f"{MISSED}: a returned network misses the budget by more than {BUDGET_LIMIT} of the dense MACs; such rows "
            "are in no paired comparison."
        )
    if any(method != base(method) for method in methods):
        notes.append(
            "A name with brackets: these settings differ from the method's defaults; all other rows have the defaults "
            "of their method."
        )
    return notes


def paired(blocks: list[Block], reference: str = REFERENCE, name: str = "paired") -> Table:
    """A row for each budget and other method: how much better the reference is, paired by seed."""
    columns = [*_PROTOCOL, "split", "budget", "reference", "method", "n", "advantage", "half_width"]
    columns += ["low", "high", "p", "excludes_zero", "p_holm", "holds_for_all", "better", "commits"]
    data, parts = [], []
    for block in blocks:
        rows = pairs(block, reference)
        data += rows
        if rows:
            texts = pd.DataFrame([_pair_text(block, row) for row in rows])
            methods = {reference, *(row["method"] for row in rows)}
            notes = [_paired_note(block, rows), *_marks(block, methods)]
            parts.append(Part(block, notes, texts))
    return Table(name, f"{reference} against each other method", pd.DataFrame(data, columns=columns), parts)


def pairs(block: Block, reference: str) -> list[dict[str, Any]]:
    """The reference against every other method that meets its budget, the largest budget first."""
    rows = []
    for budget in sorted({budget for _, budget in block.rows}, reverse=True):
        for method in block.methods:
            at_budget = {name for name, at in block.rows if at == budget}
            if method == reference or not at_budget & {method, reference}:
                continue
            mine, other = block.at(reference, budget), block.at(method, budget)
            values = advantage(block, mine, other)
            if len(values) and not block.missed(reference, budget) and not block.missed(method, budget):
                rows.append(_pair(block, reference, method, budget, values, commits(pd.concat([mine, other]))))
    for row, adjusted in zip(rows, holm([row["p"] for row in rows]), strict=True):
        known = not math.isnan(adjusted)
        row |= {"p_holm": adjusted, "holds_for_all": adjusted < 1 - CONFIDENCE if known else None}
    return rows


def advantage(block: Block, mine: pd.DataFrame, other: pd.DataFrame) -> pd.Series[float]:
    """By how much the metric of ``mine`` is better than that of ``other``, by seed; below zero where it is worse."""
    difference = values_by_seed(mine, block.column) - values_by_seed(other, block.column)
    return difference.dropna() * block.direction


def _pair(
    block: Block, reference: str, method: str, budget: float, values: pd.Series[float], code: str
) -> dict[str, Any]:
    """A row on the mean of such differences, unrounded."""
    found = estimate(values)
    return {
        **_protocol(block),
        "split": block.split,
        "budget": budget,
        "reference": reference,
        "method": method,
        "n": found.n,
        "advantage": found.mean,
        "half_width": found.half_width,
        "low": found.mean - found.half_width,
        "high": found.mean + found.half_width,
        "p": found.p,
        "excludes_zero": None if math.isnan(found.p) else found.excludes_zero,
        "better": int((values > 0).sum()),
        "commits": code,
    }


def _pair_text(block: Block, row: dict[str, Any]) -> dict[str, str]:
    """Such a row for reading."""
    return {
        "budget": f"{row['budget']:g}",
        "pair": f"{row['reference']} against {row['method']}",
        "seeds": str(row["n"]),
        f"better by, {block.step_label}": with_interval(row["advantage"], row["half_width"], block.scale, "+"),
        "better": f"{row['better']} of {row['n']}",
        "interval excludes zero": _verdict(row["excludes_zero"]),
        "holds for all together": _verdict(row["holds_for_all"]),
    }


def _paired_note(block: Block, rows: list[dict[str, Any]]) -> str:
    """How the table is to be read."""
    lower = "" if block.direction > 0 else f" (a lower {block.metric} is better)"
    intervals = sum(not math.isnan(row["p"]) for row in rows)
    read = (
        f"By how much the first is better than the second, seed by seed{lower}; below zero the second is better. A "
        "method without a budget is taken as it is. *Better*: seeds where the first is better."
    )
    if not intervals:
        return f"{read} Intervals need two seeds or more."
    return (
        f"{read} ± is the 95 % Student t interval of the mean, each for itself: of the {intervals} in this table one "
        "in twenty would exclude zero by chance if nothing differed. *Holds for all together*: by Holm's procedure on "
        "the same t tests, by which at most one in twenty such tables has a wrong *yes* in this column."
    )


def _verdict(value: bool | None) -> str:
    return NOTHING if value is None else "yes" if value else "no"


def requirements(blocks: list[Block], histories: pd.DataFrame) -> Table:
    """A row for each growing run: is the budget met, does the run commit, does it grow gradually?"""
    columns = [*_PROTOCOL, "method", "budget", "seed", "macs_share"]
    data, parts = [], []
    for block in blocks:
        methods = [method for method, family in block.families.items() if family == "growing"]
        growing = block.finished[block.finished["method"].isin(methods)].sort_values(["method", "budget", "seed"])
        rows = [_require(block, cell, run) for cell, run in by_epoch(growing, histories)]
        data += rows
        if rows:
            note = (
                f"Limits: MACs within {BUDGET_LIMIT} of the budget, {block.metric} of the last sampled network within "
                f"{COMMITMENT_LIMIT} of the returned one's (validation split), cost never changing by more than "
                f"{STEP_LIMIT} of the dense one's at once (where a method does not log that: within an epoch)."
            )
            parts.append(Part(block, [note], pd.DataFrame([_requirement_text(row) for row in rows])))
    frame = pd.DataFrame(data) if data else pd.DataFrame(columns=columns)
    return Table("requirements", "Requirements on growing runs", frame, parts)


def _require(block: Block, cell: pd.Series[Any], run: pd.DataFrame) -> dict[str, Any]:
    """One row of the requirements, unrounded; a check without its figure is missing, neither passed nor failed."""
    soft_minus_hard = cell["soft_val_metric"] - cell["val_metric"]
    largest = largest_step(run)
    return {
        **_protocol(block),
        "method": cell["method"],
        "budget": cell["budget"],
        "seed": int(cell["seed"]),
        "macs_share": cell["macs_share"],
        "off_budget": abs(cell["macs_share"] - cell["budget"]),
        "meets_budget": None if pd.isna(cell["meets_budget"]) else bool(cell["meets_budget"]),
        "soft_minus_hard": soft_minus_hard,
        "commits": _within(abs(soft_minus_hard), COMMITMENT_LIMIT),
        "largest_step": largest,
        "grows_gradually": _within(largest, STEP_LIMIT),
        "train_macs_share": cell["train_macs_share"],
    }


def largest_step(run: pd.DataFrame) -> float:
    """The largest change of a run's cost by one restructuring, as a share of the dense MACs; NaN where unknown.

    This is what the method logs as ``largest_step``. A method that does not log it is judged by the net change over
    whole epochs, the first one from nothing, as a seed costs next to nothing.
    """
    if "log_largest_step" in run and run["log_largest_step"].notna().any():
        return float(run["log_largest_step"].astype(float).max())
    return float(run["cost"].diff().fillna(run["cost"]).abs().max())


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


def _protocol(block: Block) -> dict[str, Any]:
    """The columns that say under which protocol a row was measured."""
    return {name: getattr(block, name) for name in _PROTOCOL}
