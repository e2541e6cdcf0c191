"""The masks: the paper's equations worked by hand, and what growing by schedule promises for any run.

What the masks promise that weigh structures is in test_sampling.py.
"""

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
from nasbench_grow.growing.growing import LARGEST_STEP, Masks
from nasbench_grow.growing.relaxation import RelaxationSettings, RelaxedMasks
from nasbench_grow.growing.sampling import SampledMasks, SamplingSettings
from nasbench_grow.growing.scaling import ScaledMasks, ScalingSettings
from nasbench_grow.structure.discovery import discover
from nasbench_grow.structure.space import Space

RELAXED = RelaxationSettings()
SLOW = ScalingSettings(growth=0.5)
SAMPLED = SamplingSettings(growth=0.2, search=0.7, layer_start=0.0)


@cache
def space_of(make: type) -> Space:
    return discover(seeded(make), EXAMPLE)


@cache
def resnet20_space() -> Space:
    return discover(create("cifar_resnet20", 10, 3), torch.zeros(1, 3, 16, 16))


def relaxed(
    settings: RelaxationSettings = RELAXED, budget: float = 0.5, steps: int = 20, seed: int = 0, net: type = Plain
) -> RelaxedMasks:
    return RelaxedMasks(space_of(net), settings, budget, steps, seed)


def scaled(settings: ScalingSettings = SLOW, net: type = Plain, **changes: Any) -> ScaledMasks:
    arguments = {"budget": 0.5, "granularity": 1, "seed": 0, **changes}
    return ScaledMasks(space_of(net), settings, **arguments)


def sampled(net: type = Plain, **changes: Any) -> SampledMasks:
    arguments = {"settings": SAMPLED, "budget": 0.5, "granularity": 1, "seed": 0, **changes}
    return SampledMasks(space_of(net), **arguments)


KINDS = {"relaxation": relaxed, "scaling": scaled, "sampling": sampled}


def learn(masks: Masks, slopes: Tensor) -> None:
    """One mini-batch whose loss has these gradients with respect to the gates."""
    gates = masks.gates()
    if gates is not None:
        (gates @ slopes + masks.penalty()).backward()
    if masks.weighs:
        masks.weigh(slopes)
    masks.step()


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


def test_the_seed_has_positive_logits_and_all_others_negative_ones():
    masks = relaxed(replace(RELAXED, logit_start=2.0), net=Residual)
    assert torch.equal(masks.present, masks.space.seed())
    assert torch.equal(masks.logits, torch.where(masks.present, 2.0, -2.0))


def test_gates_are_the_sigmoid_of_temperature_times_logit():
    masks = relaxed()
    with torch.no_grad():
        masks.logits.copy_(torch.linspace(-2, 2, len(masks.space)))
    betas, logits = masks.temperatures.tolist(), masks.logits.tolist()
    by_hand = [1 / (1 + math.exp(-beta * logit)) for beta, logit in zip(betas, logits, strict=True)]
    assert masks.gates().tolist() == pytest.approx(by_hand, abs=1e-6)


def test_temperatures_rise_with_the_periods_that_a_structure_was_present():
    masks = relaxed(steps=8, net=Residual)
    tally = masks.space.effective(masks.present).double()
    for period in range(1, 8):
        assert masks.temperatures.tolist() == pytest.approx(
            [RELAXED.beta_start * RELAXED.beta_growth ** (t / 8) for t in tally.tolist()]
        )
        masks.resample(0.1 * period)
        tally += masks.space.effective(masks.present)
    assert tally.max() == 8, "the seed was present in every period"
    assert masks.temperatures.max().item() == pytest.approx(RELAXED.beta_start * RELAXED.beta_growth)


def test_a_filter_in_an_absent_layer_keeps_its_temperature():
    masks = relaxed(net=Residual)
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
    masks = relaxed(replace(RELAXED, price_base=0.7), budget=budget)
    dense = masks.space.macs(masks.space.full())
    sparsity = 1 - masks.space.macs(masks.present) / dense
    assert masks.price == pytest.approx(0.7 * ((1 - budget) - sparsity))
    assert masks.price < 0, "the seed is sparser than the target: growth is rewarded"
    with torch.no_grad():
        masks.logits.fill_(50.0)
    masks.resample(0.5)
    assert masks.price == pytest.approx(0.7 * (1 - budget)), "the dense network has sparsity 0"


