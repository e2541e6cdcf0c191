"""What kind of network a model is, by what it computes and not by its name.

Two questions decide: does it multiply activations with one another (attention, state spaces), and do its convolutions
overlap (a kernel wider than its stride, so that neighbouring positions mix; a patch embedding's do not).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from nasbench_grow.base.calling import call

KINDS = {
    (False, True): "convolutional",
    (True, True): "hybrid",
    (True, False): "transformer",
    (False, False): "mlp",
}
"""The kind by (multiplies activations, convolutions overlap)."""


def kind(model: nn.Module, example: Any) -> str:
    """A value of :data:`KINDS`.

    Args:
        model: any module.
        example: one input with a batch axis, as :func:`nasbench_grow.base.calling.call` takes it.
    """
    overlaps = any(
        kernel > stride
        for module in model.modules()
        if isinstance(module, nn.modules.conv._ConvNd) and len(module.kernel_size) > 1
        for kernel, stride in zip(module.kernel_size, module.stride, strict=True)
    )
    with torch.no_grad(), _Operations() as operations:
        call(model, example)
    attends = any("bmm" in name or "attention" in name for name in operations.names)
    return KINDS[attends, overlaps]


class _Operations(TorchDispatchMode):
    """Notes the names of all operations that run; a linear layer is an ``mm``, only activations need a ``bmm``."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.names.add(str(func))
        return func(*args, **(kwargs or {}))
