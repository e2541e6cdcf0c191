"""Which structures are chosen at a cost: never above it, close below it, the best keys first."""

from __future__ import annotations

import math

import pytest
import torch
from families import space
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nasbench_grow.structure.selection import UNUSED, allowed_width, select, uniform_keys
from nasbench_grow.structure.space import Space

few = settings(max_examples=12, deadline=None, derandomize=True, database=None)
families = pytest.mark.parametrize("family", ["cifar_resnet", "mobilenetv2", "vit"])
seeds = st.integers(0, 2**31)
shares = st.floats(0, 1.1)
granularities = st.sampled_from([1, 2, 4, 8, 12, 16, 32])


def random_keys(space: Space, seed: int) -> Tensor:
    return torch.randn(len(space), generator=torch.Generator().manual_seed(seed))


def dense(space: Space) -> int:
    return space.macs(space.full())


def allowed(size: int, granularity: int) -> list[int]:
    """All the widths that a group of ``size`` filters may have, in order."""
    return [width for width in range(1, size + 1) if allowed_width(width, size, granularity) == width]


@families
@few
@given(seed=seeds, share=shares, granularity=granularities)
def test_the_cost_is_at_most_the_target_or_the_network_is_the_smallest(
    family: str, seed: int, share: float, granularity: int
) -> None:
    configuration = space(family)
    target = share * dense(configuration)
    present = select(configuration, random_keys(configuration, seed), target, granularity)
    smallest = all(int(present[group.structures].sum()) == 1 for group in configuration.groups)
    assert configuration.macs(present) <= target or (smallest and not present[configuration.filters :].any())
    assert all(present[group.structures].any() for group in configuration.groups)


@families
@few
@given(seed=seeds, share=st.floats(0.05, 1.1), granularity=granularities)
def test_nothing_more_fits(family: str, seed: int, share: float, granularity: int) -> None:
    configuration = space(family)
    target = share * dense(configuration)
    keys = random_keys(configuration, seed)
    present = select(configuration, keys, target, granularity)
    if configuration.macs(present) > target:
        return  # not even the smallest network fits
    for group in configuration.groups:
        width = int(present[group.structures].sum())
        if width < group.size and configuration.layer_present(present, group.layer):
            wider = next(each for each in allowed(group.size, granularity) if each > width)
            more = present.clone()
            more[group.start + torch.nonzero(~present[group.structures]).flatten()[: wider - width]] = True
            assert configuration.macs(more) > target
    for number in range(configuration.filters, len(configuration)):
        if not present[number]:
            more = present.clone()
            more[number] = True
            assert configuration.macs(more) > target


@families
@few
@given(seed=seeds, share=st.floats(0.1, 1))
def test_the_cost_ends_close_below_the_target(family: str, seed: int, share: float) -> None:
    configuration = space(family)
    target = share * dense(configuration)
    cost = configuration.macs(select(configuration, random_keys(configuration, seed), target))
    assert 0.95 * target <= cost <= target


@families
@few
@given(seed=seeds, one=shares, other=shares, granularity=granularities)
def test_a_higher_target_never_gives_a_network_that_costs_less(
    family: str, seed: int, one: float, other: float, granularity: int
) -> None:
    configuration = space(family)
    keys, low, high = random_keys(configuration, seed), min(one, other), max(one, other)
    costs = [
        configuration.macs(select(configuration, keys, share * dense(configuration), granularity))
        for share in (low, high)
    ]
    # The last step that fits may differ: what a wide layer leaves over at one target, small ones may not fill.
    assert costs[0] <= costs[1] + 0.01 * dense(configuration)


@families
@few
@given(seed=seeds, share=shares, granularity=granularities)
def test_widths_are_allowed_ones_and_the_highest_keys_of_each_group(
    family: str, seed: int, share: float, granularity: int
) -> None:
    configuration = space(family)
    keys = random_keys(configuration, seed)
    present = select(configuration, keys, share * dense(configuration), granularity)
    rounded = present.clone()
    for group in configuration.groups:
        chosen, mine = present[group.structures], keys[group.structures]
        width = int(chosen.sum())
        assert width == group.size or mine[chosen].min() >= mine[~chosen].max()
        surplus = width - max(each for each in allowed(group.size, granularity) if each <= width)
        rounded[group.start + torch.where(chosen, mine, torch.inf).argsort()[:surplus]] = False
    if not torch.equal(rounded, present):  # odd widths only where rounded ones would leave the budget unused
        assert share * dense(configuration) - configuration.macs(rounded) > UNUSED * dense(configuration)


