"""Growing that weighs: it meets the budget, spends it where gradients along gates say, and a placebo does not."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import families
import pytest
import torch
import torch.nn.functional as F
from tiny_networks import EXAMPLE, Plain, Residual, seeded, small_job
from torch import Tensor, nn

from nasbench_grow import grow
from nasbench_grow.backbones import create
from nasbench_grow.contract import ElasticModel
from nasbench_grow.growing.growing import LARGEST_STEP, Growing
from nasbench_grow.growing.sampling import LARGEST_SLOPE, SampledMasks, SamplingSettings
from nasbench_grow.structure.discovery import discover
from nasbench_grow.structure.space import Space
from nasbench_grow.tasks.digits import Digits

DEFAULT = SamplingSettings()
Gradients = Callable[[Tensor], Tensor]
"""Made-up gradients along the gates of the present structures."""


@cache
def space_of(make: Callable[[], nn.Module]) -> Space:
    return discover(seeded(make), EXAMPLE)


@cache
def resnet20_space() -> Space:
    return discover(create("cifar_resnet20", 10, 3), torch.zeros(1, 3, 16, 16))


def masks_of(space: Space, settings: SamplingSettings = DEFAULT, budget: float = 0.5, **changes: Any) -> SampledMasks:
    return SampledMasks(space, settings, budget, **{"granularity": 1, **changes})


def savings(space: Space, present: Tensor) -> Tensor:
    """The MACs that a network saves without a filter of a group, or without a layer: gradients of structures that are
    all worth the same for their cost."""

    def saved(structure: int) -> float:
        fewer = present.clone()
        fewer[structure] = False
        return space.macs(present) - space.macs(fewer)

    found = torch.zeros(len(space))
    for group in space.groups:
        found[group.structures] = saved(group.start + int(present[group.structures].sum()) - 1)
    for layer in range(space.filters, len(space)):
        found[layer] = saved(layer)
    return found


def noisy(space: Space, seed: int) -> Gradients:
    """As savings, but some groups and layers are worth several times as much as others, and gradients differ."""
    generator = torch.Generator().manual_seed(seed)
    factors = torch.ones(len(space))
    for part in [*(group.structures for group in space.groups), *range(space.filters, len(space))]:
        factors[part] = torch.randn((), generator=generator).exp()
    return lambda present: savings(space, present) * factors * torch.randn(len(space), generator=generator)


def follow(masks: SampledMasks, gradients: Gradients, steps: int = 200) -> list[tuple[float, Tensor]]:
    """A run as growing does it, one step of each period weighed: the share done and the structures of each period."""
    settings, periods = masks.settings, []
    length = -(-steps // min(round(settings.periods / settings.search), steps))
    for step in range(length, steps, length):
        present = masks.resample(step / steps)
        periods.append((step / steps, present.clone()))
        if masks.weighs:
            masks.weigh(gradients(present))
    return periods


def at_budget(masks: SampledMasks) -> SampledMasks:
    """The same masks at the end of growth, when weighing begins."""
    for step in range(9):
        masks.resample(masks.settings.growth * step / 8)
    assert masks.weighs
    return masks


def searching(share: float) -> float:
    """The progress of a run when a share of the search is over."""
    return DEFAULT.growth + share * DEFAULT.search


def width(space: Space, present: Tensor, group: int) -> float:
    """The share of a group's filters that is present."""
    return float(present[space.groups[group].structures].float().mean())


# --- schedule and budget ---


@pytest.mark.parametrize("steps", [50, 400, 20_000])
@pytest.mark.parametrize("seed", range(10))
def test_the_returned_network_meets_its_budget_and_the_cost_follows_the_schedule(seed: int, steps: int) -> None:
    space, budget = resnet20_space(), (0.25, 0.5, 0.75)[seed % 3]
    masks = masks_of(space, budget=budget, granularity=8, seed=seed)
    before = masks.cost
    for progress, present in follow(masks, noisy(space, seed), steps):
        cost = space.macs(present) / space.macs(space.full())
        assert abs(cost - before) <= LARGEST_STEP
        assert cost <= masks.target(progress) + 1e-9
        before = cost
    assert abs(masks.cost - budget) <= 0.02 and not torch.equal(masks.logits, masks_of(space).logits)
    assert torch.equal(masks.harden(), masks.present)


