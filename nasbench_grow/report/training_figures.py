"""The figures that show how training went, drawn from the histories without a display."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nasbench_grow.report.block import Block, by_epoch
from nasbench_grow.report.figures import Drawing, Looks
from nasbench_grow.report.style import LABEL_INCHES, Look, label_ends
from nasbench_grow.report.tables import named
from nasbench_grow.report.wording import MISSED

Widths = Callable[[list[str]], pd.DataFrame]
"""Gives the widths of every layer and epoch of some runs, as :func:`nasbench_grow.report.frames.widths`."""


def draw(block: Block, looks: Looks, histories: pd.DataFrame, widths: Widths) -> list[Drawing]:
    """Every figure that the histories of a block's cells allow."""
    mine = histories[histories["run_key"].isin(block.finished["run_key"])]
    if mine.empty:
        return []
    growing = [name for name, family in block.families.items() if family == "growing" and not block.of(name).empty]
    grown = [growth(block, method, widths) for method in growing]
    return [
        curves(block, looks, mine),
        *(schedule(block, looks, method, mine) for method in growing),
        *(drawing for drawing in grown if drawing is not None),
    ]


def curves(block: Block, looks: Looks, histories: pd.DataFrame) -> Drawing:
    """Training loss and validation metric by epoch, a row of panels for each budget, methods without one in each."""
    budgets = block.budgets or [1.0]
    height = max(2.4, LABEL_INCHES * len(block.methods))
    figure = Figure(figsize=(10.5, len(budgets) * (height + 0.5)), layout="constrained")
    panels = figure.subplots(len(budgets), 2, squeeze=False, sharex=True, sharey="col")
    columns = (("loss", "training loss", 1.0), ("val_metric", block.label("val"), block.scale))
    ends: dict[Axes, list[tuple[float, float, str, Look]]] = {}
    for row, budget in zip(panels, budgets, strict=True):
        for axes, (column, label, scale) in zip(row, columns, strict=True):
            axes.set_title(f"budget {budget:g}", loc="left")
            axes.set_ylabel(label)
            _whole_epochs(axes, histories)
            ends[axes] = []
            for place, method in enumerate(block.methods):
                runs = histories[histories["run_key"].isin(block.at(method, budget)["run_key"])]
                found = runs.groupby("epoch")[column].agg(["mean", "min", "max"]).astype(float).dropna() * scale
                if found.empty:
                    continue
                look, every = looks[method], max(1, len(found) // 4)
                axes.plot(
                    found.index,
                    found["mean"],
                    color=look.colour,
                    linestyle=look.line,
                    linewidth=1.2,
                    marker=look.marker,
                    markerfacecolor=look.face,
                    markersize=4,
                    markevery=(place % every, every),
                )
                axes.fill_between(found.index, found["min"], found["max"], color=look.colour, alpha=0.08, linewidth=0)
                ends[axes].append((found.index[-1], found["mean"].iloc[-1], named(block, method, budget), look))
    for axes in panels[-1]:
        axes.set_xlabel("epoch")
    for axes, placed in ends.items():
        label_ends(axes, placed, height)
    caption = (
        f"Training loss and validation {block.metric} at the end of each epoch: mean over seeds, band from the lowest "
        "to the highest seed. The validation metric is that of the network as it stood then."
    )
    return Drawing("curves", caption, figure)


def schedule(block: Block, looks: Looks, method: str, histories: pd.DataFrame) -> Drawing:
    """Cost of a growing method by epoch: the target, what was sampled, and the budget."""
    figure = Figure(figsize=(5.6, 3.2), layout="constrained")
    axes = figure.subplots()
    colour = looks[method].colour
    cells = block.of(method)
    for budget in sorted(set(cells["budget"])):
        axes.axhline(budget, color="#999999", linewidth=0.8, zorder=1)
        mark = f" {MISSED}" if block.missed(method, budget) else ""
        axes.annotate(
            f"budget {budget:g}{mark}",
            xy=(1.0, budget),
            xycoords=("axes fraction", "data"),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            color="#666666",
            fontsize=8,
            annotation_clip=False,
        )
    for _, run in by_epoch(cells, histories):
        axes.plot(run.index, run["cost"], color=colour, linewidth=1.3, alpha=0.7, marker=".", markersize=4)
        if "log_target" in run:
            axes.plot(run.index, run["log_target"].astype(float), color="black", linewidth=1, linestyle=":")
    axes.plot([], [], color=colour, linewidth=1.3, label="sampled (one line a seed)")
    axes.plot([], [], color="black", linewidth=1, linestyle=":", label="target")
    axes.set_title(method, loc="left")
    axes.set_xlabel("epoch")
    axes.set_ylabel("inference MACs (share of dense)")
    axes.set_ylim(0, max(axes.get_ylim()[1], float(cells["budget"].max()) * 1.35))
    _whole_epochs(axes, histories)
    axes.legend(loc="upper left", fontsize=8)
    caption = f"Cost of the network that {method} grows, at the end of each epoch, against its target and its budget."
    return Drawing(_file(f"budget-schedule-{method}"), caption, figure)


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
        mark = f" {MISSED}" if block.missed(method, cell["budget"]) else ""
        depth.set_title(f"budget {cell['budget']:g}, seed {cell['seed']}{mark}", loc="left")
        axes.set_xlabel("epoch")
        _whole_epochs(axes, run)
        axes.set_yticks(range(len(layers)), layers, fontsize=6.5)
    depths[0].set_ylabel("layers")
    figure.colorbar(image, ax=list(panels), label="width (share of full)", shrink=0.8)
    caption = (
        f"Growth under {method}: the number of layers, and the output channels of every layer as a share of the dense "
        "network's, from the input down; grey where a layer is not there."
    )
    return Drawing(_file(f"growth-{method}"), caption, figure)


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


def _whole_epochs(axes: Axes, histories: pd.DataFrame) -> None:
    """Ticks at whole epochs only, over the epochs that there are."""
    last = int(histories["epoch"].max())
    step = max(1, math.ceil(last / 8))
    axes.set_xticks([1, *range(step if step > 1 else 2, last + 1, step)])


def _file(name: str) -> str:
    """A name without the signs that files should not have."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", name).strip("_")