def test_the_penalty_is_the_price_times_the_mean_of_the_gates():
    masks = relaxed()
    assert masks.penalty().item() == pytest.approx(masks.price * masks.gates().mean().item())


def test_a_cost_aware_penalty_charges_each_structure_its_share_of_the_macs():
    masks = relaxed(replace(RELAXED, cost_aware=True), net=Residual)
    marginal = masks.space.marginal_macs(masks.space.full())
    charges = marginal / marginal.mean()
    by_hand = masks.price * (charges * masks.gates().double()).mean()
    assert masks.penalty().item() == pytest.approx(by_hand.item(), rel=1e-5)


def test_one_gradient_step_by_hand():
    masks = relaxed(replace(RELAXED, mask_learning_rate=0.2, mask_momentum=0.9), steps=20)
    slopes = slopes_of(masks, 1)
    count = len(masks.space)
    rate = 0.2 * count / 20  # of the mean over the structures, and of a whole run
    before, beta, price = masks.logits.detach().double(), masks.temperatures.double(), masks.price
    gate = torch.sigmoid(beta * before)
    gradient = beta * gate * (1 - gate) * (slopes.double() + price / count)
    learn(masks, slopes)
    assert torch.allclose(masks.logits.detach().double(), before - rate * gradient, atol=1e-6)

    first = masks.logits.detach().double()
    gate = torch.sigmoid(beta * first)
    velocity = 0.9 * gradient + beta * gate * (1 - gate) * (slopes.double() + price / count)
    learn(masks, slopes)
    assert torch.allclose(masks.logits.detach().double(), first - rate * velocity, atol=1e-6)


def test_logits_move_as_far_in_a_run_whatever_its_length_and_the_size_of_the_network():
    moved = []
    for steps, net in ((10, Plain), (40, Plain), (10, Residual)):
        settings = replace(RELAXED, mask_learning_rate=0.01, mask_momentum=0.0, price_base=0.0)
        masks = relaxed(settings, steps=steps, net=net)
        before = masks.logits.detach().clone()
        for _ in range(steps):
            learn(masks, torch.full((len(masks.space),), 1 / len(masks.space)))
        moved.append(float((before - masks.logits.detach()).mean()))
    assert moved == pytest.approx([moved[0]] * 3, rel=0.05) and moved[0] > 0


def test_structures_are_sampled_with_the_probability_of_their_gate():
    masks = relaxed(replace(RELAXED, beta_growth=1.0), steps=2000)  # a constant temperature of 1
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


def test_hardening_keeps_the_positive_logits_that_were_ever_present_and_one_filter_in_every_group():
    masks = relaxed(net=Residual)
    masks.ages.fill_(1)
    with torch.no_grad():
        masks.logits.copy_(slopes_of(masks, 3))
        masks.logits[0] = 0.0  # not above zero
        empty = masks.space.groups[1]
        masks.logits[empty.structures] = -torch.arange(1.0, empty.size + 1).flip(0)
        masks.logits[masks.space.groups[2].structures] = 1.0
    masks.ages[masks.space.groups[2].start + 3] = 0  # it never trained
    hard = masks.harden()
    expected = masks.logits.detach() > 0
    expected[masks.space.groups[2].start + 3] = False
    expected[empty.start + empty.size - 1] = True  # the highest logit of a group with none above zero
    assert torch.equal(hard, expected)


@given(st.integers(0, 1000), st.floats(-50, 50))
@settings(max_examples=30, deadline=None)
def test_no_sampled_group_is_ever_empty(seed, logit):
    masks = relaxed(seed=seed, net=Residual)
    with torch.no_grad():
        masks.logits.fill_(logit)
    for present in (masks.resample(0.3), masks.harden()):
        assert all(present[group.structures].any() for group in masks.space.groups)


# --- growing by schedule ---


