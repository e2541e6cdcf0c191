"""Which channel groups and layers a model does not survive without, as it should.

Extraction is compared with the definition for several structures of all groups at once. Only where that fails are they
tried one by one. Spaces of a model that are tried one after the other have most groups in common, so that what was
found of a group alone is remembered.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from nasbench_grow.structure.exactness import failure
from nasbench_grow.structure.space import ChannelGroup, Layer, Space

DRAWS = 3
"""Structures of widths drawn at random."""
LENGTHS = 6
"""To how many common lengths groups are set in turn, at most."""


class Faults:
    """What is wrong with spaces of one model.

    Args:
        model, example: what is run. It must run the same at each call.
        tolerance: largest difference from the definition that is taken for rounding, as a share of the largest output.
    """

    def __init__(self, model: nn.Module, example: Any, tolerance: float) -> None:
        self.model, self.example, self.tolerance = model, example, tolerance
        self._alone: dict[str, str | None] = {}

    def any(self, space: Space) -> Tensor | None:
        """A structure that extraction gets wrong, shape (structures,), bool; None if none was found."""
        generator = torch.Generator().manual_seed(0)
        return next((each for each in structures(space, generator) if self._failure(space, each)), None)

    def of(self, space: Space) -> dict[str, str]:
        """The groups and layers whose removal changes more than it should, each with what went wrong.

        Where something fails, but none of them alone: what is left of the failing structure when all that need not be
        absent is back.
        """
        failing = self.any(space)
        if failing is None:
            return {}
        reasons = {}
        for name, key, present in _one_by_one(space):
            if key not in self._alone:
                self._alone[key] = self._failure(space, present)
            reason = self._alone[key]
            if reason is not None:
                reasons[name] = reason
        return reasons or _blamed(space, failing, lambda present: self._failure(space, present) is not None)

    def _failure(self, space: Space, present: Tensor) -> str | None:
        shallow = not bool(present[space.filters :].all())
        return failure(space, self.model, self.example, present, self.tolerance, backward=shallow)


def structures(space: Space, generator: torch.Generator) -> Iterator[Tensor]:
    """Structures by which a wrong coupling shows: random halves, with all layers and without the plain ones; widths
    that differ from each other, with a part of the layers; one filter in each group and no layer; any widths; groups as
    wide as each other, or as what is always there, where shapes agree by accident."""
    halved = _halved(space, space.groups, generator)
    yield halved
    plain = [index for index, layer in enumerate(space.layers) if layer.bypass]
    if plain:
        yield halved & _without(space, plain)
    taken: set[int] = set()
    widths = []
    for group in space.groups:
        free = [width for width in range(1, group.size + 1) if width not in taken] or [group.size]
        widths.append(free[int(torch.randint(len(free), (), generator=generator))])
        taken.add(widths[-1])
    absent = [index for index in range(len(space.layers)) if torch.rand((), generator=generator) < 0.5]
    yield _thinned(space, widths, generator) & _without(space, absent)
    yield _thinned(space, [1] * len(space.groups), generator) & _without(space, range(len(space.layers)))
    for _ in range(DRAWS):
        widths = [int(torch.randint(1, group.size + 1, (), generator=generator)) for group in space.groups]
        yield _thinned(space, widths, generator)
    each = _entries(space)
    for length in _common_lengths(space, each):
        yield _thinned(space, [max(1, length // entries) for entries in each], generator)


def _entries(space: Space) -> list[int]:
    """How many entries a filter of each group has on an axis, where it has fewest."""
    fewest = [len(space) for _ in space.groups]
    first = {group.start: index for index, group in enumerate(space.groups)}
    for owner in space.owners.values():
        for number, count in zip(*torch.unique(owner, return_counts=True), strict=True):
            if (index := first.get(int(number))) is not None:
                fewest[index] = min(fewest[index], int(count))
    return fewest


def _common_lengths(space: Space, entries: list[int]) -> list[int]:
    """Lengths that several axes can have at once: one of no meaning, and those of some axes that never shrink."""
    longest = max((each * group.size for each, group in zip(entries, space.groups, strict=True)), default=0)
    fixed = {
        length
        for name, shape in space.shapes.items()
        if len(shape) > 1
        for dim, length in enumerate(shape[:2])
        if (name, dim) not in space.owners
    }
    shared = 2 * max(entries, default=0)
    return sorted(length for length in {shared, *fixed} if 1 < length < longest)[:LENGTHS]


def _thinned(space: Space, widths: list[int], generator: torch.Generator) -> Tensor:
    """Everything present, but of each group as many filters as ``widths`` says, drawn at random."""
    present = space.full()
    for group, width in zip(space.groups, widths, strict=True):
        present[group.start + torch.randperm(group.size, generator=generator)[width:]] = False
    return present


def _without(space: Space, layers: Iterable[int]) -> Tensor:
    """Everything present but some layers."""
    present = space.full()
    present[[space.filters + index for index in layers]] = False
    return present


def _halved(space: Space, groups: list[ChannelGroup], generator: torch.Generator) -> Tensor:
    """Everything present, but of the given groups about half of the filters (an odd number)."""
    present = space.full()
    for group in groups:
        leave = torch.randperm(group.size, generator=generator)[: group.size - (group.size // 4 * 2 + 1)]
        present[group.start + leave] = False
    return present


def _one_by_one(space: Space) -> Iterator[tuple[str, str, Tensor]]:
    """The name of every group and layer, what its removal depends on, and a structure in which nothing else is
    absent."""
    for group, key in zip(space.groups, _keys(space), strict=True):
        yield group.name, key, _halved(space, [group], torch.Generator().manual_seed(0))
    for index, layer in enumerate(space.layers):
        yield layer.name, repr((layer.paths, _replaced(layer))), _without(space, [index])


def _replaced(layer: Layer) -> bool:
    """Whether the channels that a layer gives out are those that it takes in where it is absent."""
    return layer.bypass is not None


def _keys(space: Space) -> list[str]:
    """A digest for each group of all entries and attributes that go with its filters: spaces in which it is the same
    are cut alike where nothing else is absent."""
    digests = [hashlib.blake2b(digest_size=16) for _ in space.groups]
    group_of = torch.cat(
        [torch.full((group.size,), index) for index, group in enumerate(space.groups)] or [space.full()]
    )
    owned = [(repr(place), owner) for place, owner in (*space.owners.items(), *space.attributes.items())]
    for place, owner in sorted(owned, key=lambda each: each[0]):
        for index in group_of[owner[owner >= 0]].unique().tolist():
            group = space.groups[index]
            own = torch.where((owner >= group.start) & (owner < group.start + group.size), owner - group.start, -1)
            digests[index].update(place.encode() + own.numpy().tobytes())
    return [digest.hexdigest() for digest in digests]


def _blamed(space: Space, failing: Tensor, fails: Callable[[Tensor], bool]) -> dict[str, str]:
    """Of the groups and layers that fail together, and not when one of them is whole again, a layer or the largest
    group: that the widths of two agree is ruled out by keeping the larger one whole."""
    groups = sorted(space.groups, key=lambda group: group.size)
    failing, guilty = _needed(failing, [group.structures for group in groups], fails)
    layers = [[space.filters + index] for index in range(len(space.layers))]
    _, absent = _needed(failing, layers, fails)
    if absent:
        return {space.layers[absent[0]].name: "what follows it needs it where other layers are absent"}
    reason = "its filters leave only together with other groups'"
    return {groups[guilty[-1]].name: reason} if guilty else {group.name: reason for group in groups}


def _needed(
    failing: Tensor, units: list[Any], fails: Callable[[Tensor], bool], first: int = 0
) -> tuple[Tensor, list[int]]:
    """Puts back the units of structures that a failing structure need not lack to fail, many at once where it can;
    returns what still fails, and the numbers of the units that it must lack (counted from ``first``)."""
    if not units:
        return failing, []
    whole = failing.clone()
    for unit in units:
        whole[unit] = True
    if torch.equal(whole, failing) or fails(whole):
        return whole, []
    if len(units) == 1:
        return failing, [first]
    half = len(units) // 2
    failing, one = _needed(failing, units[:half], fails, first)
    failing, other = _needed(failing, units[half:], fails, first + half)
    return failing, one + other
