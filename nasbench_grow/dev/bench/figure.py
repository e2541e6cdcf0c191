"""The figure of the step times: does the time fall with the MACs?"""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nasbench_grow.base.files import write_whole
from nasbench_grow.dev.bench.record import Record
from nasbench_grow.dev.bench.step_time import against_dense
from nasbench_grow.report.style import RC

_LOOKS: dict[object, tuple[str, str]] = {
    ("uniform", 1): ("#CC79A7", "X"),
    ("uniform", 4): ("#E69F00", "v"),
    ("uniform", 8): ("#D55E00", "o"),
    ("uniform", 16): ("#0072B2", "^"),
    "random": ("#009E73", "D"),
    "internal": ("#56B4E9", "P"),
    "depth": ("#000000", "*"),
}
"""Colour and marker of a granularity or kind."""
_APART = 0.012
"""How far neighbouring series are moved apart sideways, so that none hides another."""


def draw(record: Record) -> Figure:
    """A panel for each backbone and memory layout: step time against MACs, both relative to the dense network."""
    networks = record["networks"]
    backbones = list(dict.fromkeys(network["backbone"] for network in networks))
    setups = list(dict.fromkeys(network["setup"] for network in networks))
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(3.4 * len(setups) + 1.6, 3.0 * len(backbones)), layout="constrained")
        panels = figure.subplots(len(backbones), len(setups), squeeze=False, sharex=True, sharey=True)
        for row, backbone in enumerate(backbones):
            for column, setup in enumerate(setups):
                axes = panels[row][column]
                _panel(axes, record, backbone, setup)
                axes.set_title(f"{backbone}, {setup}")
                if row == len(backbones) - 1:
                    axes.set_xlabel("MACs, share of dense")
                if column == 0:
                    axes.set_ylabel("step time, share of dense")
        panels[0][0].set_ylim(bottom=0)  # of all panels, and only now: it ends their growing with what they show
        found: dict[str, Artist] = {}
        for axes in panels.flat:
            handles, labels = axes.get_legend_handles_labels()
            found |= dict(zip(labels, handles, strict=True))
        figure.legend(list(found.values()), list(found), loc="outside right center")
    return figure


def save(figure: Figure, path: Path) -> None:
    """Writes a PNG file atomically."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    write_whole(path, buffer.getvalue())


def _panel(axes: Axes, record: Record, backbone: str, setup: str) -> None:
    axes.plot([0, 1], [0, 1], color="#999999", linewidth=1, label="time = MACs")
    for network in record["networks"]:
        if (network["backbone"], network["setup"]) == (backbone, setup) and network["kind"] != "dense":
            kind, granularity = network["kind"], network["granularity"]
            look = (kind, granularity) if kind == "uniform" else kind
            colour, marker = _LOOKS.get(look, ("#6E6E6E", "s"))
            place = list(_LOOKS).index(look) if look in _LOOKS else len(_LOOKS)
            found = against_dense(record, network, fastest=False)
            axes.errorbar(
                network["macs"] / network["dense_macs"] + _APART * (place - len(_LOOKS) // 2),
                found.median,
                yerr=[[found.median - found.low], [found.high - found.median]],
                color=colour,
                marker=marker,
                markersize=7,
                alpha=0.85,
                linestyle="none",
                elinewidth=1,
                label=f"uniform, granularity {granularity}" if kind == "uniform" else kind,
            )
    axes.set_xlim(0, 0.7)
