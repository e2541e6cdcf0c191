"""The figures of the report, drawn from the records without a display."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from nasbench_grow.report.protocol import Block, cost_by_epoch, is_growing
from nasbench_grow.report.statistics import Estimate, estimate
from nasbench_grow.report.style import appearance, label_ends

Widths = Callable[[list[str]], pd.DataFrame]
"""Gives the widths of every layer and epoch of some runs, as :func:`nasbench_grow.report.frames.widths`."""


@dataclass(frozen=True)
class Drawing:
    """A finished figure; ``name`` is the last part of its file's stem."""

    name: str
    caption: str
    figure: Figure


def draw(block: Block, histories: pd.DataFrame, widths: Widths) -> list[Drawing]:
    """Every figure that the cells of a block and their histories allow."""
    mine = histories[histories["run_key"].isin(block.finished["run_key"])]
    drawings: list[Drawing | None] = [
        *(trade_off(block, *axis) for axis in _COSTS),
        curves(block, mine),
        schedule(block, mine),
        *(growth(block, method, widths) for method in block.methods if is_growing(method)),
    ]
    return [drawing for drawing in drawings if drawing is not None]


_COSTS = (
    ("macs_share", "inference MACs (share of dense)", "inference-macs"),
    ("train_macs_share", "training MACs (share of dense)", "training-macs"),
    ("wall_s", "training time (s)", "training-time"),
)

_SIDEWAYS_POINTS = 4.0


def trade_off(block: Block, column: str, label: str, name: str) -> Drawing | None:
    """Test metric against one cost, over all methods of a block."""
    if _with_cost(block, column).empty:
        return None
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    draw_trade_off(axes, block, column, label, apart=column == "macs_share")
    figure.legend(loc="outside right upper")
    caption = (
        f"Test {block.metric} against {label}: faint points are seeds, solid points their mean with the 95 % Student t "
        "interval (cut where it leaves the axes)."
    )
    if column == "macs_share":
        caption += " Methods of one budget are moved apart sideways by a few points."
    return Drawing(f"test-vs-{name}", caption, figure)


def draw_trade_off(
    axes: Axes, block: Block, column: str, label: str, *, apart: bool = False, seeds: bool = True
) -> None:
    """Test metric against one cost: seeds faint, means with their interval, a line through a method's budgets.

    ``apart`` moves the methods sideways by a few points, where those of one budget share their cost.
    """
    cells = _with_cost(block, column)
    looks = appearance(block.methods)
    methods = [method for method in block.methods if (cells["method"] == method).any()]
    spans: list[float] = []
    crowd = [method for method in methods if set(block.of(method)["budget"]) != {1.0}]
    inches = axes.figure.dpi_scale_trans
    for method in methods:
        colour, marker = looks[method]
        turn = crowd.index(method) - (len(crowd) - 1) / 2 if apart and method in crowd else 0.0
        move = axes.transData + ScaledTranslation(turn * _SIDEWAYS_POINTS / 72, 0, inches)
        own = cells[cells["method"] == method]
        x, y = own[column].astype(float), own["test_metric"] * block.scale
        if seeds:
            axes.plot(x, y, marker, color=colour, alpha=0.45, markersize=5, markeredgewidth=0, transform=move)
        at, means = _means(own, column, block.scale)
        spans += [end for one in means for end in (one.low, one.high) if not math.isnan(end)]
        axes.errorbar(
            at,
            [one.mean for one in means],
            yerr=[0.0 if math.isnan(one.half_width) else one.half_width for one in means],
            color=colour,
            marker=marker,
            markersize=7,
            markeredgecolor="white",
            linewidth=1.2,
            elinewidth=1,
            capsize=3,
            label=method,
            transform=move,
        )
    axes.set_xlim(0, 1.08 * float(cells[column].max()))
    axes.set_ylim(limits(cells["test_metric"] * block.scale, spans))
    axes.set_xlabel(label)
    axes.set_ylabel(f"test {block.metric_label}")


def _with_cost(block: Block, column: str) -> pd.DataFrame:
    """The finished cells with both the test metric and a cost."""
    return block.finished[block.finished[["test_metric", column]].notna().all(axis=1)]


