"""Chooses structures by a key at a given cost: the threshold on the keys is the price that meets the budget.

Whatever the keys mean (a perturbed logit, a norm, a random number), a structure is in if its key is above one
threshold common to the whole network, and the threshold is solved for: the cost falls as it rises.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from nasbench_grow.base.errors import UserError
from nasbench_grow.structure.given import check_is_space, check_values
from nasbench_grow.structure.space import Space

CostOfCounts = Callable[[list[int], list[bool]], float]
"""The cost of the width of each group and the presence of each layer."""

UNUSED = 0.01
"""Share of the dense cost that rounded widths may leave of a budget; more is spent in half steps of width."""
NARROW = 8
"""Below a larger granularity, widths above this are its multiples."""


def select(
    space: Space,
    keys: Tensor,
    limit: float,
    granularity: int = 1,
    cost: Callable[[Tensor], float] | None = None,
) -> Tensor:
    """The structures with the highest keys that cost at most ``limit``.

    Args:
        space: the configuration space.
        keys: shape (structures,), any real numbers; ties go to the lower number. Layers at minus infinity stay out.
        limit: what the sub-network may cost.
        granularity: of :func:`allowed_width`, but for what :data:`UNUSED` says.
        cost: of structures, which must rise with every one of them; None: their forward MACs.

    Returns:
        ``present``, shape (structures,), bool: each group has at least its best filter; after the threshold, the best
        structures that still fit are added, so the cost ends close below ``limit``. If not even one filter in every
        group fits, that smallest network is returned.

    Raises:
        UserError: the granularity is no whole number above 0.
    """

    check_granularity(granularity)
    check_values(space, keys, "keys")

    def cost_of(counts: list[int], layers: list[bool]) -> float:
        if cost is None:
            return space.macs_of(counts, layers)
        return cost(_present(space, keys, counts, layers))

    enough = limit - UNUSED * (cost or space.macs)(space.full())
    counts, layers = _above_threshold(space, keys, limit, enough, granularity, cost_of)
    layer_keys = keys[space.filters :]
    absent = [layer for layer, there in enumerate(layers) if not there and layer_keys[layer] > -torch.inf]
    for layer in sorted(absent, key=lambda layer: -float(layer_keys[layer])):
        if cost_of(counts, layers) >= enough:
            break
        # A layer that just missed may leave much unused: let it in beside the present ones, and fewer filters.
        with_layer = keys.clone()
        with_layer[space.filters :][torch.tensor(layers)] = torch.inf
        with_layer[space.filters + layer] = torch.inf
        candidate = _above_threshold(space, with_layer, limit, enough, granularity, cost_of)
        if cost_of(counts, layers) < cost_of(*candidate) <= limit:
            counts, layers = candidate
    return _present(space, keys, counts, layers)


def _present(space: Space, keys: Tensor, counts: list[int], layers: list[bool]) -> Tensor:
    """These layers, and of each group as many filters, those with its highest keys."""
    present = torch.zeros(len(space), dtype=torch.bool)
    for group, count in zip(space.groups, counts, strict=True):
        present[group.start + torch.argsort(keys[group.structures], descending=True, stable=True)[:count]] = True
    present[space.filters :] = torch.tensor(layers, dtype=torch.bool)
    return present


def _above_threshold(
    space: Space, keys: Tensor, limit: float, enough: float, granularity: int, cost_of: CostOfCounts
) -> tuple[list[int], list[bool]]:
    """Width of each group and presence of each layer: what is above the lowest threshold that ``limit`` allows, and
    what of the others still fits, in half steps of width while the cost is below ``enough``."""
    ranking = torch.argsort(keys, descending=True, stable=True)[: int((keys > -torch.inf).sum())]
    owners = _owners(space)[ranking]

    def first(number: int) -> tuple[list[int], list[bool]]:
        """The structures that rank first, each group's width rounded to an allowed one."""
        found = torch.bincount(owners[:number], minlength=len(space.groups) + len(space.layers)).tolist()
        widths = zip(space.groups, found, strict=False)
        return (
            [allowed_width(count, group.size, granularity) for group, count in widths],
            [count > 0 for count in found[len(space.groups) :]],
        )

    low, high = 0, len(ranking)  # the number of structures above the threshold: `low` fits, `high` may not
    while low < high:
        middle = (low + high + 1) // 2
        if cost_of(*first(middle)) <= limit:
            low = middle
        else:
            high = middle - 1
    counts, layers = first(low)
    _fill(space, keys, ranking, counts, layers, limit, granularity, cost_of)
    while granularity > 1 and cost_of(counts, layers) < enough:
        granularity //= 2
        _fill(space, keys, ranking, counts, layers, limit, granularity, cost_of)
    return counts, layers


def _owners(space: Space) -> Tensor:
    """The number of each structure's group or, counted on from there, of the layer that it is."""
    sizes = torch.tensor([*(group.size for group in space.groups), *[1] * len(space.layers)])
    return torch.repeat_interleave(sizes)


def _fill(
    space: Space,
    keys: Tensor,
    ranking: Tensor,
    counts: list[int],
    layers: list[bool],
    limit: float,
    granularity: int,
    cost_of: CostOfCounts,
) -> None:
    """Adds the best of the absent structures, one step of width or one layer at a time, while they fit."""
    absent = ranking[~_present(space, keys, counts, layers)[ranking]]
    tried: set[int] = set()
    for owner in _owners(space)[absent].tolist():
        if owner in tried:
            continue
        wider, deeper = counts.copy(), layers.copy()
        if owner < len(space.groups):
            step = _step(counts[owner], granularity)
            wider[owner] = min(space.groups[owner].size, counts[owner] - counts[owner] % step + step)
        else:
            deeper[owner - len(space.groups)] = True
        if cost_of(wider, deeper) <= limit:
            counts[:], layers[:] = wider, deeper
        else:
            tried.add(owner)


def check_granularity(granularity: object) -> None:
    """Raise UserError unless a granularity is a whole number, 1 or more."""
    if not isinstance(granularity, int) or isinstance(granularity, bool) or granularity < 1:
        raise UserError(f"granularity {granularity!r} is no whole number above 0; give the multiple to round to, or 1")


def allowed_width(width: int, size: int, granularity: int) -> int:
    """The allowed width nearest to ``width``: from the granularity on its multiples or the full ``size``.

    Below it, any up to :data:`NARROW` and then multiples of that: with 16, they are 1 to 8, 16, 32, 48 and so on. For a
    granularity that is no multiple of it, the greatest common divisor of the two stands in its place.
    """
    if width >= size:
        return size
    step = _step(width, granularity)
    return min(size, max(1, (width + step // 2) // step * step))


def _step(width: int, granularity: int) -> int:
    """From a width to the next allowed one, if it is allowed itself."""
    fine = math.gcd(granularity, NARROW)
    return 1 if width < fine else fine if width < granularity else granularity


def share_keys(space: Space, importance: Tensor) -> Tensor:
    """Keys by which every group keeps the same share of its filters, the most important ones, and every layer stays.

    Args:
        space: the configuration space.
        importance: shape (structures,); only its order within each group counts.
    """
    check_values(space, importance, "importance")
    keys = torch.full((len(space),), torch.inf)
    for group in space.groups:
        order = torch.argsort(importance[group.structures], descending=True, stable=True).cpu()
        keys[group.start + order] = -(torch.arange(group.size) + 0.5) / group.size
    return keys


def uniform_keys(space: Space) -> Tensor:
    """Keys by which every group keeps the same share of its filters, the first ones, and every layer stays."""
    check_is_space(space)
    return share_keys(space, torch.zeros(len(space)))
