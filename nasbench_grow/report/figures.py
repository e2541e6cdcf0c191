"""The figures that compare methods, drawn from the records without a display."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nasbench_grow.report.block import Block, values_by_seed
from nasbench_grow.report.statistics import estimate
from nasbench_grow.report.style import LABEL_INCHES, Look, label_ends
from nasbench_grow.report.tables import advantage, named, pairs
from nasbench_grow.report.wording import MISSED

Looks = Mapping[str, Look]

_SEEDS = f"faint points are seeds, others their mean with the 95 % Student t interval (cut where it leaves the axes); \
{MISSED}: misses the budget"


@dataclass(frozen=True)
class Drawing:
    """A finished figure; ``name`` is the last part of its file's stem."""

    name: str
    caption: str
    figure: Figure


def draw(block: Block, looks: Looks, reference: str) -> list[Drawing]:
    """Every figure that the cells of a block allow."""
    drawings = [
        metrics(block, looks),
        *(trade_off(block, looks, *cost) for cost in _COSTS),
        advantages(block, looks, reference),
    ]
    return [drawing for drawing in drawings if drawing is not None]


@dataclass(frozen=True)
class _Line:
    """A row of dots: the values of a method by seed, as they are shown."""

    label: str
    look: Look
    values: pd.Series[float]


def metrics(block: Block, looks: Looks) -> Drawing | None:
    """The metric of every method: a panel for each budget, dense as a line."""
    budgets = block.budgets or [1.0]
    panels = [
        [
            _Line(
                named(block, method, budget),
                looks[method],
                values_by_seed(block.at(method, budget), block.column) * block.scale,
            )
            for method in block.methods
        ]
        for budget in budgets
    ]
    dense = estimate(values_by_seed(block.of("dense"), block.column) * block.scale).mean
    titles = [f"budget {budget:g}" for budget in budgets]
    figure = _dots(titles, panels, block.label(), line=dense)
    caption = f"The {block.label()} of each method: {_SEEDS}; the line is the mean of dense."
    return Drawing(f"{block.split}-by-method", caption, figure) if figure else None


def advantages(block: Block, looks: Looks, reference: str) -> Drawing | None:
    """How much better the reference is than each other method, seed by seed: a panel for each budget."""
    rows = pairs(block, reference)
    budgets = sorted({row["budget"] for row in rows}, reverse=True)
    others = [method for method in block.methods if any(row["method"] == method for row in rows)]
    kept = {(row["method"], row["budget"]) for row in rows}
    panels = [
        [
            _Line(
                method,
                looks[method],
                advantage(block, block.at(reference, budget), block.at(method, budget)) * block.scale
                if (method, budget) in kept
                else pd.Series(dtype=float),
            )
            for method in others
        ]
        for budget in budgets
    ]
    titles = [f"budget {budget:g}" for budget in budgets]
    figure = _dots(titles, panels, f"{reference} is better by,\n{block.step_label}", line=0.0)
    caption = (
        f"By how much {reference} is better than each other method, seed by seed: faint points are seeds, others "
        "their mean with the 95 % Student t interval, each for itself (cut where it leaves the axes)."
    )
    return Drawing("paired", caption, figure) if figure else None


def _dots(titles: list[str], panels: list[list[_Line]], axis: str, line: float) -> Figure | None:
    """A panel for each title with a row of dots for each line: seeds faint, mean and interval solid."""
    points = pd.concat([one.values for lines in panels for one in lines] or [pd.Series(dtype=float)])
    if points.empty:
        return None
    names = max(len(one.label) for lines in panels for one in lines)
    size = (0.4 + 0.075 * names + 2.6 * len(panels), 0.8 + 0.22 * max(3, len(panels[0])))
    figure = Figure(figsize=size, layout="constrained")
    spans: list[float] = []
    grid = figure.subplots(1, len(panels), squeeze=False, sharex=True)[0]
    for place, (axes, title, lines) in enumerate(zip(grid, titles, panels, strict=True)):
        for at, one in enumerate(lines):
            axes.plot(one.values, np.full(len(one.values), at), ".", color=one.look.colour, alpha=0.35, mew=0)
            mean = estimate(one.values)
            if mean.n:
                spans += _interval(axes, mean.mean, at, mean.half_width, one.look, across=True)
        labels = [one.label if place == 0 else "" for one in lines]
        axes.set_yticks(range(len(lines)), labels)
        for at, one in enumerate(lines):
            if place and one.label.endswith(MISSED):
                axes.annotate(
                    MISSED,
                    (0, at),
                    (-6, 0),
                    xycoords=("axes fraction", "data"),
                    textcoords="offset points",
                    va="center",
                    ha="right",
                )
        axes.set_ylim(len(lines) - 0.5, -0.5)
        axes.grid(True, axis="y", linestyle=":")
        axes.set_title(title, loc="left")
        axes.set_xlabel(axis)
        axes.axvline(line, color="#666666", linewidth=0.8, zorder=1)
    known = points if math.isnan(line) else pd.concat([points, pd.Series([line])])
    grid[0].set_xlim(_limits(known, spans))
    return figure


