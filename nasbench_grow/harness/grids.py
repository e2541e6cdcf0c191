"""What a profile is made of: grids of cells."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The product of methods, tasks, backbones, budgets and seeds, all trained equally long."""

    methods: tuple[str, ...]
    tasks: tuple[str, ...]
    backbones: tuple[str, ...]
    budgets: tuple[float, ...]
    seeds: tuple[int, ...]
    epochs: int
    train_samples: int | None = None
    """How many training samples to keep; None = all."""
    setup: str = "cpu"


@dataclass(frozen=True)
class Profile:
    """A named list of grids."""

    name: str
    summary: str
    grids: tuple[Grid, ...]