@given(
    budget=st.floats(0.05, 1.0),
    seed=st.integers(0, 1000),
    granularity=st.sampled_from([1, 2, 4, 8]),
    periods=st.integers(4, 60),
    net=st.sampled_from([Plain, Residual]),
)
@settings(max_examples=25, deadline=None)
def test_the_cost_follows_the_schedule_to_one_step_of_width_and_never_jumps(budget, seed, granularity, periods, net):
    masks = scaled(budget=budget, seed=seed, granularity=granularity, net=net)
    for period in range(1, periods):
        progress = period / periods
        if masks.grown:
            break
        target = min(masks.target(progress), masks.cost + LARGEST_STEP)
        masks.resample(progress)
        assert masks.cost <= target or torch.equal(masks.present, masks.space.seed())
        for larger in one_step_larger(masks):
            assert masks.space.macs(larger) > target * masks.dense_cost


@given(budget=st.floats(0.05, 1.0), periods=st.integers(2, 100))
@settings(max_examples=30, deadline=None)
def test_the_schedule_rises_from_the_seed_to_the_budget(budget, periods):
    masks = scaled(budget=budget)
    targets = [masks.target(period / periods) for period in range(periods + 1)]
    assert targets[0] == pytest.approx(masks.cost)
    assert targets[-1] == pytest.approx(budget)
    assert targets == sorted(targets)


def test_the_schedule_by_hand():
    plain = ScalingSettings(growth=0.2)
    assert [plain.schedule(at) for at in (0.0, 0.1, 0.2, 1.0)] == pytest.approx([0, 0.5, 1, 1])
    peaked = ScalingSettings(growth=0.2, peak=2.0, freeze=0.6)
    assert [peaked.schedule(at) for at in (0.0, 0.1, 0.2, 0.3, 0.6, 1.0)] == pytest.approx([0, 1, 2, 1.75, 1, 1])


@given(peak=st.floats(1.01, 3.0), growth=st.floats(0.05, 0.5), pruning=st.floats(0.1, 0.5), periods=st.integers(20, 80))
@settings(max_examples=20, deadline=None)
def test_a_peak_is_grown_to_and_pruned_back_to_the_budget(peak, growth, pruning, periods):
    masks = scaled(replace(SLOW, peak=peak, growth=growth, freeze=growth + pruning), budget=0.4)
    assert masks.target(growth) == pytest.approx(min(1.0, masks.cost + peak * (0.4 - masks.cost)))
    largest = masks.cost
    for period in range(1, periods):
        progress = (period + 1) / periods
        masks.resample(progress)
        largest = max(largest, masks.cost)
        assert masks.cost <= min(1.0, 0.4 * peak)
        if progress > growth + pruning + 1 / periods:
            assert masks.cost <= 0.4
    if peak >= 2 and growth * periods >= 10:
        assert largest > 0.5


@pytest.mark.parametrize("chosen", [replace(SLOW, growth=0.3), replace(SLOW, growth=0.3, peak=1.5, freeze=0.5)])
def test_nothing_changes_once_the_network_is_grown(chosen):
    masks = scaled(chosen)
    for progress in (0.1, 0.2, 0.3, 0.4):
        masks.resample(progress)
    grown = masks.resample(0.5).clone()
    assert masks.grown
    for progress in (0.55, 0.8, 1.0):
        learn(masks, 10 * slopes_of(masks, int(100 * progress)))
        assert torch.equal(masks.resample(progress), grown)
    assert torch.equal(masks.harden(), grown)
    assert masks.gates() is None and masks.penalty() is None


@given(seed=st.integers(0, 1000), threshold=st.floats(-5, 5))
@settings(max_examples=50, deadline=None)
def test_any_price_buys_the_same_share_of_every_group(seed, threshold):
    masks = scaled(seed=seed, net=Residual)
    above = [int((masks.keys[group.structures] > threshold).sum()) for group in masks.space.groups]
    assert {group.size for group in masks.space.groups} == {12}
    assert max(above) - min(above) == 0


@pytest.mark.parametrize("budget", [0.25, 0.5, 0.75, 1.0])
def test_without_a_prior_depth_and_width_shrink_together_in_every_stage(budget):
    space = resnet20_space()
    assert [len(stage) for stage in space.stages()] == [3, 2, 2]
    masks = ScaledMasks(space, replace(SLOW, layer_logit=0.0), budget, 1)
    for _ in range(5):
        present = masks.resample(1.0)
    width = torch.tensor([present[group.structures].float().mean() for group in space.groups]).mean()
    for stage in space.stages():
        assert abs(present[stage].float().mean() - width) <= 0.5 / len(stage) + 0.1, "to the nearest whole block"


