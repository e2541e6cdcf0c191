"""The masks against the paper's equations worked by hand, and what the priced masks promise for any run."""

from __future__ import annotations

import copy
import io
import math
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_networks import EXAMPLE, Plain, Residual, seeded
from torch import Tensor

from nasbench_grow.backbones import create
from nasbench_grow.base.errors import UserError
from nasbench_grow.growing.masks import LARGEST_STEP, Masks, PaperMasks, PricedMasks
from nasbench_grow.growing.presets import PRESETS, Preset
from nasbench_grow.structure.discovery import discover
from nasbench_grow.structure.space import Space

PAPER = PRESETS["paper"]
PRICED = replace(PRESETS["default"], growth=0.5, settle=0.8, selectivity=0.3)
KINDS = {"paper": (PaperMasks, PAPER), "priced": (PricedMasks, PRICED)}


@cache
def space_of(make: type) -> Space:
    return discover(seeded(make), EXAMPLE)


@cache
def resnet20_space() -> Space:
    return discover(create("cifar_resnet20", 10, 3), torch.zeros(1, 3, 16, 16))


def paper(
    preset: Preset = PAPER, budget: float = 0.5, periods: int = 20, seed: int = 0, net: type = Plain
) -> PaperMasks:
    return PaperMasks(space_of(net), preset, budget, 1, periods, seed)


def priced(preset: Preset = PRICED, net: type = Plain, **changes: Any) -> PricedMasks:
    arguments = {"budget": 0.5, "granularity": 1, "periods": 20, "seed": 0, **changes}
    return PricedMasks(space_of(net), preset, **arguments)


def learn(masks: Masks, slopes: Tensor, scale: float = 1.0) -> None:
    """One mini-batch whose loss has the gradient ``scale * slopes`` with respect to the gates."""
    gates = masks.gates()
    if gates is not None:
        (gates @ (scale * slopes) + masks.penalty()).backward()
    masks.step(lambda: scale * slopes)


def slopes_of(masks: Masks, seed: int) -> Tensor:
    return torch.randn(len(masks.space), generator=torch.Generator().manual_seed(seed))


