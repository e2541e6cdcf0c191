"""Grow efficient deep networks while they train, and measure it against the alternatives.

>>> import nasbench_grow
>>> grown = nasbench_grow.grow(model, example, loader, budget=0.5, epochs=30)
>>> grown.save("small.safetensors")
>>> network = nasbench_grow.load("small.safetensors")

The public names stand in ``__init__.pyi``.
"""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path
from typing import Any

_HOME = {
    alias.name: node.module or ""
    for node in ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")).body
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Loads a public name on first use, so that importing the package costs next to nothing."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