@pytest.mark.parametrize("seed", range(5))
def test_a_low_layer_logit_brings_width_before_depth(seed):
    depths = []
    for budget in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6):
        chosen = [replace(SLOW, layer_logit=logit) for logit in (0.0, -20.0)]
        pair = [scaled(each, seed=seed, net=Residual, budget=budget) for each in chosen]
        depths.append([int(masks.resample(1.0)[masks.space.filters :].sum()) for masks in pair])
    assert all(shallow <= deeper for deeper, shallow in depths)
    assert any(shallow < deeper for deeper, shallow in depths)


@pytest.mark.parametrize("seed", range(5))
def test_the_layers_that_the_budget_buys_are_there_as_soon_as_they_fit(seed):
    masks = scaled(replace(SLOW, layer_logit=-4.0, growth=1.0), seed=seed, net=Residual, budget=0.7)
    layers = slice(masks.space.filters, len(masks.space))
    planned = masks.keys[layers] == torch.inf
    assert planned.any()
    depths = []
    for progress in (0.1, 0.2, 0.3, 0.5, 0.8):
        present = masks.resample(progress)[layers]
        assert not (present & ~planned).any()
        depths.append(int(present.sum()))
    assert depths == sorted(depths)
    assert depths[2] == int(planned.sum())


def test_the_filters_of_the_seed_stay():
    masks = scaled(budget=0.6)
    seed = masks.space.seed()
    for period in range(1, 20):
        assert masks.resample((period + 1) / 20)[seed].all()


@pytest.mark.parametrize("seed", range(3))
def test_a_cost_aware_price_buys_cheap_widths_before_dear_ones(seed):
    space = resnet20_space()
    costs = space.marginal_macs(space.full())
    cheap, dear = (pick(space.groups, key=lambda group: float(costs[group.start])) for pick in (min, max))
    shares = []
    for aware in (False, True):
        masks = ScaledMasks(space, replace(SLOW, cost_aware=aware), 0.5, 1, seed)
        for _ in range(3):  # a step is limited
            masks.resample(0.75)
        assert masks.cost == pytest.approx(0.5, abs=0.02)
        shares.append([masks.present[group.structures].float().mean() for group in (cheap, dear)])
    assert shares[1][0] > shares[0][0] and shares[1][1] < shares[0][1]


# --- all ---


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_state_continues_identically(kind):
    masks = KINDS[kind](budget=0.6, net=Residual)

    def period(masks: Masks, number: int) -> Tensor:
        learn(masks, slopes_of(masks, number))
        masks.resample(number / 20)
        learnt = masks.logits if isinstance(masks, SampledMasks) else masks.gates()
        return torch.cat([masks.present.float(), *([] if learnt is None else [learnt.detach().clone()])])

    for number in range(2, 6):
        period(masks, number)
    learn(masks, slopes_of(masks, 99))  # a state in the middle of a period
    state = saved(masks.state_dict())
    untouched = copy.deepcopy(state)
    expected = [period(masks, number) for number in range(6, 12)]
    for _ in range(2):  # the state can be loaded again: continuing does not change it
        other = KINDS[kind](budget=0.6, net=Residual, seed=7)
        other.load_state_dict(state)
        assert all(torch.equal(period(other, number), expected[number - 6]) for number in range(6, 12))
    tensors = [key for key, value in state.items() if isinstance(value, Tensor)]
    assert len(tensors) >= 3 and all(torch.equal(state[key], untouched[key]) for key in tensors)


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides_what_is_sampled(kind):
    def sampled(seed: int) -> Tensor:
        masks = KINDS[kind](seed=seed, net=Residual)
        if isinstance(masks, RelaxedMasks):
            with torch.no_grad():
                masks.logits.zero_()
        return masks.resample(0.5)

    assert torch.equal(sampled(1), sampled(1))
    assert not torch.equal(sampled(1), sampled(2))