def test_the_structure_stays_once_the_run_has_committed() -> None:
    space = resnet20_space()
    masks = masks_of(space, granularity=8)
    periods = follow(masks, noisy(space, 0))
    late = [present for progress, present in periods if progress >= DEFAULT.commit]
    assert late and all(torch.equal(present, late[0]) for present in late) and not masks.weighs
    found = [present for progress, present in periods if DEFAULT.growth < progress < DEFAULT.commit]
    assert not torch.equal(found[0], late[0]), "something was found"


def test_a_run_of_a_few_steps_never_grows_by_more_than_a_quarter_at_once() -> None:
    masks = masks_of(space_of(Plain), budget=0.9)
    for step in range(1, 8):
        cost = masks.cost
        masks.resample(min(1.0, step / 4))
        assert masks.cost - cost <= LARGEST_STEP
    assert abs(masks.cost - 0.9) <= 0.02


def test_structures_are_weighed_from_the_end_of_growth_until_the_structure_stays() -> None:
    masks, weighed = masks_of(space_of(Residual)), []
    for step in range(1000):
        masks.resample(step / 1000)
        weighed.append(masks.weighs)
    assert weighed == [DEFAULT.growth <= step / 1000 < DEFAULT.commit for step in range(1000)]


def test_whatever_the_budget_growth_reaches_it_to_the_last_bit() -> None:
    space = space_of(Plain)
    for budget in (number / 100 for number in range(30, 101)):
        for fixed in (1e2, 1e3, 1e4, 2e4):
            masks = masks_of(space, budget=budget, cost_of=lambda present, fixed=fixed: fixed + space.macs(present))
            assert masks.target(DEFAULT.growth) == masks.target(1.0) == budget and masks.target(0.0) == masks.cost


def test_whatever_the_width_of_a_group_it_is_its_first_filters_that_are_there() -> None:
    space = space_of(Residual)
    for _, present in follow(masks_of(space), noisy(space, 0)):
        for group in space.groups:
            there = present[group.structures].int()
            assert there[0] == 1 and (there.diff() <= 0).all()


def test_layers_come_the_later_the_lower_they_start() -> None:
    space = space_of(Residual)

    def layers(start: float) -> int:
        masks = at_budget(masks_of(space, replace(DEFAULT, layer_start=start), 0.2))
        return sum(int(masks.resample(searching(0.01 * draw))[space.filters :].sum()) for draw in range(40))

    assert layers(-0.5) < layers(0.0) < layers(0.5)


def test_widths_are_not_left_to_chance_but_layers_are() -> None:
    def sampled(structures: Any) -> list[list[Tensor]]:
        settings = replace(DEFAULT, structures=structures, layer_start=0.0)
        runs = [masks_of(space_of(Residual), settings, 0.75, seed=seed) for seed in range(2)]
        return [[present for _, present in follow(masks, lambda present: torch.ones(len(present)))] for masks in runs]

    one, other = sampled("filters")
    assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))
    one, other = sampled("layers")
    assert not all(torch.equal(*pair) for pair in zip(one, other, strict=True))


def test_a_temperature_rises_with_the_periods_in_which_its_structure_was_present() -> None:
    space = space_of(Residual)
    masks = masks_of(space, replace(DEFAULT, layer_start=0.0))
    periods = [present for progress, present in follow(masks, noisy(space, 0), 4000) if progress < DEFAULT.commit]
    seen = torch.stack(periods)[:, space.filters :].sum(0)
    expected = DEFAULT.beta_start * DEFAULT.beta_growth ** (seen / len(periods))
    assert torch.allclose(masks.temperatures[len(space.groups) :], expected.float(), rtol=0.1)


@pytest.mark.parametrize("budget", [0.15, 0.5])
def test_plain_layers_stay_from_the_start(budget: float) -> None:
    space = families.space("vgg_bn")
    masks = masks_of(space, budget=budget)
    assert space.layers
    assert all(present[space.filters :].all() for _, present in follow(masks, noisy(space, 0)))
    assert abs(masks.cost - budget) <= 0.02


