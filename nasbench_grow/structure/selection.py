"""Chooses structures by a key at a given cost: the threshold on the keys is the price that meets the budget.

Whatever the keys mean (a perturbed logit, a norm, a random number), a structure is in if its key is above one
threshold common to the whole network, and the threshold is solved for: the cost falls as it rises.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from nasbench_grow.structure.space import Space

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
    """
    cost = cost or space.macs
    present = _above_threshold(space, keys, limit, granularity, cost)
    enough = limit - UNUSED * cost(space.full())
    allowed = keys > -torch.inf
    absent = [number for number in range(space.filters, len(space)) if allowed[number] and not present[number]]
    for layer in sorted(absent, key=lambda number: -float(keys[number])):
        if cost(present) >= enough:
            break
        # A layer that just missed may leave much unused: let it in beside the present ones, and fewer filters.
        with_layer = keys.clone()
        with_layer[space.filters :][present[space.filters :]] = torch.inf
        with_layer[layer] = torch.inf
        candidate = _above_threshold(space, with_layer, limit, granularity, cost)
        if cost(present) < cost(candidate) <= limit:
            present = candidate
    return present


def _above_threshold(
    space: Space, keys: Tensor, limit: float, granularity: int, cost: Callable[[Tensor], float]
) -> Tensor:
    """The structures above the lowest threshold that ``limit`` allows, and what of the others still fits."""
    ranking = torch.argsort(keys, descending=True, stable=True)[: int((keys > -torch.inf).sum())]
    low, high = 0, len(ranking)  # the number of structures above the threshold: `low` fits, `high` may not
    while low < high:
        middle = (low + high + 1) // 2
        if cost(_first(space, keys, ranking[:middle], granularity)) <= limit:
            low = middle
        else:
            high = middle - 1
    present = _first(space, keys, ranking[:low], granularity)
    present = _fill(space, keys, ranking, present, limit, granularity, cost)
    while granularity > 1 and limit - cost(present) > UNUSED * cost(space.full()):
        granularity //= 2
        present = _fill(space, keys, ranking, present, limit, granularity, cost)
    return present


def _first(space: Space, keys: Tensor, chosen: Tensor, granularity: int) -> Tensor:
    """The chosen structures, each group's width rounded to an allowed one: its lowest keys leave or the next enter."""
    present = torch.zeros(len(space), dtype=torch.bool)
    present[chosen] = True
    for group in space.groups:
        wanted = int(present[group.structures].sum())
        _set_width(present, keys, group.structures, allowed_width(wanted, group.size, granularity))
    return present


def _fill(
    space: Space,
    keys: Tensor,
    ranking: Tensor,
    present: Tensor,
    limit: float,
    granularity: int,
    cost: Callable[[Tensor], float],
) -> Tensor:
    """Adds the best of the absent structures, one step of width or one layer at a time, while they fit."""
    group_of = {number: group for group in space.groups for number in range(group.start, group.start + group.size)}
    tried: set[str | int] = set()
    for number in ranking[~present[ranking]].tolist():
        group = group_of.get(number)
        name: str | int = number if group is None else group.name
        if name in tried:
            continue
        larger = present.clone()
        if group is None:
            larger[number] = True
        else:
            width = int(present[group.structures].sum())
            step = _step(width, granularity)
            _set_width(larger, keys, group.structures, min(group.size, width - width % step + step))
        if cost(larger) <= limit:
            present = larger
        else:
            tried.add(name)
    return present


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


def _set_width(present: Tensor, keys: Tensor, structures: slice, width: int) -> None:
    """Keeps the ``width`` filters of a group that have the highest keys."""
    best = torch.argsort(keys[structures], descending=True, stable=True)[:width]
    present[structures] = False
    present[structures.start + best] = True


def uniform_keys(space: Space) -> Tensor:
    """Keys by which every group keeps the same share of its filters, and every layer stays: uniform width."""
    keys = torch.full((len(space),), torch.inf)
    for group in space.groups:
        keys[group.structures] = -(torch.arange(group.size) + 0.5) / group.size
    return keys