def saved(state: dict) -> dict:
    """The state as a checkpoint gives it back."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def one_step_larger(masks: Masks) -> list[Tensor]:
    """Every network that has one allowed step of width, or one layer, more than the sampled one."""
    larger = []
    for group in masks.space.groups:
        width = int(masks.present[group.structures].sum())
        if width < group.size and masks.space.layer_present(masks.present, group.layer):
            step = 1 if width < masks.granularity else masks.granularity
            wider = masks.present.clone()
            absent = torch.nonzero(~wider[group.structures]).flatten()[:step]
            wider[group.start + absent] = True
            larger.append(wider)
    for number in range(masks.space.filters, len(masks.space)):
        if not masks.present[number]:
            deeper = masks.present.clone()
            deeper[number] = True
            larger.append(deeper)
    return larger


# --- the paper's equations ---


def test_gates_are_the_sigmoid_of_temperature_times_logit():
    masks = paper()
    with torch.no_grad():
        masks.logits.copy_(torch.linspace(-2, 2, len(masks.space)))
    betas, logits = masks.temperatures.tolist(), masks.logits.tolist()
    by_hand = [1 / (1 + math.exp(-beta * logit)) for beta, logit in zip(betas, logits, strict=True)]
    assert masks.gates().tolist() == pytest.approx(by_hand, abs=1e-6)


def test_temperatures_rise_with_the_periods_that_a_structure_was_present():
    preset = PAPER
    masks = PaperMasks(space_of(Residual), preset, 0.5, 1, 8, 0)
    tally = masks.space.effective(masks.present).double()
    for period in range(1, 8):
        assert masks.temperatures.tolist() == pytest.approx(
            [preset.beta_start * preset.beta_growth ** (t / 8) for t in tally.tolist()]
        )
        masks.resample(0.1 * period)
        tally += masks.space.effective(masks.present)
    assert tally.max() == 8, "the seed was present in every period"
    assert masks.temperatures.max().item() == pytest.approx(preset.beta_start * preset.beta_growth)


def test_a_filter_in_an_absent_layer_keeps_its_temperature():
    masks = paper(net=Residual)
    before = masks.ages.clone()
    with torch.no_grad():
        masks.logits[: masks.space.filters] = 50.0
        masks.logits[masks.space.filters :] = -50.0
    masks.resample(0.5)
    inside = torch.zeros(len(masks.space), dtype=torch.bool)
    for group in masks.space.groups:
        inside[group.structures] = group.layer is not None
    assert torch.equal(masks.ages[inside], before[inside])
    assert torch.equal(masks.ages[~inside][:-3], before[~inside][:-3] + 1)


@pytest.mark.parametrize("budget", [0.1, 0.5, 1.0])
def test_the_price_is_proportional_to_the_missing_sparsity(budget):
    masks = paper(replace(PAPER, price_base=0.7), budget=budget)
    dense = masks.space.macs(masks.space.full())
    sparsity = 1 - masks.space.macs(masks.present) / dense
    assert masks.price == pytest.approx(0.7 * ((1 - budget) - sparsity))
    assert masks.price < 0, "the seed is sparser than the target: growth is rewarded"
    with torch.no_grad():
        masks.logits.fill_(50.0)
    masks.resample(0.5)
    assert masks.price == pytest.approx(0.7 * (1 - budget)), "the dense network has sparsity 0"


def test_the_penalty_is_the_price_times_the_sum_of_the_gates():
    masks = paper()
    assert masks.penalty().item() == pytest.approx(masks.price * masks.gates().sum().item())


def test_a_cost_aware_penalty_charges_each_structure_its_share_of_the_macs():
    masks = paper(replace(PAPER, cost_aware=True), net=Residual)
    marginal = masks.space.marginal_macs(masks.space.full())
    charges = marginal / marginal.mean()
    by_hand = masks.price * (charges * masks.gates().double()).sum()
    assert masks.penalty().item() == pytest.approx(by_hand.item(), rel=1e-5)


def test_one_gradient_step_by_hand():
    masks = paper(replace(PAPER, mask_learning_rate=0.2, mask_momentum=0.9))
    slopes = slopes_of(masks, 1)
    before, beta, price = masks.logits.detach().double(), masks.temperatures.double(), masks.price
    gate = torch.sigmoid(beta * before)
    gradient = beta * gate * (1 - gate) * (slopes.double() + price)
    learn(masks, slopes)
    assert torch.allclose(masks.logits.detach().double(), before - 0.2 * gradient, atol=1e-6)

    first = masks.logits.detach().double()
    gate = torch.sigmoid(beta * first)
    velocity = 0.9 * gradient + beta * gate * (1 - gate) * (slopes.double() + price)
    learn(masks, slopes)
    assert torch.allclose(masks.logits.detach().double(), first - 0.2 * velocity, atol=1e-6)


def test_structures_are_sampled_with_the_probability_of_their_gate():
    masks = paper(replace(PAPER, beta_growth=1.0), periods=2000)  # a constant temperature of 1
    group = masks.space.groups[1]
    wanted = torch.linspace(0.05, 0.95, group.size)
    with torch.no_grad():
        masks.logits[group.structures] = torch.logit(wanted)
    draws = 2000
    counts = torch.zeros(group.size)
    for _ in range(draws):
        counts += masks.resample(0.5)[group.structures]
    deviation = (counts - draws * wanted) / torch.sqrt(draws * wanted * (1 - wanted))
    assert deviation.abs().max() < 4.5


def test_hardening_keeps_the_positive_logits_and_one_filter_in_every_group():
    masks = paper(net=Residual)
    with torch.no_grad():
        masks.logits.copy_(slopes_of(masks, 3))
        masks.logits[0] = 0.0  # not above zero
        empty = masks.space.groups[1]
        masks.logits[empty.structures] = -torch.arange(1.0, empty.size + 1).flip(0)
    hard = masks.harden()
    expected = masks.logits.detach() > 0
    expected[empty.start + empty.size - 1] = True  # the highest logit of a group with none above zero
    assert torch.equal(hard, expected)


@given(st.integers(0, 1000), st.floats(-50, 50))
@settings(max_examples=30, deadline=None)
def test_no_sampled_group_is_ever_empty(seed, logit):
    masks = paper(seed=seed, net=Residual)
    with torch.no_grad():
        masks.logits.fill_(logit)
    for present in (masks.resample(0.3), masks.harden()):
        assert all(present[group.structures].any() for group in masks.space.groups)


# --- priced masks ---


@given(
    budget=st.floats(0.05, 1.0),
    seed=st.integers(0, 1000),
    granularity=st.sampled_from([1, 2, 4, 8]),
    periods=st.integers(4, 60),
    net=st.sampled_from([Plain, Residual]),
)
@settings(max_examples=25, deadline=None)
def test_the_cost_follows_the_schedule_to_one_step_of_width_and_never_jumps(budget, seed, granularity, periods, net):
    masks = priced(budget=budget, periods=periods, seed=seed, granularity=granularity, net=net)
    dense = masks.dense_cost
    for period in range(1, periods):
        progress = (period + 1) / periods
        if progress > masks.preset.settle:
            break
        learn(masks, slopes_of(masks, period) * masks.space.effective(masks.present))
        target = min(masks.target(progress), masks.cost + LARGEST_STEP)
        masks.resample(progress)
        assert masks.cost <= target or torch.equal(masks.present, masks.space.seed())
        for larger in one_step_larger(masks):
            assert masks.space.macs(larger) > target * dense


@given(budget=st.floats(0.05, 1.0), periods=st.integers(2, 100))
@settings(max_examples=30, deadline=None)
def test_the_schedule_rises_from_the_seed_to_the_budget(budget, periods):
    masks = priced(budget=budget, periods=periods)
    targets = [masks.target(period / periods) for period in range(periods + 1)]
    assert targets[0] == pytest.approx(masks.cost)
    assert targets[-1] == pytest.approx(budget)
    assert targets == sorted(targets)


@given(peak=st.floats(1.0, 3.0), growth=st.floats(0.05, 0.5), pruning=st.floats(0.1, 0.5), periods=st.integers(20, 80))
@settings(max_examples=20, deadline=None)
def test_a_peak_is_grown_to_and_pruned_back_to_the_budget_before_the_structure_settles(peak, growth, pruning, periods):
    masks = priced(replace(PRICED, peak=peak, growth=growth, settle=growth + pruning), budget=0.4, periods=periods)
    assert masks.target(growth) == pytest.approx(min(1.0, masks.cost + peak * (0.4 - masks.cost)))
    largest = masks.cost
    for period in range(1, periods):
        progress = (period + 1) / periods
        masks.resample(progress)
        largest = max(largest, masks.cost)
        assert masks.cost <= min(1.0, 0.4 * peak)
        if progress > masks.preset.settle + 1 / periods:
            assert masks.cost <= 0.4
    if peak >= 2 and growth * periods >= 10:
        assert largest > 0.5


def run(masks: PricedMasks, scale: float = 1.0, repeats: int = 1) -> list[Tensor]:
    """Three mini-batches a period, each ``repeats`` times; what is chosen at every resample."""
    chosen = []
    for period in range(1, masks.periods):
        for batch in range(3):
            slopes = slopes_of(masks, 100 * period + batch) * masks.space.effective(masks.present)
            for _ in range(repeats):
                learn(masks, slopes, scale)
        chosen.append(masks.resample((period + 1) / masks.periods).clone())
    return chosen


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("net", [Plain, Residual])
def test_neither_the_scale_of_the_loss_nor_the_number_of_steps_matters(seed, net):
    reference = run(priced(seed=seed, net=net))
    assert all(map(torch.equal, run(priced(seed=seed, net=net), scale=1e3), reference))
    assert all(map(torch.equal, run(priced(seed=seed, net=net), repeats=10), reference))


def test_filters_that_are_worth_more_than_others_of_their_group_are_preferred():
    masks = priced(replace(PRICED, selectivity=1.0, growth=0.3), periods=40)
    odd = torch.arange(len(masks.space)) % 2 == 1
    slopes = torch.where(odd, 1.0, 0.01)
    before = [int((masks.resample(0.3) & half).sum()) for half in (odd, ~odd)]
    for _ in range(10):
        learn(masks, slopes * masks.space.effective(masks.present))
        masks.resample(0.3)
    after = [int((masks.present & half).sum()) for half in (odd, ~odd)]
    assert after[0] > before[0]
    assert after[1] < before[1]


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"peak": 0.9}, "peak 0.9"), ({"peak": 2.0, "settle": 0.4, "growth": 0.4}, "settle 0.4")],
)
def test_a_peak_out_of_range_or_without_time_to_prune_is_refused(changes, named):
    with pytest.raises(UserError, match=named):
        replace(PRICED, **changes)


def test_nothing_changes_after_settling():
    masks = priced(replace(PRICED, growth=0.3, settle=0.5))
    for progress in (0.1, 0.2, 0.3):
        masks.resample(progress)
    settled = masks.resample(0.5).clone()
    for progress in (0.55, 0.8, 1.0):
        learn(masks, 10 * slopes_of(masks, int(100 * progress)))
        assert torch.equal(masks.resample(progress), settled)
    assert torch.equal(masks.harden(), settled)
    masks.step(lambda: pytest.fail("nothing is measured any more"))


@given(seed=st.integers(0, 1000), threshold=st.floats(-5, 5))
@settings(max_examples=50, deadline=None)
def test_without_selectivity_any_price_buys_the_same_share_of_every_group(seed, threshold):
    masks = priced(replace(PRICED, selectivity=0.0), seed=seed, net=Residual)
    above = [int((masks.noise[group.structures] > threshold).sum()) for group in masks.space.groups]
    assert {group.size for group in masks.space.groups} == {12}
    assert max(above) - min(above) <= 1


@pytest.mark.parametrize("budget", [0.25, 0.5, 0.75, 1.0])
def test_without_a_prior_depth_and_width_shrink_together_in_every_stage(budget):
    space = resnet20_space()
    assert [len(stage) for stage in space.stages()] == [3, 2, 2]
    masks = PricedMasks(space, replace(PRICED, layer_logit=0.0, selectivity=0.0), budget, 1, 20, 0)
    for _ in range(5):
        present = masks.resample(1.0)
    width = torch.tensor([present[group.structures].float().mean() for group in space.groups]).mean()
    for stage in space.stages():
        assert abs(present[stage].float().mean() - width) <= 0.5 / len(stage) + 0.1, "to the nearest whole block"


@pytest.mark.parametrize("seed", range(5))
def test_a_low_layer_logit_brings_width_before_depth(seed):
    depths = []
    for budget in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6):
        presets = [replace(PRICED, layer_logit=logit, selectivity=0.0) for logit in (0.0, -20.0)]
        pair = [priced(preset, seed=seed, net=Residual, budget=budget) for preset in presets]
        depths.append([int(masks.resample(1.0)[masks.space.filters :].sum()) for masks in pair])
    assert all(shallow <= deeper for deeper, shallow in depths)
    assert any(shallow < deeper for deeper, shallow in depths)


@pytest.mark.parametrize("seed", range(5))
def test_the_layers_that_the_budget_buys_are_there_as_soon_as_they_fit(seed):
    masks = priced(replace(PRICED, layer_logit=-4.0, selectivity=0.0, growth=1.0), seed=seed, net=Residual, budget=0.7)
    layers = slice(masks.space.filters, len(masks.space))
    planned = masks.resample(1.0)[layers].clone()
    assert planned.any()
    depths = []
    for progress in (0.1, 0.2, 0.3, 0.5, 0.8):
        present = masks.resample(progress)[layers]
        assert not (present & ~planned).any()
        depths.append(int(present.sum()))
    assert depths == sorted(depths)
    assert depths[2] == int(planned.sum())


def test_independent_noise_is_logistic_and_differs_between_groups():
    masks = [priced(replace(PRICED, noise="independent"), seed=seed, net=Residual) for seed in range(100)]
    noise = torch.stack([mask.noise for mask in masks])
    for threshold in (-2.0, 0.0, 2.0):
        assert (noise > threshold).float().mean() == pytest.approx(1 / (1 + math.exp(threshold)), abs=0.03)
    above = [{int((mask.noise[group.structures] > 0).sum()) for group in mask.space.groups} for mask in masks]
    assert any(max(counts) - min(counts) > 2 for counts in above)


def test_the_seed_filter_stays_while_its_group_is_not_appraised():
    masks = priced(replace(PRICED, selectivity=0.0), budget=0.6)
    seed = masks.space.seed()
    for period in range(1, 20):
        assert masks.resample((period + 1) / 20)[seed].all()


# --- both ---


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_state_continues_identically(kind):
    make, preset = KINDS[kind]
    arguments = (space_of(Residual), preset, 0.6, 1, 12)
    masks = make(*arguments, 0)

    def period(masks: Masks, number: int) -> Tensor:
        learn(masks, slopes_of(masks, number))
        masks.resample(number / 20)
        gates = masks.gates()
        return torch.cat([masks.present.float(), masks.logits.detach(), *([] if gates is None else [gates.detach()])])

    for number in range(2, 6):
        period(masks, number)
    learn(masks, slopes_of(masks, 99))  # a state in the middle of a period
    state = saved(masks.state_dict())
    untouched = copy.deepcopy(state)
    expected = [period(masks, number) for number in range(6, 12)]
    for _ in range(2):  # the state can be loaded again: continuing does not change it
        other = make(*arguments, seed=7)
        other.load_state_dict(state)
        assert all(torch.equal(period(other, number), expected[number - 6]) for number in range(6, 12))
    assert all(torch.equal(state[key], untouched[key]) for key in ("present", "logits"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides_what_is_sampled(kind):
    make, preset = KINDS[kind]

    def sampled(seed: int) -> Tensor:
        masks = make(space_of(Plain), preset, 0.5, 1, 10, seed)
        with torch.no_grad():
            masks.logits.zero_()
        return masks.resample(0.5)

    assert torch.equal(sampled(1), sampled(1))
    assert not torch.equal(sampled(1), sampled(2))


@pytest.mark.parametrize("seed", range(3))
def test_a_cost_aware_price_buys_cheap_widths_before_dear_ones(seed):
    space = resnet20_space()
    costs = space.marginal_macs(space.full())
    cheap, dear = (pick(space.groups, key=lambda group: float(costs[group.start])) for pick in (min, max))
    shares = []
    for aware in (False, True):
        masks = PricedMasks(space, replace(PRICED, cost_aware=aware), 0.5, 1, 20, seed)
        for _ in range(3):  # a step is limited
            masks.resample(0.75)
        assert masks.cost == pytest.approx(0.5, abs=0.02)
        shares.append([masks.present[group.structures].float().mean() for group in (cheap, dear)])
    assert shares[1][0] > shares[0][0] and shares[1][1] < shares[0][1]
