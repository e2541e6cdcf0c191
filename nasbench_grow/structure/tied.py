"""Tensors with several names: modules that stand in a model twice, and weights that two modules share."""

from __future__ import annotations

from torch import nn


def has_tied_weights(model: nn.Module) -> bool:
    """Whether two modules have one parameter (a module with two names is one module)."""
    owned = [id(each) for module in model.modules() for each in module._parameters.values() if each is not None]
    return len(set(owned)) < len(owned)


def second_names(model: nn.Module) -> dict[str, str]:
    """The second, third, ... name of every tensor that has several, with its first."""
    first: dict[int, str] = {}
    tensors = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    names = {name: first.setdefault(id(tensor), name) for name, tensor in tensors}
    return {name: other for name, other in names.items() if name != other}
