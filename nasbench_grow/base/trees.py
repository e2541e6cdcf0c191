"""Tensors in whatever structure a model gives: tuples, lists, dicts, named tuples, dataclasses, in any nesting."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


def _parts(tree: Any) -> Iterator[tuple[Any, Any]]:
    """The keys and values of what a structure holds; nothing of a leaf."""
    if isinstance(tree, Mapping):
        yield from tree.items()
    elif isinstance(tree, (tuple, list)):
        yield from enumerate(tree)
    elif dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        yield from ((field.name, getattr(tree, field.name)) for field in dataclasses.fields(tree))


def leaves(tree: Any) -> list[Any]:
    """All that a structure holds, in its order, without the structure."""
    parts = list(_parts(tree))
    is_structure = isinstance(tree, (Mapping, tuple, list)) or bool(parts)
    return [leaf for _, part in parts for leaf in leaves(part)] if is_structure else [tree]


def tensors(tree: Any) -> list[Tensor]:
    """The tensors of a structure, in its order."""
    return [leaf for leaf in leaves(tree) if isinstance(leaf, Tensor)]


def map_leaves(function: Callable[[Any], Any], tree: Any) -> Any:
    """The same structure with what ``function`` gives for each of its leaves."""
    if isinstance(tree, Mapping):
        made: Any = copy.copy(tree) if hasattr(tree, "__setitem__") else dict(tree)
        for key, part in tree.items():
            made[key] = map_leaves(function, part)
        return made
    if isinstance(tree, (tuple, list)):
        parts = [map_leaves(function, part) for part in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        made = copy.copy(tree)
        for key, part in _parts(tree):
            object.__setattr__(made, key, map_leaves(function, part))
        return made
    return function(tree)


def map_tensors(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """The same structure with what ``function`` gives for each of its tensors."""
    return map_leaves(lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf, tree)


def to_device(tree: Any, device: torch.device) -> Any:
    """The same structure on a device; so are objects in it that are no tensors but can be moved by ``to``."""
    return map_leaves(lambda leaf: leaf.to(device) if callable(getattr(leaf, "to", None)) else leaf, tree)


def device_of(tree: Any) -> torch.device:
    """Where the first tensor of a structure is."""
    return next((tensor.device for tensor in tensors(tree)), torch.device("cpu"))
