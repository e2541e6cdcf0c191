"""Numbers that modules keep beside their tensors and that count what has shrunk: heads, features of a head, halves.

Discovery finds them (:attr:`nasbench_grow.structure.space.Space.attributes`), extraction sets them, and an
architecture's text names those that differ from the dense network's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nasbench_grow.structure.attention import is_attention
from nasbench_grow.structure.space import Space
from nasbench_grow.structure.written import ATTRIBUTE, read_anew

_FITTED = (
    nn.modules.conv._ConvNd,
    nn.Linear,
    nn.Bilinear,
    nn.Embedding,
    nn.EmbeddingBag,
    nn.RNNBase,
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.PReLU,
)
"""Modules whose sizes the shapes of their tensors tell."""

Sizes = dict[str, dict[str, Any]]
"""By a module's path and an attribute's name: a number, or a list of them."""


def set_attributes(space: Space, present: Tensor, network: nn.Module) -> None:
    """Sets the attributes that count what has shrunk in the sub-network of ``present``."""
    kept = space.resolved(present)
    sizes: dict[str, dict[str, Any]] = {}

    def left(owner: Tensor) -> int:
        return int(((owner < 0) | kept[owner.clamp(min=0)]).sum())

    for (path, key, place), owner in space.attributes.items():
        length = left(owner)
        module = _module(network, path)
        if module is not None and key in vars(module):
            value = sizes.setdefault(path, {}).setdefault(key, getattr(module, key))
            if place is not None:
                value = list(value)
                value[place] = length
            sizes[path][key] = length if place is None else value
    for (path, size), owner in space.written.items():
        length = left(owner)
        if length < len(owner) and _module(network, path) is not None:
            sizes.setdefault(path, {}).setdefault(ATTRIBUTE, {})[size] = length
    put(network, sizes)


def put(network: nn.Module, sizes: Mapping[str, Mapping[str, Any]]) -> None:
    """Sets attributes; lists keep the kind of list that they are.

    Raises:
        AttributeError: the network has no such module or attribute.
    """
    for path, attributes in sizes.items():
        module = network.get_submodule(path)
        for key, value in attributes.items():
            if key == ATTRIBUTE:
                read_anew(module, value)
                continue
            old = getattr(module, key)
            if isinstance(old, torch.Size):
                new: Any = torch.Size(value)
            else:
                new = type(old)(value) if isinstance(old, (list, tuple)) else value
            setattr(module, key, new)


def changed(network: nn.Module, full: nn.Module) -> Sizes:
    """The attributes of ``network`` that count something and differ from those of ``full``, which it was cut from."""
    sizes: Sizes = {}
    for path, module in network.named_modules():
        original = full.get_submodule(path)
        if type(module) is type(original) and not isinstance(module, _FITTED) and not is_attention(original):
            for key, value in _counts(module):
                if value != vars(original).get(key):
                    sizes.setdefault(path, {})[key] = value if isinstance(value, int) else list(value)
            if ATTRIBUTE in vars(module):
                sizes.setdefault(path, {})[ATTRIBUTE] = getattr(module, ATTRIBUTE)
    return sizes


def _counts(module: nn.Module) -> Iterator[tuple[str, Any]]:
    for key, value in vars(module).items():
        each = value if isinstance(value, (list, tuple)) else [value]
        if not key.startswith("_") and each and all(type(number) is int for number in each):
            yield key, value


def _module(network: nn.Module, path: str) -> nn.Module | None:
    """A module, None where it lay in an absent layer."""
    try:
        return network.get_submodule(path)
    except AttributeError:
        return None
