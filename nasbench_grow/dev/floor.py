"""What the device can do at best: the rates against which the time of a training step is judged."""

from __future__ import annotations

import torch

from nasbench_grow.structure.step_time import seconds

_SIDE = {"cpu": 2048, "cuda": 8192}
_COPIED_BYTES = {"cpu": 2**28, "cuda": 2**30}
"""Large enough to keep every unit of the device busy, and beyond its caches."""


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Multiply-accumulates a second of a large matrix product: of several, the fastest.

    Args:
        device: what computes it.
        dtype: of factors and product. Whether float32 factors are rounded to TF32 is what PyTorch is set to.
    """
    side = _SIDE[device.type]
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    product = torch.empty_like(left)
    return side**3 / seconds(lambda: torch.mm(left, right, out=product), device)


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second, those read and those written, of a copy within the device's memory: of several, the fastest."""
    source = torch.zeros(_COPIED_BYTES[device.type], device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds(lambda: target.copy_(source), device)
