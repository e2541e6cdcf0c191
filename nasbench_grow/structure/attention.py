"""Attention layers in the configuration space: a head is a filter.

A head leaves its rows of the queries, keys and values, whatever else the layer keeps for each head (position biases,
temperatures), and its columns of the projection together. The dependency graph cannot tell heads apart; while it is
traced, one layer stands in for all that lies between queries, keys and values and the projection.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any, TypeGuard, cast

import numpy as np
import torch
from torch import Tensor, nn

from nasbench_grow.base.calling import call

_Axis = tuple[str, int]
_LINEAR = (nn.Linear, nn.Conv2d)
_SIZES = ("attn_dim", "attention_dim")
"""Names under which a layer may keep the number of all heads' features."""


class Attention(nn.Module):
    """What an attention layer must have for its heads to be told apart: what timm's have.

    The rows of ``qkv`` run over queries, keys and values, then over heads (the other way round where the layer has
    ``head_first`` set); where ``q_proj``, ``k_proj`` and ``v_proj`` take its place, over heads.
    """

    num_heads: int
    proj: nn.Linear | nn.Conv2d


def is_attention(module: nn.Module) -> TypeGuard[Attention]:
    """Whether a module is laid out like :class:`Attention` and has more than one head."""
    heads, proj = getattr(module, "num_heads", None), getattr(module, "proj", None)
    if not isinstance(heads, int) or heads < 2 or not isinstance(proj, _LINEAR):
        return False
    features = proj.weight.shape[1]
    made = [len(layer.weight) for layer in _makers(module)]
    return features % heads == 0 and made in ([3 * features], 3 * [features])


def _makers(module: nn.Module) -> list[nn.Linear | nn.Conv2d]:
    """The layers that make queries, keys and values: one or three."""
    named = [getattr(module, name, None) for name in ("qkv", "q_proj", "k_proj", "v_proj")]
    return [layer for layer in named if isinstance(layer, _LINEAR)]


def features_axis(name: str) -> _Axis:
    """The axis along which an attention layer joins the features of its heads."""
    return f"{name}.proj.weight", 1


def head_axes(name: str, attention: Attention) -> Iterator[tuple[_Axis, np.ndarray]]:
    """The axes along which heads have entries, each with the number of the head that every entry belongs to.

    Those are the inputs of the projection and all axes that are as long as there are heads, or features of all heads,
    or three times as many: of linear layers and norms inside the layer the first axis, of what else it keeps any.
    """
    heads, features = attention.num_heads, attention.proj.weight.shape[1]
    by_length = {length: np.arange(length) * heads // length for length in (heads, features)}
    by_length[3 * features] = np.tile(by_length[features], 3)
    if getattr(attention, "head_first", False):
        by_length[3 * features] = np.arange(3 * features) * heads // (3 * features)
    yield features_axis(name), by_length[features]
    for path, module in attention.named_modules():
        if module is attention.proj:
            continue
        for key, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            simple = isinstance(module, _LINEAR) or tensor.ndim == 1
            fitting = [dim for dim in range(1 if simple else tensor.ndim) if tensor.shape[dim] in by_length]
            if fitting and tensor.is_floating_point():
                full = ".".join(part for part in (name, path, key) if part)
                yield (full, fitting[-1]), by_length[tensor.shape[fitting[-1]]]


def resize(attention: nn.Module, original: Attention) -> None:
    """Sets the sizes that a cut attention layer keeps as attributes from the shape of its projection."""
    features = cast(Attention, attention).proj.weight.shape[1]
    heads = features * original.num_heads // original.proj.weight.shape[1]
    for module in attention.modules():
        if hasattr(module, "num_heads"):
            setattr(module, "num_heads", heads)  # noqa: B010 - mypy takes attributes of modules for tensors
    for size in _SIZES:
        if hasattr(attention, size):
            setattr(attention, size, features)


def attention_layers(model: nn.Module, example: Any) -> dict[str, Attention]:
    """The attention layers that do nothing else: they take what queries, keys and values are made of and give what the
    projection gives, position by position. By their names."""
    found: dict[str, Attention] = {}

    def look(name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        assert is_attention(module)
        channel = 1 if isinstance(module.proj, nn.Conv2d) else -1
        expected = list(inputs[0].shape)
        taken, expected[channel] = expected[channel], len(module.proj.weight)
        if (
            isinstance(output, Tensor)
            and list(output.shape) == expected
            and taken == _makers(module)[0].weight.shape[1]
        ):
            found[name] = module

    hooks = [
        module.register_forward_hook(lambda *call, name=name: look(name, *call))
        for name, module in model.named_modules()
        if is_attention(module)
    ]
    if hooks:
        with torch.no_grad():
            call(model, example)
    for hook in hooks:
        hook.remove()
    return found


def bridge_heads(model: nn.Module, names: Iterable[str]) -> nn.Module:
    """A copy of ``model`` in which a layer of its own leads from the queries, keys and values of the named attention
    layers to their projections."""
    copied = copy.deepcopy(model)
    for name in names:
        _bridge(cast(Attention, copied.get_submodule(name)))
    return copied


def _bridge(attention: Attention) -> None:
    makers, features = _makers(attention), attention.proj.weight.shape[1]
    rows = len(makers[0].weight)
    if isinstance(attention.proj, nn.Conv2d):
        bridge: nn.Module = nn.Conv2d(rows, features, 1)
    else:
        bridge = nn.Linear(rows, features)
    attention.add_module("bridge", bridge.to(attention.proj.weight))

    def forward(inputs: Tensor, *_: Any, **__: Any) -> Tensor:
        made = makers[0](inputs)
        for maker in makers[1:]:
            made = made + maker(inputs)
        return attention.proj(bridge(made))

    attention.forward = forward