def _interval(axes: Axes, x: float, y: float, half_width: float, look: Look, *, across: bool) -> list[float]:
    """Draw a mean with its interval; returns the interval's ends."""
    known = not math.isnan(half_width)
    middle = x if across else y
    axes.errorbar(
        x,
        y,
        xerr=half_width if known and across else None,
        yerr=half_width if known and not across else None,
        **look.marks,
        markersize=5.5,
        markeredgewidth=0.9,
        elinewidth=0.9,
        ecolor=(look.colour, 0.7),
        capsize=2,
        zorder=3,
    )
    return [middle - half_width, middle + half_width] if known else []


_COSTS = (
    ("macs_share", "inference MACs (share of dense)", "inference-macs"),
    ("train_macs_share", "training MACs (share of dense)", "training-macs"),
    ("cpu_s", "CPU time of training (\N{MULTIPLICATION SIGN} dense)", "training-time"),
)


def trade_off(block: Block, looks: Looks, column: str, label: str, name: str) -> Drawing | None:
    """The metric against one cost, means over seeds: a line through each method's budgets."""
    lines = {method: _against(block, method, column) for method in block.methods}
    lines = {method: points for method, points in lines.items() if points}
    if not lines:
        return None
    height = max(3.4, 0.6 + LABEL_INCHES * len(lines))
    figure = Figure(figsize=(6.8, height), layout="constrained")
    axes = figure.subplots()
    spans: list[float] = []
    ends = []
    for method, points in lines.items():
        look = looks[method]
        xs, ys = [x for x, _, _ in points], [y for _, y, _ in points]
        axes.plot(xs, ys, color=look.colour, linestyle=look.line, linewidth=1, zorder=2)
        for x, y, half_width in points:
            spans += _interval(axes, x, y, half_width, look, across=False)
        missed = any(block.missed(method, budget) for name, budget in block.rows if name == method)
        ends.append((xs[-1], ys[-1], f"{method} {MISSED}" if missed else method, look))
    xs, ys = ([point[part] for points in lines.values() for point in points] for part in (0, 1))
    axes.set_xlim(0, 1.05 * max(xs))
    axes.set_ylim(_limits(pd.Series(ys), spans))
    axes.set_xlabel(label)
    axes.set_ylabel(block.label())
    label_ends(axes, ends, height - 0.6)
    caption = (
        f"The {block.label()} against {label}: means over seeds with the 95 % Student t interval (cut where "
        f"it leaves the axes), a line through the budgets of a method; {MISSED}: misses a budget."
    )
    return Drawing(f"{block.split}-vs-{name}", caption, figure)


def _against(block: Block, method: str, column: str) -> list[tuple[float, float, float]]:
    """For each budget of a method, by cost: mean cost, mean metric and half-width of its interval."""
    points = []
    for budget in sorted(budget for name, budget in block.rows if name == method):
        cells = block.of(method, budget)
        costs = block.ratios(method, budget, column) if column == "cpu_s" else cells[column].astype(float)
        metric = estimate(values_by_seed(cells, block.column) * block.scale)
        if metric.n and costs.notna().any():
            points.append((float(costs.mean()), metric.mean, metric.half_width))
    return sorted(points)


def _limits(points: pd.Series[float], spans: list[float]) -> tuple[float, float]:
    """Limits of an axis: all points, and of the intervals what does not squeeze them (two seeds give huge ones)."""
    low, high = float(points.min()), float(points.max())
    spread = (high - low) or 0.05 * abs(high) or 1.0
    bottom = min(low - 0.1 * spread, max(low - 0.5 * spread, min(spans, default=low) - 0.05 * spread))
    top = max(high + 0.1 * spread, min(high + 0.5 * spread, max(spans, default=high) + 0.05 * spread))
    return bottom, top