@pytest.mark.parametrize("structures", ["filters", "layers"])
def test_what_is_not_grown_is_there_from_the_start_and_learns_nothing(structures: Any) -> None:
    space = space_of(Residual)
    masks = masks_of(space, replace(DEFAULT, structures=structures), 0.75)
    start, groups = masks.logits.clone(), len(space.groups)
    grown, fixed = slice(space.filters, None), slice(0, space.filters)
    learns, rests = slice(groups, None), slice(0, groups)
    if structures == "filters":
        grown, fixed, learns, rests = fixed, grown, rests, learns
    assert all(present[fixed].all() for _, present in follow(masks, noisy(space, 0)))
    assert masks.cost <= 0.75 + 1e-9 and not masks.present[grown].all()
    assert torch.equal(masks.logits[rests], start[rests]) and not torch.equal(masks.logits[learns], start[learns])


# --- what is learnt ---


def test_one_step_of_learning_by_hand() -> None:
    space = space_of(Residual)
    masks = at_budget(masks_of(space))
    present = space.full()
    for group, filters in zip(space.groups, (9, 7, 1, 5), strict=True):
        present[group.start + filters : group.start + group.size] = False
    present[space.filters + 2] = False  # the third block, and the last group in it
    masks.present, before = present.clone(), masks.logits.clone()
    draws = [torch.randn(len(space), generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    steps = [savings(space, present) * draw for draw in draws]
    for gradients in steps:
        gradients[space.filters + 1] *= 1e-3  # far less than a slope may be
        masks.weigh(gradients)
    masks.resample(searching(0.5))

    root = ((steps[0] ** 2 + steps[1] ** 2) / 2).sqrt().tolist()
    cost = savings(space, present).tolist()
    known = {  # number of the logit: worth and cost of each structure, how many
        **{
            number: (sum(root[group.start : group.start + count]) / count, cost[group.start], count)
            for number, (group, count) in enumerate(zip(space.groups[:2], (9, 7), strict=True))
        },
        **{4 + layer: (root[space.filters + layer], cost[space.filters + layer], 1) for layer in range(2)},
    }
    price = sum(count * worth for worth, _, count in known.values()) / sum(n * each for _, each, n in known.values())
    moved = [0.0] * 7  # a group of one filter, the absent layer and the group in it stay
    for number, (worth, each, _) in known.items():
        slope = math.log(worth / (each * price))
        moved[number] = DEFAULT.travel / DEFAULT.periods * max(-LARGEST_SLOPE, min(LARGEST_SLOPE, slope))
    assert (masks.logits - before).tolist() == pytest.approx(moved, abs=1e-5)
    assert moved[5] == pytest.approx(-LARGEST_SLOPE * DEFAULT.travel / DEFAULT.periods)
    assert len(set(moved)) == 5 and moved[5] == min(moved), "of the others none is at its limit"


class Mixed(Residual):
    """Three residual blocks and a plain layer, each of which can be removed."""

    def __init__(self) -> None:
        super().__init__()
        convolution = nn.Conv2d(12, 12, 3, padding=1, bias=False)
        self.plain = nn.Sequential(convolution, nn.BatchNorm2d(12), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.plain(self.blocks(F.relu(self.norm(self.stem(x))))).mean((2, 3)))


@pytest.mark.parametrize("placebo", [False, True])
def test_plain_layers_have_no_gates_and_learn_nothing_where_layers_are_grown(placebo: bool) -> None:
    space = space_of(Mixed)
    assert [layer.bypass is None for layer in space.layers] == [True, True, True, False]
    masks = at_budget(masks_of(space, replace(DEFAULT, structures="layers"), 0.9, placebo=placebo))
    masks.present, start = space.full(), masks.logits.clone()
    gradients = savings(space, masks.present) * torch.tensor([*[1.0] * space.filters, 1.0, 2.0, 4.0, 0.0])
    masks.weigh(gradients)
    masks.resample(searching(0.5))
    assert torch.equal(masks.logits != start, torch.tensor([*[False] * len(space.groups), True, True, True, False]))


@pytest.mark.parametrize("group", [0, 2])
@pytest.mark.parametrize("factor", [5.0, 0.2])
def test_a_group_that_is_worth_more_for_its_cost_becomes_wide_and_one_worth_less_narrow(
    group: int, factor: float
) -> None:
    space = space_of(Plain)
    masks, alike = masks_of(space), masks_of(space)
    weight = torch.ones(len(space))
    weight[space.groups[group].structures] = factor
    follow(masks, lambda present: savings(space, present) * weight)
    follow(alike, lambda present: savings(space, present))
    found, even = ([width(space, each.present, number) for number in range(3)] for each in (masks, alike))
    assert (found[group] > even[group] and found[group] == max(found)) == (factor > 1)
    assert (found[group] < even[group] and found[group] == min(found)) == (factor < 1)


@pytest.mark.parametrize("factor", [5.0, 0.2])
@pytest.mark.parametrize("seed", range(3))
def test_a_layer_stays_that_is_worth_more_for_its_cost_and_one_goes_that_is_worth_less(
    seed: int, factor: float
) -> None:
    space = space_of(Residual)
    masks = masks_of(space, replace(DEFAULT, layer_start=0.1, travel=4.0), seed=seed)
    weight = torch.ones(len(space))
    weight[space.filters + 1] = factor
    follow(masks, lambda present: savings(space, present) * weight, 2000)
    assert bool(masks.present[space.filters + 1]) == (factor > 1)


def test_where_all_are_worth_the_same_for_their_cost_nothing_moves() -> None:
    space = resnet20_space()
    masks = masks_of(space)
    start = masks.logits.clone()
    follow(masks, lambda present: savings(space, present))
    assert torch.allclose(masks.logits, start, atol=1e-3)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_scale_of_the_loss_does_not_matter(scale: float) -> None:
    space = space_of(Residual)
    one, other = masks_of(space), masks_of(space)
    gradients, again = noisy(space, 0), noisy(space, 0)
    follow(one, gradients)
    follow(other, lambda present: scale * again(present))
    assert torch.allclose(one.logits, other.logits, atol=1e-4) and torch.equal(one.present, other.present)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_gradients_that_are_no_number_teach_nothing_and_growth_goes_on(value: float) -> None:
    space = space_of(Residual)
    masks = at_budget(masks_of(space))
    start = masks.logits.clone()
    masks.weigh(torch.full((len(space),), value))
    masks.resample(searching(0.2))
    assert torch.equal(masks.logits, start)

    alone = noisy(space, 0)(masks.present)
    alone[0] = value  # a filter of the first group
    masks.weigh(alone)
    masks.resample(searching(0.4))
    moved = masks.logits - start
    assert moved[0] == 0 and moved[1:].min() < 0 < moved[1:].max(), "the others are measured against each other"
    follow(masks, noisy(space, 0))
    assert masks.committed and masks.logits.isfinite().all() and 0.45 <= masks.cost <= 0.5


def test_gradients_of_zero_teach_nothing() -> None:
    space = space_of(Residual)
    masks = masks_of(space)
    start = masks.logits.clone()
    follow(masks, lambda present: torch.zeros(len(space)))
    assert torch.equal(masks.logits, start) and abs(masks.cost - 0.5) <= 0.02


# --- costs of another kind ---


def test_where_time_is_the_cost_what_it_saves_is_what_counts() -> None:
    space = space_of(Plain)
    rates = (1.0, 4.0, 1.0)

    def seconds(present: Tensor) -> float:
        return 1.0 + sum(rate * width(space, present, number) for number, rate in enumerate(rates))

    masks = masks_of(space, budget=0.6, cost_of=seconds)
    follow(masks, lambda present: torch.ones(len(space)))
    assert masks.logits[1] < 0 < min(masks.logits[0], masks.logits[2]), "worth the same, but dearer"
    assert masks.logits[0] == pytest.approx(masks.logits[2])
    assert 0.55 <= seconds(masks.present) / seconds(space.full()) <= 0.6


def test_what_saves_no_time_by_leaving_is_not_judged() -> None:
    space = space_of(Plain)

    def seconds(present: Tensor) -> float:
        """The second group costs nothing, and the narrower the third is, the longer it takes."""
        return 1.0 + 6 * width(space, present, 0) - 0.1 * width(space, present, 2)

    masks = at_budget(masks_of(space, budget=0.6, cost_of=seconds))
    for step in range(10):
        masks.weigh(torch.ones(len(space)))
        masks.resample(searching(step / 10))
    assert masks.logits.tolist() == pytest.approx([0.0, 0.0, 0.0], abs=1e-5)


# --- the placebo ---


def test_a_placebo_moves_as_much_but_in_other_places() -> None:
    space = resnet20_space()
    masks, placebo = masks_of(space), masks_of(space, placebo=True)
    placebo.load_state_dict(at_budget(masks).state_dict())
    start, gradients = masks.logits.clone(), noisy(space, 0)(masks.present)
    for each in (masks, placebo):
        each.weigh(gradients)
        each.resample(searching(0.1))
    learnt, given = masks.logits - start, placebo.logits - start
    for part in (slice(0, len(space.groups)), slice(len(space.groups), None)):
        assert learnt[part].abs().max() > 0.01 and not torch.allclose(learnt[part], given[part])
        assert torch.allclose(learnt[part].sort().values, given[part].sort().values)
    assert torch.allclose(given, learnt[placebo.places])


def test_with_a_placebo_the_group_that_pays_gains_nothing_of_it() -> None:
    space = space_of(Plain)
    weight = torch.ones(len(space))
    weight[space.groups[0].structures] = 5.0
    masks, placebo = masks_of(space), masks_of(space, placebo=True)
    for each in (masks, placebo):
        follow(each, lambda present: savings(space, present) * weight)
    assert masks.logits.argmax() == 0 and placebo.logits.argmax() != 0
    assert abs(placebo.cost - 0.5) <= 0.02


def test_what_a_placebo_learns_goes_to_other_places_for_another_seed() -> None:
    space = resnet20_space()
    places = [masks_of(space, seed=seed, placebo=True).places for seed in range(5)]
    assert len({str(each.tolist()) for each in places}) == 5
    for each in places:
        assert torch.equal(each.sort().values, torch.arange(len(each))) and (each != torch.arange(len(each))).all()


# --- whole runs ---


def test_masks_that_are_taken_up_within_a_period_go_on_as_they_would_have() -> None:
    space = space_of(Residual)
    settings = replace(DEFAULT, layer_start=0.0)
    masks, again = (masks_of(space, settings, seed=seed) for seed in (4, 9))
    gradients = [torch.randn(len(space), generator=torch.Generator().manual_seed(seed)) for seed in range(8)]
    at_budget(masks).weigh(gradients[0])
    masks.resample(searching(0.1))
    masks.weigh(gradients[1])
    again.load_state_dict(copy.deepcopy(masks.state_dict()))
    for step in range(2, 8):
        assert masks.weighs and again.weighs
        for each in (masks, again):
            each.weigh(gradients[step])
        assert torch.equal(masks.resample(searching(0.1 * step)), again.resample(searching(0.1 * step)))
        assert torch.equal(masks.logits, again.logits) and torch.equal(masks.ages, again.ages)


class Watched(Growing):
    """Growing that adds up the MACs of what trains, and counts the steps that are weighed."""

    trained = weighed = 0

    def after_backward(self, model: ElasticModel) -> None:
        self.trained += model.macs
        self.weighed += self.masks.weighs
        super().after_backward(model)


def test_nothing_is_billed_for_weighing() -> None:
    job = small_job(Residual, epochs=4, steps=5)
    model = job.model()
    masks = masks_of(model.space, replace(DEFAULT, search=0.5), job.budget)
    growing = Watched(model, masks, job.total_steps, periods=job.total_steps)
    for _ in job.fit(model, growing):
        pass
    assert growing.weighed >= 5
    assert job.meter.total == 3 * job.recipe.batch_size * growing.trained


class TwoBranches(nn.Module):
    """Two alike branches of two convolutions, one for each input channel: (B, 2, 8, 8) to (B, 10)."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()

        def conv(channels: int) -> nn.Sequential:
            layer = nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False)
            return nn.Sequential(layer, nn.BatchNorm2d(width), nn.ReLU())

        self.digit = nn.Sequential(conv(1), conv(width))
        self.noise = nn.Sequential(conv(1), conv(width))
        self.fc = nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.cat([self.digit(x[:, :1]), self.noise(x[:, 1:])], 1).mean((2, 3)))


@pytest.mark.parametrize("seed", range(3))
def test_a_branch_that_sees_the_digit_becomes_wider_than_one_that_sees_noise(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    digits = Digits().load(torch.device("cpu")).train.epoch(0, 64, 0)
    batches = [(torch.cat([x, torch.randn(x.shape, generator=generator)], 1), targets) for x, targets in digits]
    model = seeded(TwoBranches, seed)
    options = {"epochs": 16, "granularity": 1, "settings": SamplingSettings(least_search=0), "progress": False}
    grown = grow(model, torch.zeros(1, 2, 8, 8), batches, seed=seed, **options).network
    digit, noise = (sum(part[0].out_channels for part in branch) for branch in (grown.digit, grown.noise))
    assert digit > noise
