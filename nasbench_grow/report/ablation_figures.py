"""The figures of the questions about growing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nasbench_grow.contract.settings import split
from nasbench_grow.report.ablation_tables import BASELINE
from nasbench_grow.report.figures import draw_trade_off, limits
from nasbench_grow.report.statistics import estimate
from nasbench_grow.report.studies import Study
from nasbench_grow.report.style import appearance
from nasbench_grow.report.wording import MINUS

_SEED_COLOUR = "#9A9A9A"
_ROW_INCHES = 0.34


@dataclass(frozen=True)
class Line:
    """A row of a panel: some values by seed, as shown, with the method that they are about."""

    label: str
    method: str
    values: pd.Series[float]
    faint: bool = False
    """Drawn hollow: a variant beside its reference."""


@dataclass(frozen=True)
class Panel:
    """A heading, what is measured, and the rows from top to bottom."""

    title: str
    axis: str
    lines: list[Line]


def variants(studied: Sequence[Study]) -> Figure | None:
    """A panel for each budget: every variant's paired difference to uniform, or to the reference without uniform."""
    return _dots([(study, _variant_panels(study)) for study in studied], from_zero=True)


def couples(studied: Sequence[Study], pairs: Sequence[tuple[str, str]]) -> Figure | None:
    """A panel for each budget: the paired difference of each pair of methods."""
    rows = []
    for study in studied:
        panels = []
        for budget in study.budgets:
            lines = [
                Line(f"{method} {MINUS} {other}", other, study.differences(method, other, budget) * study.own.scale)
                for method, other in pairs
            ]
            panels.append(Panel(f"budget {budget:g}", f"difference in test {study.own.metric}{_points(study)}", lines))
        rows.append((study, panels))
    return _dots(rows, from_zero=True)


def stability(studied: Sequence[Study]) -> Figure | None:
    """A strip of seeds for each method and budget."""
    rows = []
    for study in studied:
        lines = [
            Line(
                method if budget == 1 else f"{method}, budget {budget:g}",
                method,
                study.own.of(method, budget).set_index("seed")["test_metric"].dropna() * study.own.scale,
            )
            for method, budget in study.rows
        ]
        rows.append((study, [Panel("", f"test {study.own.metric_label}", lines)]))
    return _dots(rows, from_zero=False)


def price(studied: Sequence[Study]) -> Figure | None:
    """Test metric against training MACs and against training time: a line for each method over its budgets."""
    studied = [study for study in studied if not study.own.finished["test_metric"].dropna().empty]
    if not studied:
        return None
    figure = Figure(figsize=(8.6, 0.5 + 3.5 * len(studied)), layout="constrained")
    panels = figure.subplots(len(studied), 2, squeeze=False, sharey="row")
    for study, (left, right) in zip(studied, panels, strict=True):
        draw_trade_off(left, study.own, "train_macs_share", "training MACs (share of dense)", apart=True, seeds=False)
        draw_trade_off(right, study.own, "wall_s", "training time (s)", seeds=False)
        right.set_ylabel("")
        if len(studied) > 1:
            left.set_title(f"{study.own.task}, {study.own.backbone}", loc="left")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper")
    return figure


def _variant_panels(study: Study) -> list[Panel]:
    """Every variant against uniform, or against the reference unless there is uniform at every budget."""
    reference = study.question.reference
    with_uniform = [
        any(not study.differences(method, BASELINE, budget).empty for method in study.methods)
        for budget in study.budgets
    ]
    other = BASELINE if all(with_uniform) else reference
    shown = [name for name in study.methods if name != other and any((name, at) in study.rows for at in study.budgets)]
    return [
        Panel(
            f"budget {budget:g}",
            f"test {study.own.metric} {MINUS} {other}{_points(study)}",
            [
                Line(name, name, study.differences(name, other, budget) * study.own.scale, faint=name != reference)
                for name in shown
            ],
        )
        for budget in study.budgets
    ]


def _dots(rows: Sequence[tuple[Study, list[Panel]]], *, from_zero: bool) -> Figure | None:
    """Seeds grey, their mean and 95 % interval in colour: a row of panels for each protocol."""
    rows = [(study, panels) for study, panels in rows if any(line.values.size for one in panels for line in one.lines)]
    if not rows:
        return None
    lines = [line for _, panels in rows for panel in panels for line in panel.lines]
    columns = max(len(panels) for _, panels in rows)
    names = max(len(line.label) for line in lines)
    heights = [0.75 + _ROW_INCHES * max(2, len(panels[0].lines)) for _, panels in rows]
    figure = Figure(figsize=(0.4 + 0.085 * names + max(2.4 * columns, 4.2), 0.3 + sum(heights)), layout="constrained")
    grid = figure.subplots(
        len(rows), columns, squeeze=False, sharex=True, sharey="row", gridspec_kw={"height_ratios": heights}
    )
    spans: list[float] = []
    for (study, panels), row in zip(rows, grid, strict=True):
        for axes, panel in zip(row, panels, strict=False):
            spans += _draw_panel(axes, panel, from_zero=from_zero)
            axes.tick_params(labelbottom=True)
        for axes in row[len(panels) :]:
            axes.set_visible(False)
        if len(rows) > 1:
            row[0].set_title(f"{study.own.task}, {study.own.backbone}\n{panels[0].title}".strip(), loc="left")
    points = pd.concat([line.values for line in lines] + [pd.Series([0.0])] * from_zero)
    grid[0][0].set_xlim(limits(points, spans))
    return figure


def _draw_panel(axes: Axes, panel: Panel, *, from_zero: bool) -> list[float]:
    """Draw the lines of a panel; returns the ends of their intervals."""
    spans: list[float] = []
    looks = appearance(split(line.method)[0] for line in panel.lines)
    if from_zero:
        axes.axvline(0, color="#666666", linewidth=0.8, zorder=1)
    for at, line in enumerate(panel.lines):
        colour, marker = looks[split(line.method)[0]]
        axes.plot(
            line.values, at + _scatter(len(line.values)), "o", color=_SEED_COLOUR, markersize=3.5, alpha=0.6, mew=0
        )
        mean = estimate(line.values)
        if not mean.n:
            continue
        known = not math.isnan(mean.half_width)
        spans += [mean.low, mean.high] if known else []
        axes.errorbar(
            mean.mean,
            at,
            xerr=mean.half_width if known else None,
            color=colour,
            marker=marker,
            markersize=6.5,
            markerfacecolor="white" if line.faint else colour,
            markeredgecolor=colour if line.faint else "white",
            elinewidth=1.4,
            capsize=3,
            zorder=3,
        )
    axes.set_yticks(range(len(panel.lines)), [line.label for line in panel.lines])
    axes.set_ylim(len(panel.lines) - 0.5, -0.5)
    axes.grid(False, axis="y")
    axes.set_title(panel.title, loc="left")
    axes.set_xlabel(panel.axis)
    return spans


def _scatter(n: int) -> np.ndarray:
    """Small offsets, the same every time, that keep the seeds of a line from hiding each other."""
    return 0.13 * (2 * (np.arange(n) % 2) - 1)


def _points(study: Study) -> str:
    """The unit of a difference, as the end of a label."""
    return " (points)" if study.own.in_percent else ""
