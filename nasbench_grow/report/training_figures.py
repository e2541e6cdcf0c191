"""The figures that show how training went, drawn from the histories without a display."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nasbench_grow.report.block import Block, by_epoch
from nasbench_grow.report.figures import Drawing, Looks
from nasbench_grow.report.style import LABEL_INCHES, Look, label_ends
from nasbench_grow.report.tables import named
from nasbench_grow.report.wording import MISSED

Structures = Callable[[list[str]], pd.DataFrame]
"""Gives the networks that trained in some runs, as :func:`nasbench_grow.report.frames.structures`."""

_TOGETHER = 10
"""So many methods share a panel of curves; more are drawn family by family."""


def draw(block: Block, looks: Looks, histories: pd.DataFrame, structures: Structures) -> list[Drawing]:
    """Every figure that the histories of a block's cells allow."""
    mine = histories[histories["run_key"].isin(block.finished["run_key"])]
    if mine.empty:
        return []
    growing = [name for name, family in block.families.items() if family == "growing" and not block.of(name).empty]
    grown = [growth(block, method, mine, structures) for method in growing]
    return [curves(block, looks, mine), *(drawing for drawing in grown if drawing is not None)]


def curves(block: Block, looks: Looks, histories: pd.DataFrame) -> Drawing:
    """Training loss and validation metric by epoch, a row of panels for each budget, and family where methods are many.

    Methods without a budget stand in each row of their family, dense in every row.
    """
    groups = {"": block.methods}
    if len(block.methods) > _TOGETHER:
        groups = {
            f", {family or 'other'}": [
                name for name in block.methods if block.families[name] == family or name == "dense"
            ]
            for family in dict.fromkeys(block.families.values())
        }
    shown = [(budget, *group) for budget in block.budgets or [1.0] for group in groups.items()]
    height = max(2.2, LABEL_INCHES * max(len(methods) for *_, methods in shown))
    figure = Figure(figsize=(10.5, len(shown) * (height + 0.5)), layout="constrained")
    panels = figure.subplots(len(shown), 2, squeeze=False, sharex=True, sharey="col")
    columns = (("loss", "training loss", 1.0), ("val_metric", block.label("val"), block.scale))
    ends: dict[Axes, list[tuple[float, float, str, Look]]] = {}
    for row, (budget, group, methods) in zip(panels, shown, strict=True):
        for axes, (column, label, scale) in zip(row, columns, strict=True):
            axes.set_title(f"budget {budget:g}{group}", loc="left")
            axes.set_ylabel(label)
            axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
            ends[axes] = []
            for place, method in enumerate(methods):
                runs = histories[histories["run_key"].isin(block.at(method, budget)["run_key"])]
                found = runs.groupby("epoch")[column].agg(["mean", "min", "max"]).astype(float).dropna() * scale
                if not found.empty:
                    _curve(axes, found, looks[method], place)
                    ends[axes].append(
                        (found.index[-1], found["mean"].iloc[-1], named(block, method, budget), looks[method])
                    )
    for axes in panels[-1]:
        axes.set_xlabel("epoch")
    for axes, placed in ends.items():
        label_ends(axes, placed, height)
    caption = (
        f"Training loss and validation {block.metric} at the end of each epoch: mean over seeds, band from the lowest "
        f"to the highest seed; {MISSED}: misses the budget. The validation metric is that of the network as it stood."
    )
    return Drawing("curves", caption, figure)


