"""The page for a browser: one file that holds its data, its code and plotly, and needs no network."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from importlib.resources import files
from typing import Any

import pandas as pd

from nasbench_grow.report.block import Block, by_epoch
from nasbench_grow.report.figures import Looks
from nasbench_grow.report.style import Look
from nasbench_grow.report.tables import Part, Table
from nasbench_grow.report.training_figures import full_widths
from nasbench_grow.report.wording import floats

COSTS = {
    "macs_share": "inference MACs (share of dense)",
    "train_macs_share": "training MACs, all that the method took (share of dense)",
    "wall_s": "training time (s)",
    "params": "parameters",
}
"""What the metric can be drawn against, by column of the comparison."""

Widths = Callable[[list[str]], pd.DataFrame]
"""Gives the widths of every layer and epoch of some runs, as :func:`nasbench_grow.report.frames.widths`."""

_SYMBOLS = {
    **{"o": "circle", "s": "square", "D": "diamond", "^": "triangle-up", "v": "triangle-down", "P": "cross"},
    **{"<": "triangle-left", ">": "triangle-right", "X": "x", "*": "star", "p": "pentagon", "d": "diamond-tall"},
}
"""What plotly calls the markers of matplotlib."""
_FILLS = {"full": "", "none": "-open", "left": "-dot", "bottom": "-open-dot"}


def page(folder: str, comparison: Table, looks: Looks, histories: pd.DataFrame, widths: Widths) -> str:
    """The page as text.

    Args:
        folder: the results folder's name.
        comparison: the table of that name: all rows and notes come from it.
        looks: how each method is drawn.
        histories: the epochs of all cells.
        widths: gives the widths of layers by epoch of some runs.
    """
    from plotly.offline import get_plotlyjs

    data = {
        "costs": COSTS,
        "blocks": [
            _block(part, rows, looks, histories, widths)
            for part, rows in zip(comparison.parts, _by_part(comparison), strict=True)
        ],
    }
    parts = {
        "folder": _escape(folder),
        "css": _file("report.css"),
        "js": _file("report.js"),
        "plotly": get_plotlyjs(),
        "data": json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
    }
    text = _file("report.html")
    for name, content in parts.items():
        before, after = text.split(f"<!--{name}-->")
        text = before + content + after
    return text


def _by_part(table: Table) -> Iterator[list[dict[str, Any]]]:
    """The unrounded rows of each part of the comparison, which shows all but numbered draws."""
    at = 0
    for part in table.parts:
        every = table.data.iloc[at : at + len(part.block.rows)]
        at += len(every)
        shown = set(part.block.without_draws().rows)
        rows: list[dict[str, Any]] = [dict(row) for _, row in every.iterrows()]
        yield [row for row in rows if (row["method"], row["budget"]) in shown]


def _block(
    part: Part, rows: list[dict[str, Any]], looks: Looks, histories: pd.DataFrame, widths: Widths
) -> dict[str, Any]:
    """One comparison: its table, what is drawn of each row, and how its cells grew."""
    block = part.block
    texts = part.rows.to_numpy().tolist()
    errors = [block.label(split) for split in ("val", "test")] if block.direction < 0 else []
    return {
        "name": block.name,
        "title": block.title,
        "task": block.task,
        "backbone": block.backbone,
        "protocol": block.title.removeprefix(f"{block.task}, {block.backbone}, "),
        "metric": block.label(),
        "lower": block.direction < 0,
        "scale": block.scale,
        "heads": list(part.rows.columns),
        "small_first": ["budget", "method", *errors],
        "rows": [
            {
                **{name: row[name] for name in ("method", "budget", "family", "pareto")},
                "missed": row["missed_budget"] > 0,
                "texts": text,
                "metric": _number(row[block.column] * block.scale),
                "half_width": _number(row[f"{block.column}_half_width"] * block.scale),
                "costs": {name: _number(row[name]) for name in COSTS},
            }
            for row, text in zip(rows, texts, strict=True)
        ],
        "looks": {method: _look(looks[method]) for method in block.methods},
        "notes": [*part.notes, block.caption],
        **_growth(block, histories, widths),
    }


def _growth(block: Block, histories: pd.DataFrame, widths: Widths) -> dict[str, Any]:
    """How the finished cells came to be: cost, metric and widths by epoch.

    Widths stand only in the epochs in which one of them is another than before, as [place of the epoch, widths].
    """
    cells = block.without_draws().finished
    seen = widths(list(cells["run_key"]))
    cells = cells[cells["run_key"].isin(seen["run_key"])]
    full = full_widths(seen, list(block.of("dense")["run_key"])) if len(seen) else pd.Series(dtype=float)
    runs = []
    for cell, run in by_epoch(cells, histories):
        mine = seen[seen["run_key"] == cell["run_key"]]
        table = mine.pivot(index="epoch", columns="layer", values="width").reindex(run.index, columns=full.index)
        changes: list[tuple[int, list[float | None]]] = []
        for place, row in enumerate(table.to_numpy(dtype=float).tolist()):
            found = [_number(width) for width in row]
            if not changes or changes[-1][1] != found:
                changes.append((place, found))
        target = run["log_target"] if "log_target" in run else run["cost"] * math.nan
        runs.append(
            {
                **{"method": cell["method"], "budget": float(cell["budget"]), "seed": int(cell["seed"])},
                "epochs": [int(epoch) for epoch in run.index],
                "cost": _numbers(run["cost"]),
                "target": _numbers(target),
                "metric": _numbers(run["val_metric"].astype(float) * block.scale),
                "widths": changes,
            }
        )
    return {"layers": list(full.index), "full": _numbers(full), "runs": runs, "curve": block.label("val")}


def _look(look: Look) -> dict[str, str]:
    return {"colour": look.colour, "symbol": _SYMBOLS[look.marker] + _FILLS[look.fill]}


def _numbers(column: pd.Series[Any]) -> list[float | None]:
    return [_number(value) for value in floats(column.astype(float))]


def _number(value: float) -> float | None:
    """For JSON: short, null where it is missing or infinite."""
    value = float(value)
    if not math.isfinite(value):
        return None
    return int(value) if value == int(value) else float(f"{value:.6g}")


def _file(name: str) -> str:
    return (files("nasbench_grow.report") / "page" / name).read_text(encoding="utf-8")


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")
