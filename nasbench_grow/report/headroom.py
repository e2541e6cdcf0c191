"""The table of headroom: how far random architectures of one cost lie apart, and where each method stands among them.

The yardstick is the *captured share*: of the way from uniform width to the best architecture that was found at random,
how much a method goes. Architectures are compared by networks trained from scratch, so a method that trains while it
searches is represented by its ``retrain``. Always on the validation split, by which the best was chosen.
"""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from nasbench_grow.report.block import DRAWN, PROTOCOL, Block, values_by_seed
from nasbench_grow.report.statistics import estimate
from nasbench_grow.report.tables import Part, Table
from nasbench_grow.report.wording import MINUS, floats, number, with_interval

START = "uniform"
"""Where the way to the best begins."""
HOW_TO_READ = (
    f"*Captured share*: (a row {MINUS} {START}) / (the best draw {MINUS} {START}), the best by the seeds that did not "
    f"choose it, where there are any; a dash where {START} is not below it. Validation split."
)
COLUMNS = [*PROTOCOL, "budget", "row", "seeds", "val_metric", "half_width", "draws_below", "captured"]


def headroom(blocks: list[Block]) -> Table:
    """A row for the worst, the median and the best of the random architectures, and for each method at their budget."""
    data, parts = [], []
    for block in blocks:
        rows, notes = [], []
        for budget in block.budgets:
            draws = block.draws(budget)
            if len(draws):
                rows += _rows(block, budget, draws)
                notes.append(_note(block, budget, draws))
        data += rows
        if rows:
            texts = pd.DataFrame([_text(block, row) for row in rows])
            parts.append(Part(block, [*notes, HOW_TO_READ], texts))
    return Table("headroom", "Headroom", pd.DataFrame(data, columns=COLUMNS), parts)


def _rows(block: Block, budget: float, draws: pd.DataFrame) -> list[dict[str, Any]]:
    """Unrounded; the best draw is judged by the runs that did not choose it, where there are any."""
    seed = draws["seed"].value_counts().idxmax()
    first = draws[draws["seed"] == seed]
    once = pd.Series(list(floats(first["val_metric"])), index=first["method"]).dropna() * block.direction
    name = once.idxmax()
    again = draws[(draws["method"] == name) & (draws["seed"] != seed)]
    found = {
        "lowest draw": estimate([once.min()]),
        "median draw": estimate([once.median()]),
        f"best draw, {name}": estimate([once.max()]),
    }
    if len(again):
        found["best draw, other seeds"] = estimate(values_by_seed(again, "val_metric") * block.direction)
    best = found["best draw, other seeds" if len(again) else f"best draw, {name}"].mean
    methods = [method for method, at in block.rows if at == budget and not DRAWN.fullmatch(method)]
    for method in methods:
        found[method] = estimate(values_by_seed(block.of(method, budget), "val_metric") * block.direction)
    start = found[START].mean if START in found else math.nan
    return [
        {
            **{column: getattr(block, column) for column in PROTOCOL},
            "budget": budget,
            "row": row,
            "seeds": each.n,
            "val_metric": each.mean * block.direction,
            "half_width": each.half_width,
            "draws_below": float((once < each.mean).mean()),
            "captured": (each.mean - start) / (best - start) if best > start else math.nan,
        }
        for row, each in found.items()
        if each.n
    ]


def _text(block: Block, row: dict[str, Any]) -> dict[str, str]:
    return {
        "budget": f"{row['budget']:g}",
        "architecture": row["row"],
        "seeds": str(row["seeds"]),
        block.label("val"): with_interval(row["val_metric"], row["half_width"], block.scale),
        "better than, of the draws": f"{row['draws_below']:.0%}",
        "captured share": number(row["captured"], 2),
    }


def _note(block: Block, budget: float, draws: pd.DataFrame) -> str:
    once = draws.drop_duplicates("method")
    spread = pd.Series(list(floats(once["val_metric"]))).std() * block.scale
    different = len(once.drop_duplicates(["macs", "params"]))
    alike = "" if different == len(once) else f" {different} of them differ, as widths are rounded;"
    return (
        f"Budget {budget:g}: {len(once)} architectures drawn at random (the widths of all groups, and depth), each "
        f"trained once;{alike} standard deviation {spread:.2f}."
    )