def _curve(axes: Axes, found: pd.DataFrame, look: Look, place: int) -> None:
    """The mean with its marker now and then, at other epochs for each place, and the band."""
    every = max(1, len(found) // 4)
    axes.plot(
        found.index,
        found["mean"],
        **look.marks,
        linestyle=look.line,
        linewidth=1.2,
        markersize=4,
        markevery=(place % every, every),
    )
    axes.fill_between(found.index, found["min"], found["max"], color=look.colour, alpha=0.08, linewidth=0)


def growth(
    block: Block,
    method: str,
    histories: pd.DataFrame,
    structures: Structures,
    dense_widths: Mapping[str, int] | None = None,
) -> Drawing | None:
    """The cost against its target, and the width of every layer as a heat map, over the run until some time after the
    structure changed last: a column for each budget (its first seed).

    ``dense_widths`` are those of the dense network; None: of the block's dense run or, without one, the largest seen.
    """
    cells = block.of(method).sort_values("seed").drop_duplicates("budget").sort_values("budget")
    seen = structures([*cells["run_key"], *block.of("dense")["run_key"][:1]])
    cells = cells[cells["run_key"].isin(seen["run_key"])]
    if cells.empty:
        return None
    full = pd.Series(dense_widths) if dense_widths else full_widths(seen, list(block.of("dense")["run_key"]), "begin")
    height = max(2.4, 0.9 + 0.15 * len(full))
    figure = Figure(figsize=(2.2 + 2.6 * len(cells), 1.3 + height), layout="constrained")
    sizes = {"height_ratios": [1.3, height]}
    costs, panels = figure.subplots(2, len(cells), squeeze=False, sharex="col", sharey="row", gridspec_kw=sizes)
    for axes, panel, (cell, run) in zip(costs, panels, by_epoch(cells, histories), strict=True):
        trained = seen[seen["run_key"] == cell["run_key"]]
        table = trained.pivot(index="layer", columns="begin", values="width").reindex(full.index)
        edges = [*table.columns, trained["end"].max()]
        shares = np.ma.masked_invalid(table.div(full, axis=0).to_numpy(dtype=float))
        panel.set_facecolor("#D9D9D9")
        image = panel.pcolormesh(edges, np.arange(len(full) + 1) - 0.5, shares, vmin=0, vmax=1, rasterized=True)
        panel.grid(False)
        panel.set_xlim(0, _shown(edges, table))
        panel.set_ylim(len(full) - 0.5, -0.5)
        panel.set_xlabel("epochs")
        panel.xaxis.set_major_locator(MaxNLocator(6))
        panel.set_yticks(range(len(full)), list(full.index), fontsize=6.5)
        axes.axhline(cell["budget"], color="#999999", linewidth=0.8)
        _cost(axes, cell, run, trained)
        mark = f" {MISSED}" if block.missed(method, cell["budget"]) else ""
        axes.set_title(f"budget {cell['budget']:g}{mark}, seed {cell['seed']}", loc="left")
    costs[0].set_ylim(0, 1.15 * costs[0].get_ylim()[1])
    costs[0].set_ylabel("MACs (share)")
    figure.colorbar(image, ax=list(panels), label="width (share of full)", shrink=0.8)
    caption = (
        f"Growth under {method}, until some time after the structure changed last. Above: MACs of the network (share "
        "of the dense one), its target at the end of each epoch (dotted) and its budget (grey). Below: the output "
        "channels of every layer as a share of the dense network's, from the input down; grey where a layer is not "
        "there."
    )
    return Drawing(re.sub(r"[^A-Za-z0-9_.-]+", "_", f"growth-{method}").strip("_"), caption, figure)


def _cost(axes: Axes, cell: pd.Series[Any], run: pd.DataFrame, trained: pd.DataFrame) -> None:
    """The cost of each network that trained; by epoch alone where it is counted in seconds, which no network knows."""
    macs = trained.drop_duplicates("begin").set_index("begin")["macs"].astype("Float64")
    costs = (macs / cell["dense_macs"]).astype(float)
    if np.isclose(costs.iloc[-1], run["cost"].iloc[-1], atol=0.005):
        axes.stairs(costs, [*costs.index, trained["end"].max()], baseline=None)
    else:
        axes.plot(run.index, run["cost"], marker=".")
    if "log_target" in run:
        axes.plot(run.index, run["log_target"].astype(float), color="black", linewidth=1, linestyle=":")


def _shown(edges: list[float], table: pd.DataFrame) -> float:
    """Up to which epoch a run is drawn: all, or where its structure stays, half as long again as until then."""
    changes = table.ne(table.shift(axis=1)) & ~(table.isna() & table.shift(axis=1).isna())
    last = max(begin for begin, changed in zip(edges, changes.any(), strict=False) if changed)
    return min(edges[-1], max(1.0, 1.5 * last))


def full_widths(seen: pd.DataFrame, dense: list[str], each: str = "epoch") -> pd.Series[Any]:
    """The width that each layer has in the dense runs (in all, where they are not there), in forward order; ``each`` is
    the column that tells the networks of a run from one another."""
    full = seen[seen["run_key"].isin(dense)] if seen["run_key"].isin(dense).any() else seen
    return full.groupby("layer")["width"].max().reindex(forward_order(seen, each))


def forward_order(widths: pd.DataFrame, each: str = "epoch") -> list[str]:
    """Every layer in forward order, though some networks lack some: each new layer goes after its predecessor.

    Networks with more layers come first, as they tell more of the order.
    """
    order: list[str] = []
    networks = [layers for _, layers in widths.groupby(["run_key", each], sort=False)["layer"]]
    for layers in sorted(networks, key=len, reverse=True):
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
