"""Grow efficient deep networks while they train, and measure it against the alternatives.

>>> import nasbench_grow
>>> grown = nasbench_grow.grow(model, example, loader, budget=0.5, epochs=30)
>>> grown.save("small.safetensors")
>>> network = nasbench_grow.load("small.safetensors")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nasbench_grow.architecture import describe, load, rebuild, save
    from nasbench_grow.cost import TrainingMeter, count_macs
    from nasbench_grow.discovery import discover
    from nasbench_grow.errors import UserError
    from nasbench_grow.grower import Grower
    from nasbench_grow.growing import Grown, grow
    from nasbench_grow.presets import PRESETS, Preset
    from nasbench_grow.selection import select
    from nasbench_grow.space import Space
    from nasbench_grow.subnetwork import absorb, carry_optimizer, extract

_HOME = {
    "architecture": ("describe", "load", "rebuild", "save"),
    "cost": ("TrainingMeter", "count_macs"),
    "discovery": ("discover",),
    "errors": ("UserError",),
    "grower": ("Grower",),
    "growing": ("Grown", "grow"),
    "presets": ("PRESETS", "Preset"),
    "selection": ("select",),
    "space": ("Space",),
    "subnetwork": ("absorb", "carry_optimizer", "extract"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "PRESETS",
    "Grower",
    "Grown",
    "Preset",
    "Space",
    "TrainingMeter",
    "UserError",
    "absorb",
    "carry_optimizer",
    "count_macs",
    "describe",
    "discover",
    "extract",
    "grow",
    "load",
    "rebuild",
    "save",
    "select",
]


def __getattr__(name: str) -> Any:
    """Loads a public name on first use, so that importing the package costs next to nothing."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
