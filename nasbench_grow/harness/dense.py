"""What the harness must know of a dense network before any cell is run."""

from __future__ import annotations

import hashlib
from functools import cache

from nasbench_grow.base.errors import UserError
from nasbench_grow.cost.macs import count_macs
from nasbench_grow.harness import registry


@cache
def macs(backbone: str, task: str) -> int:
    """Forward MACs of the dense network for one input of the task; raises UserError where it cannot be built."""
    chosen = registry.task(task)()
    return count_macs(registry.build_backbone(backbone, chosen), chosen.example())


@cache
def fingerprint(backbone: str, task: str) -> str:
    """A digest of the dense network's definition: its modules' classes, its tensors' shapes, its MACs; empty where it
    cannot be built or run, as its cells will fail."""
    try:
        network = registry.build_backbone(backbone, registry.task(task)())
        parts = [
            *(f"{name} {type(module).__name__}" for name, module in network.named_modules()),
            *(f"{name} {tuple(tensor.shape)}" for name, tensor in network.state_dict().items()),
            str(macs(backbone, task)),
        ]
    except UserError:
        return ""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
