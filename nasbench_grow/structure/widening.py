"""Networks wider than the dense one: new filters beside its own (MorphNet's expansion, arXiv 1711.06798).

A new filter's entries follow those of the last old filter, wherever a tensor holds entries of it: in each gate of an
LSTM, behind each flattened image, inside a concatenation. So the orders that the network's code relies on stay.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from nasbench_grow.base.errors import UserError, unknown
from nasbench_grow.structure import recurrent
from nasbench_grow.structure.given import check_is_space, check_space
from nasbench_grow.structure.space import Axis, ChannelGroup, Space
from nasbench_grow.structure.subnetwork import fit, laid_out_like, replace_tensors

NEW = -1
"""Stands for the source of an entry that a tensor does not have yet."""


def widen(space: Space, dense: nn.Module, widths: Mapping[str, int], seed: int = 0) -> nn.Module:
    """A network like the dense one with other numbers of filters: more, or fewer.

    The old filters come first and keep their weights. The entries of new ones are drawn from those that the same tensor
    has already (:func:`resample`), so that they are distributed as the dense network's and no two filters are alike.

    Args:
        space: the configuration space of ``dense``.
        dense: the full network; not changed.
        widths: filters of each channel group by its name, at least 1; groups not named keep their size. Of a group that
            becomes narrower the first filters are kept.
        seed: of the draws.

    Returns:
        A module of the dense network's classes in its training mode. Discover its space anew.

    Raises:
        UserError: no such group, no filter left in one, or the order of its filters in some tensor is unknown.
    """
    check_is_space(space)
    if not isinstance(widths, Mapping):
        raise UserError(
            f"widths is a {type(widths).__name__}; give a dict of group names and widths, e.g. {{'conv1': 32}}"
        )
    groups = {group.name: group for group in space.groups}
    for name, width in widths.items():
        _check(space, groups, name, width)
    check_space(space, dense)
    changed = {groups[name]: width for name, width in widths.items() if width != groups[name].size}
    generator = torch.Generator().manual_seed(seed)

    def make(name: str, tensor: Tensor) -> Tensor:
        return resample(tensor, [_sources(space, (name, dim), changed) for dim in range(tensor.ndim)], generator)

    network = copy.deepcopy(dense)
    replace_tensors(network, make)
    fit(network, dense)
    return recurrent.flatten(network)


def resample(tensor: Tensor, sources: Sequence[Tensor | None], generator: torch.Generator) -> Tensor:
    """A copy of ``tensor`` with other entries along its dimensions; what is new is drawn from all of its entries.

    Args:
        tensor: the entries that are there.
        sources: for each dimension, the index from which each entry comes or :data:`NEW`; None: it stays as it is.
        generator: of the draws, with replacement.
    """
    result, new = tensor, torch.zeros([1] * tensor.ndim, dtype=torch.bool)
    for dim, source in enumerate(sources):
        if source is not None:
            result = result.index_select(dim, source.clamp(min=0).to(tensor.device))
            new = new | (source == NEW).view([-1 if axis == dim else 1 for axis in range(tensor.ndim)])
    if result is tensor:
        return tensor.clone(memory_format=torch.preserve_format)
    new = new.expand(result.shape)
    if count := int(new.sum()):
        drawn = torch.randint(tensor.numel(), (count,), generator=generator)
        result[new.to(tensor.device)] = tensor.flatten()[drawn.to(tensor.device)]
    return laid_out_like(tensor, result)


def _check(space: Space, groups: Mapping[str, ChannelGroup], name: str, width: int) -> None:
    """Refuses a width that cannot be had."""
    if name in space.fixed:
        raise UserError(f"the channels of {name!r} cannot be widened: {space.fixed[name]}; leave it out")
    if name not in groups:
        raise unknown("channel group", name, groups)
    if width < 1:
        raise UserError(f"{width} filters in {name!r}; give at least 1")
    group = groups[name]
    for (module, _), owner in space.written.items():
        if width > group.size and ((owner >= group.start) & (owner < group.start + group.size)).any():
            raise UserError(
                f"the channels of {name!r} cannot be widened: the code of {module or 'the model'} says how many they "
                f"are; give at most {group.size}"
            )
    for axis, owner in space.owners.items():
        if width > group.size and not _in_order(owner, group):
            raise UserError(
                f"the channels of {name!r} cannot be widened: their order in {axis[0]} is unknown; give at most "
                f"{group.size}"
            )


def _in_order(owner: Tensor, group: ChannelGroup) -> bool:
    """Whether an axis runs through the group's filters from first to last, once or several times, with equally many
    entries for each. A single filter with several entries could be any of that."""
    numbers, counts = torch.unique_consecutive(owner - group.start, return_counts=True)
    places = torch.nonzero((numbers >= 0) & (numbers < group.size)).flatten()
    if len(places) % group.size:
        return False
    places = places.view(-1, group.size)
    entries = counts[places]
    if group.size == 1:
        return bool((entries == 1).all())
    return (
        bool((numbers[places] == torch.arange(group.size)).all())
        and bool((places.diff(dim=1) == 1).all())
        and bool((entries == entries[:, :1]).all())
    )


def _sources(space: Space, axis: Axis, widths: Mapping[ChannelGroup, int]) -> Tensor | None:
    """Where each entry of the widened axis comes from; None: the axis stays as it is."""
    owner = space.owners.get(axis)
    if owner is None:
        return None
    more: dict[int, int] = {}
    gone = torch.zeros(len(owner), dtype=torch.bool)
    for group, width in widths.items():
        more[group.start + group.size - 1] = width - group.size
        gone |= (owner >= group.start + width) & (owner < group.start + group.size)
    pieces = []
    places = torch.arange(len(owner))
    numbers, counts = torch.unique_consecutive(owner, return_counts=True)
    for number, entries in zip(numbers.tolist(), places.split(counts.tolist()), strict=True):
        pieces += [entries[~gone[entries]], torch.full((max(0, more.get(number, 0)) * len(entries),), NEW)]
    return torch.cat(pieces)