def curves(block: Block, histories: pd.DataFrame) -> Drawing | None:
    """Training loss and validation metric by epoch, a row of panels for each budget, dense in each of them."""
    budgets = block.budgets or [1.0]
    shown = [(budget, _runs(block, budget)) for budget in budgets]
    if histories.empty:
        return None
    figure = Figure(figsize=(8.4, 0.6 + 2.6 * len(shown)), layout="constrained")
    panels = figure.subplots(len(shown), 2, squeeze=False, sharex=True, sharey="col")
    looks = appearance(block.methods)
    columns = (("loss", "training loss", 1.0), ("val_metric", f"val {block.metric_label}", block.scale))
    ends: dict[Axes, list[tuple[float, float, str, str]]] = {}
    for row, (budget, runs) in zip(panels, shown, strict=True):
        for axes, (column, label, scale) in zip(row, columns, strict=True):
            axes.set_title(f"budget {budget:g}", loc="left")
            axes.set_ylabel(label)
            _whole_epochs(axes, histories)
            ends[axes] = []
            for method in block.methods:
                by_epoch = (
                    histories[histories["run_key"].isin(runs.get(method, []))]
                    .groupby("epoch")[column]
                    .agg(["mean", "min", "max"])
                    .astype(float)
                    .dropna()
                ) * scale
                if by_epoch.empty:
                    continue
                colour = looks[method][0]
                marker = "o" if len(by_epoch) == 1 else ""
                axes.plot(by_epoch.index, by_epoch["mean"], color=colour, linewidth=1.5, marker=marker)
                axes.fill_between(
                    by_epoch.index, by_epoch["min"], by_epoch["max"], color=colour, alpha=0.15, linewidth=0
                )
                ends[axes].append((by_epoch.index[-1], by_epoch["mean"].iloc[-1], method, colour))
    for axes in panels[-1]:
        axes.set_xlabel("epoch")
    for axes, named in ends.items():
        label_ends(axes, named, height=2.0)
    caption = (
        f"Training loss and validation {block.metric} at the end of each epoch: mean over seeds, band from the lowest "
        "to the highest seed. The validation metric is that of the network as it stood then."
    )
    return Drawing("curves", caption, figure)


def schedule(block: Block, histories: pd.DataFrame) -> Drawing | None:
    """Cost by epoch of the growing methods: the target, what was sampled, and the budget."""
    methods = [method for method in block.methods if is_growing(method) and not block.of(method).empty]
    if histories.empty or not methods:
        return None
    figure = Figure(figsize=(0.9 + 4.0 * len(methods), 3.4), layout="constrained")
    panels = figure.subplots(1, len(methods), squeeze=False, sharey=True)[0]
    looks = appearance(block.methods)
    for axes, method in zip(panels, methods, strict=True):
        colour = looks[method][0]
        for budget in sorted(set(block.of(method)["budget"])):
            axes.axhline(budget, color="#999999", linewidth=0.8, zorder=1)
            axes.annotate(
                f"budget {budget:g}",
                xy=(1.0, budget),
                xycoords=("axes fraction", "data"),
                xytext=(3, 0),
                textcoords="offset points",
                va="center",
                color="#666666",
                fontsize=8,
                annotation_clip=False,
            )
        for _, cell in block.of(method).iterrows():
            cost = cost_by_epoch(cell, histories)
            axes.plot(cost.index, cost, color=colour, linewidth=1.3, alpha=0.7, marker=".", markersize=4)
            run = histories[histories["run_key"] == cell["run_key"]].sort_values("epoch")
            if "log_target" in run:
                axes.plot(run["epoch"], run["log_target"].astype(float), color="black", linewidth=1, linestyle=":")
        axes.plot([], [], color=colour, linewidth=1.3, label="sampled (one line a seed)")
        axes.plot([], [], color="black", linewidth=1, linestyle=":", label="target")
        axes.set_title(method, loc="left")
        axes.set_xlabel("epoch")
        axes.set_ylim(bottom=0)
        _whole_epochs(axes, histories)
        axes.legend(loc="upper left", fontsize=8)
    top = max(block.of(method)["budget"].max() for method in methods)
    panels[0].set_ylim(0, max(panels[0].get_ylim()[1], float(top) * 1.35))
    panels[0].set_ylabel("inference MACs (share of dense)")
    caption = "Cost of the growing network at the end of each epoch against its target and its budget."
    return Drawing("budget-schedule", caption, figure)


