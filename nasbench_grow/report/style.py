"""How the figures look: a colour, a marker and a line for each method, told apart in black and white as well."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes

_SHADES = {
    "control": ("#000000", "#6E6E6E", "#3F3F3F", "#8F8F8F"),
    "pruning": ("#08519C", "#4292C6", "#2171B5", "#1AA0A8"),
    "growing": ("#B2300A", "#F16913", "#D94801", "#C08A00"),
    "search": ("#00592B", "#41AB5D", "#238B45", "#7FA31A"),
    "": ("#54278F", "#9E5CB5", "#7A3FA0", "#C51B7D"),
}
"""The colours of each family, of one hue; the last is for methods of no known family."""

_MARKERS = "osD^vP<>X*pd"
_FILLS = ("full", "none", "left", "bottom")
_LINES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1, 1.5)), (0, (3, 1, 1, 1, 1, 1)))
_FIRST = {"dense": 1, "grow": 0, "l1": 2, "random": 4, "retrain": 8, "uniform": 3}
"""The markers of the methods that stand in most figures."""
_LEADS = ("dense", "grow")
"""Drawn by unbroken lines in the first colour of their family."""

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

LABEL_INCHES = 0.15
"""Height of a line of labels."""


@dataclass(frozen=True)
class Look:
    """How a method is drawn: in points, and in lines."""

    colour: str
    marker: str
    fill: str
    line: Any

    @property
    def marks(self) -> dict[str, Any]:
        """The arguments for matplotlib that draw its points."""
        return {
            "color": self.colour,
            "marker": self.marker,
            "fillstyle": "full" if self.fill == "none" else self.fill,
            "markerfacecolor": "white" if self.fill == "none" else self.colour,
            "markerfacecoloralt": "white",
        }


def looks(families: Mapping[str, str]) -> dict[str, Look]:
    """The look of each method, given its family: the hue tells the family, marker and filling the method.

    A method's name decides its look, so that it is the same in every figure; where two methods of a report would share
    a marker, the later one in the alphabet takes the next free one. There are 48.
    """
    found: dict[str, Look] = {}
    taken: set[int] = set()
    count = len(_MARKERS) * len(_FILLS)
    for method in sorted(families, key=lambda name: (name not in _FIRST, name)):
        wanted = _FIRST.get(method, int(hashlib.sha256(method.encode()).hexdigest(), 16) % count)
        slot = next((one % count for one in range(wanted, wanted + count) if one % count not in taken), wanted)
        taken.add(slot)
        shades = _SHADES.get(families[method], _SHADES[""])
        fill, marker = divmod(slot, len(_MARKERS))
        found[method] = Look(
            colour=shades[slot % len(shades) if method not in _LEADS else 0],
            marker=_MARKERS[marker],
            fill=_FILLS[fill],
            line=_LINES[slot % len(_LINES) if method not in _LEADS else 0],
        )
    return found


def label_ends(axes: Axes, ends: list[tuple[float, float, str, Look]], height: float) -> None:
    """Name (x, y, name, look) at the right of the axes, by height, apart from each other, with a thin line from (x, y).

    ``height`` is about that of the axes in inches. Call after everything is drawn, as the limits must be final.
    """
    if not ends:
        return
    low, high = axes.get_ylim()
    gap = LABEL_INCHES / height * (high - low)
    placed = sorted(ends, key=lambda end: (end[1], end[2]))
    heights = _apart([min(max(end[1], low), high) for end in placed], gap, low, high)
    across = axes.get_yaxis_transform()
    left, right = axes.get_xlim()
    for (x, y, text, look), at in zip(placed, heights, strict=True):
        level = min(max(y, low), high)
        bends = [(x - left) / (right - left), 1.0, 1.05, 1.07], [level, level, at, at]
        outside: dict[str, Any] = {"transform": across, "clip_on": False}
        axes.plot(*bends, color=look.colour, linewidth=0.5, alpha=0.4, zorder=1, **outside)
        axes.plot([1.09], [at], linestyle="", markersize=4.5, **look.marks, **outside)
        axes.annotate(
            text, (1.11, at), xycoords=across, color=look.colour, va="center", fontsize=8, annotation_clip=False
        )


def _apart(heights: list[float], gap: float, low: float, high: float) -> list[float]:
    """The sorted heights moved so that neighbours are ``gap`` apart, inside ``low`` to ``high`` where they fit."""
    moved: list[float] = []
    for height in heights:
        moved.append(max(height, moved[-1] + gap if moved else low))
    top = max(high, low + gap * (len(moved) - 1))
    for at in range(len(moved) - 1, -1, -1):
        top = moved[at] = min(moved[at], top)
        top -= gap
    return moved
