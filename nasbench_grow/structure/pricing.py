"""What a space costs beyond its weights: the products of two activations, of bare parameters, along unusual axes.

The one counter says of every operation over which axes it multiplies. Their lengths are counted for a few sub-networks,
and each is found to be a constant and so many entries for each filter of some groups. What is found is held against the
counter on other sub-networks; groups whose filters cost otherwise are reported, so that no figure is ever a guess.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor, nn

from nasbench_grow.base.calling import batch_length
from nasbench_grow.base.errors import UserError
from nasbench_grow.cost.macs import Example, Product, products
from nasbench_grow.structure.space import Length, Space, WeightCost
from nasbench_grow.structure.subnetwork import extract

CHECKS = 3
"""Sub-networks that the costs of a space are held against."""
SEEN = 5
"""Sub-networks of random widths, all layers present, that lengths are read from."""

REASON = "its filters cost MACs that are no product of widths"


def priced(space: Space, model: nn.Module, example: Example) -> Space | dict[str, str]:
    """A space whose costs are those that the counter finds, whatever is present: the same one, where they are.

    Args:
        space: with the costs of weights.
        model: the dense network; not changed.
        example: what MACs are counted on.

    Returns:
        The space; or the groups that cost what no product of widths is, each with the reason.

    Raises:
        UserError: costs that depend on layers in a way that is not understood.
    """
    if not space.groups:
        return space

    def count(present: Tensor) -> list[Product]:
        return products(extract(space, model, present), example)

    samples = batch_length(example)
    checks = [(present, _total(count(present)) / samples) for present in _checks(space)]

    def right(candidate: Space) -> bool:
        return all(abs(candidate.macs(present) - macs) <= 0.5 + 1e-9 * macs for present, macs in checks)

    if right(space):
        return space
    fit = _Fit(space, count)
    found = fit.costs(samples)
    if isinstance(found, dict):
        return found
    complete = replace(space, costs=found, constant_macs=0.0)
    complete = replace(complete, constant_macs=_total(fit.dense) / samples - complete.macs(space.full()))
    if not right(complete):
        raise UserError(
            f"the MACs of {type(model).__name__} change with its widths and layers in a way that could not be found; "
            "give a model whose forward pass does the same operations whatever its widths"
        )
    return complete


def _total(found: list[Product]) -> int:
    return sum(math.prod(product.lengths) for product in found)


def _checks(space: Space) -> list[Tensor]:
    """Random widths with all layers, with some, and the smallest network."""
    generator = torch.Generator().manual_seed(1)
    present = [_random_widths(space, generator) for _ in range(CHECKS - 1)]
    present[1][space.filters :] = torch.rand(len(space.layers), generator=generator) < 0.5
    return [*present, space.seed()]


def _random_widths(space: Space, generator: torch.Generator) -> Tensor:
    """All layers, and of each group one filter or more, not all where it has several."""
    present = space.full()
    for group in space.groups:
        width = int(torch.randint(1, max(2, group.size), (), generator=generator))
        present[group.start + torch.randperm(group.size, generator=generator)[width:]] = False
    return present


class _Fit:
    """Reads from a few sub-networks how the lengths of all products depend on the widths.

    Args:
        space: the space whose costs of weights are kept where they are right.
        count: the products of the sub-network of some structures.
    """

    def __init__(self, space: Space, count: Callable[[Tensor], list[Product]]) -> None:
        self.space, self.count = space, count
        generator = torch.Generator().manual_seed(0)
        self.structures = [space.full(), *(_random_widths(space, generator) for _ in range(SEEN))]
        self.seen = [count(present) for present in self.structures]
        self.dense = self.seen[0]
        self.counts = [space.counts(present)[0] for present in self.structures]

    def costs(self, samples: int) -> list[WeightCost] | dict[str, str]:
        """All costs; or the groups to blame where a length is no sum over widths."""
        if any(not _alike(self.dense, each) for each in self.seen):
            strange = [number for number, each in enumerate(self.alone) if not _alike(self.dense, each)]
            return self._blamed(strange)
        kept = self._right_weights(samples)
        covered = {_module(cost) for cost in kept}
        costs = list(kept)
        for number, product in enumerate(self.dense):
            if product.module in covered:
                continue
            lengths = [self._length(number, axis) for axis in range(len(product.lengths))]
            known = [length for length in lengths if length is not None]
            if len(known) < len(lengths):
                changed = [
                    group
                    for group, each in enumerate(self.alone)
                    if not _alike(self.dense, each) or each[number].lengths != product.lengths
                ]
                return self._blamed(changed)
            layer = self.space.layer_of(product.module)
            if layer is not None or any(length.terms for length in known):
                costs.append(WeightCost(1 / samples, (), layer, tuple(known)))
        return costs

    def _right_weights(self, samples: int) -> list[WeightCost]:
        """The costs of weights that the counter agrees with, module by module, for every structure seen."""
        of_module: dict[str, list[WeightCost]] = defaultdict(list)
        for cost in self.space.costs:
            of_module[_module(cost)].append(cost)
        right = []
        for module, costs in of_module.items():
            alone = replace(self.space, costs=costs, constant_macs=0.0)
            counted = [
                _total([product for product in each if product.module == module]) / samples for each in self.seen
            ]
            own = zip(self.structures, counted, strict=True)
            if all(abs(alone.macs(present) - macs) <= 1 for present, macs in own):
                right += costs
        return right

    def _length(self, number: int, axis: int) -> Length | None:
        """An axis of a product as a function of the widths; None where it is no sum over them."""
        lengths = [each[number].lengths[axis] for each in self.seen]
        if len(set(lengths)) == 1:
            return Length(lengths[0], ())
        fitting = [
            length for group in range(len(self.space.groups)) if (length := self._of_one(group, lengths)) is not None
        ]
        if len(fitting) == 1:
            return fitting[0]
        terms = []
        for group, each in enumerate(self.alone):
            if not _alike(self.dense, each):
                return None
            fewer = self.counts[0][group] - 1
            if fewer and (change := lengths[0] - each[number].lengths[axis]):
                terms.append((group, change / fewer))
        found = _through(lengths[0], self.counts[0], terms)
        return found if self._fits(found, lengths) else None

    def _of_one(self, group: int, lengths: list[int]) -> Length | None:
        """The lengths as a function of the width of one group; None where it is not that alone that they follow."""
        widths = [counts[group] for counts in self.counts]
        other = next((place for place, width in enumerate(widths) if width != widths[0]), None)
        if other is None:
            return None
        each = (lengths[other] - lengths[0]) / (widths[other] - widths[0])
        found = _through(lengths[0], self.counts[0], [(group, each)])
        return found if each and self._fits(found, lengths) else None

    def _fits(self, found: Length, lengths: list[int]) -> bool:
        pairs = zip(self.counts, lengths, strict=True)
        return all(abs(found(counts) - length) < 1e-6 for counts, length in pairs)

    @cached_property
    def alone(self) -> list[list[Product]]:
        """The products where a group has one filter and all others are whole, for each group."""
        found = []
        for group in self.space.groups:
            present = self.space.full()
            present[group.start + 1 : group.start + group.size] = False
            found.append(self.count(present))
        return found

    def _blamed(self, groups: list[int]) -> dict[str, str]:
        """These groups, or all if there are none."""
        return {self.space.groups[group].name: REASON for group in groups or range(len(self.space.groups))}


def _through(length: int, counts: list[float], terms: list[tuple[int, float]]) -> Length:
    """A sum over widths that is ``length`` for these counts."""
    return Length(round(length - sum(each * counts[group] for group, each in terms)), tuple(terms))


def _alike(one: list[Product], other: list[Product]) -> bool:
    """Whether two networks do the same operations, whatever the lengths."""
    return [(each.module, each.operation, len(each.lengths)) for each in one] == [
        (each.module, each.operation, len(each.lengths)) for each in other
    ]


def _module(cost: WeightCost) -> str:
    """The module that a weight's cost belongs to, or the attention layer whose products it is of."""
    path = cost.axes[0][0].rpartition(".")[0]
    return path if len(cost.axes) > 1 else path.rpartition(".")[0]