def growth(block: Block, method: str, widths: Widths) -> Drawing | None:
    """Depth, and the width of every layer as a heat map, by epoch: a column for each budget (its first seed)."""
    cells = block.of(method).sort_values("seed").drop_duplicates("budget").sort_values("budget")
    dense = list(block.of("dense")["run_key"][:1])
    seen = widths([*cells["run_key"], *dense])
    cells = cells[cells["run_key"].isin(seen["run_key"])]
    if cells.empty:
        return None
    full = seen[seen["run_key"].isin(dense)] if seen["run_key"].isin(dense).any() else seen
    full_width = full.groupby("layer")["width"].max()
    layers = forward_order(seen)
    height = max(2.4, 0.9 + 0.15 * len(layers))
    figure = Figure(figsize=(1.9 + 2.6 * len(cells), 0.9 + height), layout="constrained")
    sizes = {"height_ratios": [0.9, height]}
    depths, panels = figure.subplots(2, len(cells), squeeze=False, sharex="col", sharey="row", gridspec_kw=sizes)
    for depth, axes, (_, cell) in zip(depths, panels, cells.iterrows(), strict=True):
        run = seen[seen["run_key"] == cell["run_key"]]
        table = run.pivot(index="layer", columns="epoch", values="width").reindex(layers)
        shares = table.div(full_width.reindex(layers), axis=0).to_numpy(dtype=float)
        epochs = table.columns
        extent = (epochs.min() - 0.5, epochs.max() + 0.5, len(layers) - 0.5, -0.5)
        axes.set_facecolor("#D9D9D9")
        image = axes.imshow(
            np.ma.masked_invalid(shares),
            aspect="auto",
            interpolation="nearest",
            cmap="viridis",
            vmin=0,
            vmax=1,
            extent=extent,
        )
        axes.grid(False)
        depth.plot(epochs, table.notna().sum(), drawstyle="steps-mid")
        depth.set_ylim(0, 1.1 * len(layers))
        depth.set_title(f"budget {cell['budget']:g}, seed {cell['seed']}", loc="left")
        axes.set_xlabel("epoch")
        _whole_epochs(axes, run)
        axes.set_yticks(range(len(layers)), layers, fontsize=6.5)
    depths[0].set_ylabel("layers")
    figure.colorbar(image, ax=list(panels), label="width (share of full)", shrink=0.8)
    caption = (
        f"Growth under {method}: the number of layers, and the output channels of every layer as a share of the dense "
        "network's, from the input down; grey where a layer is not there."
    )
    return Drawing(f"growth-{method}", caption, figure)


def forward_order(widths: pd.DataFrame) -> list[str]:
    """Every layer in forward order, though some epochs lack some: each new layer goes after its predecessor."""
    order: list[str] = []
    for _, layers in widths.groupby(["run_key", "epoch"], sort=False)["layer"]:
        if set(layers) <= set(order):
            continue
        at = 0
        for layer in layers:
            if layer in order:
                at = order.index(layer) + 1
            else:
                order.insert(at, layer)
                at += 1
    return order


def _runs(block: Block, budget: float) -> dict[str, list[str]]:
    """For each method, its runs at a budget; a method that knows no budget is shown with each."""
    runs = {}
    for method in block.methods:
        own = block.of(method)
        at_budget = own[own["budget"] == budget]
        without_budget = set(own["budget"]) == {1.0}
        runs[method] = list((own if without_budget else at_budget)["run_key"])
    return runs


def _means(cells: pd.DataFrame, column: str, scale: float) -> tuple[list[float], list[Estimate]]:
    """For each budget, the mean of a cost and the estimate of the test metric."""
    groups = [group for _, group in cells.groupby("budget")]
    costs = [float(group[column].astype(float).mean()) for group in groups]
    return costs, [estimate(group["test_metric"] * scale) for group in groups]


def limits(points: pd.Series[float], spans: list[float]) -> tuple[float, float]:
    """Limits of an axis: all points, and of the intervals what does not squeeze them (two seeds give huge ones)."""
    low, high = float(points.min()), float(points.max())
    spread = (high - low) or 0.05 * abs(high) or 1.0
    bottom = min(low - 0.1 * spread, max(low - 0.5 * spread, min(spans, default=low) - 0.05 * spread))
    top = max(high + 0.1 * spread, min(high + 0.5 * spread, max(spans, default=high) + 0.05 * spread))
    return bottom, top


def _whole_epochs(axes: Axes, histories: pd.DataFrame) -> None:
    """Ticks at whole epochs only, over the epochs that there are."""
    last = int(histories["epoch"].max())
    step = max(1, math.ceil(last / 8))
    axes.set_xticks([1, *range(step if step > 1 else 2, last + 1, step)])
