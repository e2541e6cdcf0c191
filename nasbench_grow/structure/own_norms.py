"""Normalisations across channels that are classes of a model's own: root mean square norms, layer norms over images.

They are known by what they do: the size of what they take in does not matter. Where channels are absent, they take
their statistics over those that are there, as torch's own do.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from nasbench_grow.structure.space import Space

LARGE = 10.0
"""Standard deviation of what a module is tried on: the small number that keeps it from dividing by zero is nothing."""
ROUNDING = 1e-3
"""Largest difference between outputs, as a share of the largest, that is taken for none."""


def over_present(space: Space, model: nn.Module, present: Tensor) -> Iterator[RemovableHandle]:
    """Hooks by which the model's own normalisations see the channels that are present only.

    Args:
        space: of the model.
        model: about to run with its absent entries at zero.
        present: shape (structures,), bool.
    """
    for name, module in model.named_modules():
        scales = [
            space.owners.get((f"{name}.{key}", 0)) for key, each in module._parameters.items() if _is_vector(each)
        ]
        own = not type(module).__module__.startswith("torch.nn.") and not any(True for _ in module.children())
        if own and scales and scales[0] is not None:
            owner = scales[0]
            kept = torch.nonzero((owner < 0) | present[owner.clamp(min=0)]).flatten()
            lengths = [
                (key, place, len(kept))
                for (path, key, place), counted in space.attributes.items()
                if path == name and len(counted) == len(owner)
            ]
            yield module.register_forward_hook(partial(_over, kept, len(owner), lengths))


def _is_vector(parameter: Tensor | None) -> bool:
    return parameter is not None and parameter.ndim == 1 and len(parameter) > 1


def _over(
    kept: Tensor, channels: int, lengths: list[tuple[str, int | None, int]], module: nn.Module, given: Any, output: Any
) -> Tensor | None:
    """What a normalisation gives for the ``kept`` of its channels, zero elsewhere; None where it is none."""
    alone = len(given) == 1 and isinstance(given[0], Tensor) and isinstance(output, Tensor)
    if not alone or given[0].shape != output.shape or not given[0].is_floating_point():
        return None
    dim = _normalised(module, given[0], channels)
    if dim is None:
        return None
    kept = kept.to(output.device)
    narrow = _cut(module, kept, channels)
    for key, place, length in lengths:
        value = getattr(module, key)
        changed = length if place is None else type(value)((*value[:place], length, *value[place + 1 :]))
        vars(narrow)[key] = changed
    return torch.zeros_like(output).index_copy(dim, kept, narrow.forward(given[0].index_select(dim, kept)))


def _cut(module: nn.Module, kept: Tensor, channels: int) -> nn.Module:
    """The module with the parameters of some channels, in any order."""
    narrow = copy.copy(module)
    parameters: dict[str, Any] = module._parameters
    narrow._parameters = {
        key: each[kept] if _is_vector(each) and len(each) == channels else each for key, each in parameters.items()
    }
    return narrow


def _normalised(module: nn.Module, given: Tensor, channels: int) -> int | None:
    """The dimension of channels that a module normalises over; None where it does something else."""
    # Not on what it is given, of which much may be absent; nor on random numbers, which a probe has none of.
    numbers = torch.arange(given.numel(), dtype=torch.double).pow(1.5).sin()
    large = (LARGE * numbers).view(given.shape).to(given)
    once = module.forward(large)
    if not _same(module.forward(2 * large), once):
        return None
    turned = torch.arange(channels, device=given.device).roll(1)
    for dim in (-1, *range(1, given.ndim - 1)):
        if given.shape[dim] == channels:
            other = _cut(module, turned, channels).forward(large.index_select(dim, turned))
            if _same(other, once.index_select(dim, turned)):
                return dim % given.ndim
    return None


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool((one - other).abs().max() <= ROUNDING * other.abs().max())
