"""How the figures look: one colour and one marker for each method, everywhere."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from matplotlib.axes import Axes

# The palette of Okabe and Ito: told apart with every common kind of colour blindness.
_COLOURS = {
    "dense": "#000000",
    "uniform": "#0072B2",
    "random": "#E69F00",
    "l1": "#009E73",
    "grow": "#D55E00",
    "grow-paper": "#CC79A7",
    "retrain": "#56B4E9",
}
_MARKERS = {"dense": "s", "uniform": "^", "random": "v", "l1": "D", "grow": "o", "grow-paper": "P", "retrain": "X"}
_OTHER_COLOURS = ("#8C6D31", "#7B4FA3", "#6E6E6E")
_OTHER_MARKERS = ("<", ">", "*", "p", "h", "d")

RC: dict[Any, Any] = {
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.labelsize": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
}
"""Settings for ``matplotlib.rc_context``."""

_LABEL_POINTS = 10.0
"""Height of a line of labels."""


def appearance(methods: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each method: fixed for the built-in ones, in alphabetical turn for others."""
    others = sorted(set(methods).difference(_COLOURS))
    looks = {name: (_COLOURS[name], _MARKERS[name]) for name in _COLOURS}
    for turn, name in enumerate(others):
        looks[name] = (_OTHER_COLOURS[turn % len(_OTHER_COLOURS)], _OTHER_MARKERS[turn % len(_OTHER_MARKERS)])
    return looks


def label_ends(axes: Axes, ends: list[tuple[float, float, str, str]], height: float) -> None:
    """Write (x, y, text, colour) at the right of each line's end, moved apart vertically where they would overlap.

    ``height`` is about that of the axes in inches. Call after everything is drawn, as the limits must be final.
    """
    low, high = axes.get_ylim()
    gap = _LABEL_POINTS / (72 * height) * (high - low)
    placed = sorted(ends, key=lambda end: end[1])
    if not placed:
        return
    heights = [end[1] for end in placed]
    # Neighbours that overlap push each other apart, half the overlap each, inside the axes.
    for _ in range(100):
        for index in range(len(heights) - 1):
            overlap = max(0.0, gap - (heights[index + 1] - heights[index]))
            heights[index] -= overlap / 2
            heights[index + 1] += overlap / 2
        heights[0] = max(heights[0], low)
        heights[-1] = min(heights[-1], high)
    for (x, y, text, colour), at in zip(placed, heights, strict=True):
        axes.annotate(
            text,
            xy=(x, y),
            xytext=(1.02, at),
            textcoords=("axes fraction", "data"),
            color=colour,
            va="center",
            annotation_clip=False,
        )