def test_a_coarse_granularity_meets_the_budget_all_the_same() -> None:
    configuration = space("cifar_resnet")
    for seed in range(40):
        for share in (0.25, 0.5, 0.75):
            keys = random_keys(configuration, seed)
            cost = configuration.macs(select(configuration, keys, share * dense(configuration), 8))
            assert 0 <= share - cost / dense(configuration) <= 0.01


@few
@given(seed=seeds)
def test_the_whole_network_is_chosen_where_it_fits(seed: int) -> None:
    configuration = space("cifar_resnet")
    present = select(configuration, random_keys(configuration, seed), dense(configuration))
    assert present.all()


@families
@few
@given(share=st.floats(0.05, 1))
def test_uniform_keys_keep_the_same_share_of_every_group_and_every_layer(family: str, share: float) -> None:
    configuration = space(family)
    target = share * dense(configuration)
    keys = uniform_keys(configuration)
    assert torch.isinf(keys[configuration.filters :]).all()
    present = select(configuration, keys, target)
    if configuration.macs(present) < target / 2:
        return
    assert present[configuration.filters :].all()
    kept = {group: int(present[group.structures].sum()) / group.size for group in configuration.groups}
    middle = torch.tensor(list(kept.values())).median()
    # Widths are rounded, and what a step of a wide group would overshoot goes to groups whose steps are finer.
    assert all(abs(share - middle) <= 1 / group.size + 0.04 for group, share in kept.items())


@given(size=st.integers(1, 300), granularity=st.integers(1, 40))
def test_allowed_widths_grow_with_the_wanted_ones(size: int, granularity: int) -> None:
    widths = [allowed_width(width, size, granularity) for width in range(size + 2)]
    assert widths == sorted(widths)
    assert widths[0] == 1 and widths[size] == widths[size + 1] == size
    for wanted, width in enumerate(widths[:size]):
        assert abs(width - wanted) <= max(1, granularity / 2)
        assert width < granularity or width % granularity == 0 or width == size


@pytest.mark.parametrize(
    ("granularity", "widths"),
    [
        (1, [*range(1, 41)]),
        (4, [1, 2, 3, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40]),
        (8, [*range(1, 9), 16, 24, 32, 40]),
        (12, [1, 2, 3, 4, 8, 12, 24, 36, 40]),
        (16, [*range(1, 9), 16, 32, 40]),
        (32, [*range(1, 9), 16, 24, 32, 40]),
    ],
)
def test_the_allowed_widths_of_forty_filters(granularity: int, widths: list[int]) -> None:
    assert allowed(40, granularity) == widths


@few
@given(seed=st.integers(0, 100), share=st.floats(0.05, 1), granularity=st.sampled_from([1, 8]))
def test_layers_at_minus_infinity_stay_out(seed: int, share: float, granularity: int) -> None:
    configuration = space("cifar_resnet")
    keys = torch.randn(len(configuration), generator=torch.Generator().manual_seed(seed))
    keys[configuration.filters + 1 :: 2] = -torch.inf
    present = select(configuration, keys, share * dense(configuration), granularity)
    assert not present[configuration.filters + 1 :: 2].any()


def test_equal_keys_go_to_the_lower_number() -> None:
    configuration = space("cifar_resnet")
    present = select(configuration, torch.zeros(len(configuration)), dense(configuration) / 2)
    for group in configuration.groups:
        width = int(present[group.structures].sum())
        assert present[group.start : group.start + width].all()


def test_a_target_of_nothing_gives_the_best_filter_of_every_group() -> None:
    configuration = space("cifar_resnet")
    keys = random_keys(configuration, 0)
    present = select(configuration, keys, -math.inf)
    assert [int(present[group.structures].sum()) for group in configuration.groups] == [1] * 12
    for group in configuration.groups:
        assert present[group.start + int(keys[group.structures].argmax())]
