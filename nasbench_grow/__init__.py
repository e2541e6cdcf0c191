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
    from nasbench_grow.base.errors import UserError
    from nasbench_grow.contract import Callback, ElasticModel, FixedNetwork, Job, Method
    from nasbench_grow.cost.macs import count_macs
    from nasbench_grow.cost.meter import TrainingMeter
    from nasbench_grow.growing.api import Grown, grow
    from nasbench_grow.growing.relaxation import RelaxationSettings
    from nasbench_grow.growing.scaling import ScalingSettings, planned_layers
    from nasbench_grow.structure.architecture import describe, load, rebuild, save
    from nasbench_grow.structure.discovery import discover
    from nasbench_grow.structure.selection import select, uniform_keys
    from nasbench_grow.structure.space import Space
    from nasbench_grow.structure.subnetwork import absorb, carry_optimizer, extract

_HOME = {
    "base.errors": ("UserError",),
    "contract": (
        "Callback",
        "ElasticModel",
        "FixedNetwork",
        "Job",
        "Method",
    ),
    "cost.macs": ("count_macs",),
    "cost.meter": ("TrainingMeter",),
    "growing.api": (
        "Grown",
        "grow",
    ),
    "growing.relaxation": ("RelaxationSettings",),
    "growing.scaling": (
        "ScalingSettings",
        "planned_layers",
    ),
    "structure.architecture": (
        "describe",
        "load",
        "rebuild",
        "save",
    ),
    "structure.discovery": ("discover",),
    "structure.selection": (
        "select",
        "uniform_keys",
    ),
    "structure.space": ("Space",),
    "structure.subnetwork": (
        "absorb",
        "carry_optimizer",
        "extract",
    ),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "Callback",
    "ElasticModel",
    "FixedNetwork",
    "Grown",
    "Job",
    "Method",
    "RelaxationSettings",
    "ScalingSettings",
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
    "planned_layers",
    "rebuild",
    "save",
    "select",
    "uniform_keys",
]


def __getattr__(name: str) -> Any:
    """Loads a public name on first use, so that importing the package costs next to nothing."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
