"""Configuration spaces of whole backbones, which take seconds to find: each is found once."""

from __future__ import annotations

from functools import cache

import torch
from once import once
from torch import Tensor

from nasbench_grow import Space, backbones, discover
from nasbench_grow.harness import registry

SHAPES = {"deeplabv3plus_thin": (3, 32, 32)}
CLASSES = 8


def example_of(name: str) -> Tensor:
    """A small input of a backbone."""
    return torch.zeros(1, *SHAPES.get(name, (3, 16, 16)))


@cache
def space_of(name: str) -> Space:
    """The space of a backbone for 8 classes on :func:`example_of`."""
    return once(f"backbone-{name}", lambda: discover(backbones.create(name, CLASSES, 3), example_of(name)))


@cache
def space_for(task: str, name: str) -> Space:
    """The space of the backbone that a task trains."""
    made = registry.task(task)()
    return once(f"{task}-{name}", lambda: discover(registry.build_backbone(name, made), made.example()))
