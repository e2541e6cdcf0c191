"""Sub-networks of a space beside what they have to compute."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from nasbench_grow import extract
from nasbench_grow.structure.exactness import masked
from nasbench_grow.structure.space import Space


def cut_at_random(space: Space, model: nn.Module, inputs: Any) -> Iterator[tuple[Tensor, nn.Module, Any]]:
    """Three random structures of about half of everything, the network of each, and the output of the masked one."""
    for seed in range(3):
        half = torch.rand(len(space), generator=torch.Generator().manual_seed(seed)) < 0.5
        present = half | space.seed()
        yield present, extract(space, model, present), masked(space, model, present, inputs)
