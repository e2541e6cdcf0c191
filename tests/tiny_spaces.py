"""Configuration spaces of tiny networks, found once in a process: nearly every run in a test needs the same few."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from tiny_networks import Block, Plain, Residual
from torch import Tensor, nn

from nasbench_grow.structure.space import Space

Find = Callable[[nn.Module, Any], Space]


def found_once(find: Find) -> Find:
    """``find``, which looks only once at networks of which what they print as and their tensors' shapes say all."""
    found: dict[Any, Space] = {}

    def known_or_found(model: nn.Module, example: Any) -> Space:
        if not isinstance(example, Tensor) or not all(map(_says_all, model.modules())):
            return find(model, example)
        tensors = [(name, tensor.shape, tensor.dtype) for name, tensor in model.state_dict().items()]
        trained = [(name, weight.requires_grad) for name, weight in model.named_parameters()]  # and tied weights once
        key = (repr(model), tuple(tensors), tuple(trained), example.shape, example.dtype)
        if key not in found:
            found[key] = find(model, example)
        return copy.deepcopy(found[key])

    return known_or_found


def _says_all(module: nn.Module) -> bool:
    """Whether a module computes nothing but what its kind does."""
    plain = type(module) in (Plain, Residual, Block) or type(module).__module__.startswith("torch.nn.modules.")
    return plain and not module._forward_hooks and not module._forward_pre_hooks and "forward" not in vars(module)
