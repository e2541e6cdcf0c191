"""Growing that samples: it meets the budget, learns from what the samples' losses tell, and a placebo does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from tiny_networks import EXAMPLE, Plain, Residual, seeded, small_job
from torch import Tensor, nn

from nasbench_grow import grow
from nasbench_grow.backbones import create
from nasbench_grow.contract import ElasticModel
from nasbench_grow.growing.growing import LARGEST_STEP, Growing
from nasbench_grow.growing.sampling import SampledMasks, SamplingSettings
from nasbench_grow.structure.discovery import discover
from nasbench_grow.structure.gating import GatedNetwork
from nasbench_grow.structure.space import Space
from nasbench_grow.tasks.digits import Digits

DEFAULT = SamplingSettings()
SAMPLES = 16


@cache
def space_of(make: Callable[[], nn.Module]) -> Space:
    return discover(seeded(make), EXAMPLE)


@cache
def resnet20_space() -> Space:
    return discover(create("cifar_resnet20", 10, 3), torch.zeros(1, 3, 16, 16))


def follow(
    masks: SampledMasks, loss: Callable[[Tensor], float] = lambda present: 0.0, steps: int = 200
) -> list[tuple[float, Tensor]]:
    """A run whose networks have the losses that ``loss`` gives: the share done and the structures of each period."""
    periods = []
    for step in range(1, steps):
        present = masks.resample(step / steps)
        periods.append((step / steps, present.clone()))
        if rivals := masks.rivals():
            masks.learn(torch.tensor([loss(rival) for rival in rivals]))
    return periods


def at_budget(masks: SampledMasks) -> SampledMasks:
    """The same masks at the end of growth, when networks begin to be compared."""
    for step in range(8):
        masks.resample(DEFAULT.growth * step / 8)
    return masks


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("budget", [0.25, 0.5, 0.75])
def test_the_returned_network_meets_its_budget_and_the_cost_follows_the_schedule(budget: float, seed: int) -> None:
    space = resnet20_space()
    masks = SampledMasks(space, DEFAULT, budget, samples=2, granularity=8, seed=seed)
    before = masks.cost
    for progress, present in follow(masks, lambda present: float(present[::7].sum())):
        cost = space.macs(present) / space.macs(space.full())
        assert abs(cost - before) <= LARGEST_STEP
        assert cost <= masks.target(progress) + 1e-9
        before = cost
    assert abs(masks.cost - budget) <= 0.02
    assert torch.equal(masks.harden(), masks.present)


def test_the_structure_stays_once_the_run_has_committed() -> None:
    masks = SampledMasks(resnet20_space(), DEFAULT, 0.5, SAMPLES, granularity=8)
    late = [present for progress, present in follow(masks) if progress >= DEFAULT.commit]
    assert late and all(torch.equal(present, late[0]) for present in late)
    early = [present for progress, present in follow(masks) if progress < DEFAULT.commit]
    assert not masks.rivals() and all(torch.equal(present, late[0]) for present in early), "no way back"


def test_a_run_of_a_few_steps_never_grows_by_more_than_a_quarter_at_once() -> None:
    masks = SampledMasks(space_of(Plain), DEFAULT, 0.9, SAMPLES, granularity=1)
    costs = [masks.cost]
    for step in range(1, 8):
        masks.resample(min(1.0, step / 4))
        masks.rivals()
        costs.append(masks.cost)
    assert max(after - before for before, after in pairwise(costs)) <= LARGEST_STEP
    assert abs(costs[-1] - 0.9) <= 0.02


def test_the_samples_of_a_period_cost_the_same() -> None:
    space = resnet20_space()
    masks = SampledMasks(space, DEFAULT, 0.5, SAMPLES, granularity=1)
    present = at_budget(masks).resample(0.1)
    costs = [space.macs(rival) / space.macs(space.full()) for rival in (present, *masks.rivals())]
    assert len(costs) == 1 + SAMPLES and max(costs) - min(costs) < 0.01


def test_whatever_the_width_of_a_group_it_is_its_first_filters_that_are_there() -> None:
    space = space_of(Residual)
    masks = at_budget(SampledMasks(space, DEFAULT, 0.5, samples=4, granularity=1))
    for progress in (0.08, 0.1, 0.25):
        for present in (masks.resample(progress), *masks.rivals()):
            for group in space.groups:
                there = present[group.structures].int()
                assert there[0] == 1 and (there.diff() <= 0).all()


def test_networks_are_compared_only_once_the_network_has_grown() -> None:
    masks = SampledMasks(space_of(Residual), DEFAULT, 0.5, samples=2, granularity=1)
    compared = []
    for step in range(200):
        masks.resample(step / 200)
        compared.append(bool(masks.rivals()))
    first, last = round(200 * DEFAULT.growth), round(200 * DEFAULT.commit)
    assert compared == [first <= step < last for step in range(200)]


@pytest.mark.parametrize("steps", [500, 4_000, 20_000])
def test_comparisons_cost_their_share_of_the_run(steps: int) -> None:
    share = DEFAULT.samples(steps) * min(DEFAULT.periods, DEFAULT.search * steps) / 3 / steps
    assert DEFAULT.samples(steps) % 2 == 0
    assert share == pytest.approx(DEFAULT.compared, rel=0.1) or DEFAULT.samples(steps) == 2


def test_layers_come_the_later_the_lower_they_start() -> None:
    space = space_of(Residual)

    def layers(start: float) -> int:
        masks = at_budget(SampledMasks(space, replace(DEFAULT, layer_start=start), 0.2, samples=8, granularity=1))
        masks.resample(0.1)
        return sum(int(rival[space.filters :].sum()) for rival in masks.rivals())

    assert layers(-0.5) < layers(0.0) < layers(0.5)


def width(space: Space, present: Tensor, group: int) -> float:
    """The share of a group's filters that is present."""
    return float(present[space.groups[group].structures].float().mean())


@pytest.mark.parametrize("group", [0, 2])
@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_a_group_whose_width_lowers_the_loss_becomes_wide(group: int, scale: float) -> None:
    space = space_of(Plain)
    masks = SampledMasks(space, DEFAULT, 0.5, SAMPLES, granularity=1)
    follow(masks, lambda present: 5.0 - scale * width(space, present, group))
    widths = [width(space, masks.present, index) for index in range(len(space.groups))]
    assert masks.logits.argmax() == group and max(widths) == widths[group]


@pytest.mark.parametrize("worth", [1.0, -1.0])
def test_a_layer_stays_if_it_lowers_the_loss_and_goes_if_it_raises_it(worth: float) -> None:
    space = space_of(Residual)
    masks = SampledMasks(space, DEFAULT, 0.5, SAMPLES, granularity=1, seed=1)
    follow(masks, lambda present: 2.0 - worth * float(present[space.filters + 1]))
    assert bool(masks.present[space.filters + 1]) == (worth > 0)


def test_a_placebo_gives_the_evidence_on_one_structure_to_another() -> None:
    space = space_of(Plain)
    masks = SampledMasks(space, DEFAULT, 0.5, SAMPLES, granularity=1, placebo=True)
    follow(masks, lambda present: -width(space, present, 0))
    learnt = SampledMasks(space, DEFAULT, 0.5, SAMPLES, granularity=1)
    follow(learnt, lambda present: -width(space, present, 0))
    assert learnt.logits.argmax() == 0
    assert masks.logits[: len(space.groups)].argmax() != 0, "the group that pays gains nothing of it"
    assert torch.equal(masks.places.sort().values, torch.arange(len(masks.logits))), "nothing is lost"
    assert abs(masks.cost - 0.5) <= 0.02


def test_a_placebo_moves_as_much_as_what_it_is_a_placebo_for_but_nothing_at_its_own_place() -> None:
    space = space_of(Residual)
    groups = len(space.groups)
    masks, placebo = (SampledMasks(space, DEFAULT, 0.2, 1000, granularity=1, placebo=each) for each in (False, True))
    placebo.load_state_dict(at_budget(masks).state_dict())
    weights = torch.randn(len(space), generator=torch.Generator().manual_seed(0))
    for each in (masks, placebo):
        each.resample(0.2 - 1e-6)
        each.learn(torch.stack([rival.float() @ weights for rival in each.rivals()]))
    for part in (slice(0, groups), slice(groups, None)):
        assert masks.logits[part].abs().max() > 0.1
        assert torch.allclose(masks.logits[part].sort().values, placebo.logits[part].sort().values)
        learnt = masks.logits[part] != 0
        assert not torch.isclose(masks.logits[part], placebo.logits[part])[learnt].any()


@pytest.mark.parametrize("seed", range(5))
def test_losses_that_tell_nothing_move_hardly_anything_and_those_that_do_move_much(seed: int) -> None:
    space = resnet20_space()
    groups, noise = len(space.groups), torch.Generator().manual_seed(seed)
    settings = replace(DEFAULT, structures="filters")
    blind = SampledMasks(space, settings, 0.5, SAMPLES, granularity=1, seed=seed)
    follow(blind, lambda present: float(torch.randn((), generator=noise)))
    seeing = SampledMasks(space, settings, 0.5, SAMPLES, granularity=1, seed=seed)
    follow(seeing, lambda present: float(torch.randn((), generator=noise)) - 50 * width(space, present, 0))
    assert (blind.logits == 0).float().mean() >= 0.8, "an interval that holds zero is no evidence"
    assert seeing.logits[:groups].argmax() == 0 and seeing.logits[0] > 2 * blind.logits.abs().max()


def test_the_evidence_of_a_placebo_goes_to_other_places_for_another_seed() -> None:
    space = resnet20_space()
    places = [SampledMasks(space, DEFAULT, 0.5, 2, granularity=1, seed=seed, placebo=True).places for seed in range(5)]
    assert len({str(each.tolist()) for each in places}) == 5
    assert all((each != torch.arange(len(each))).all() for each in places)


@pytest.mark.parametrize("scale, offset", [(1e3, 0.0), (1.0, 100.0), (0.01, -3.0)])
def test_neither_the_scale_nor_the_offset_of_the_losses_matters(scale: float, offset: float) -> None:
    space = space_of(Residual)
    weights = torch.randn(len(space), generator=torch.Generator().manual_seed(0), dtype=torch.double)
    one, other = (SampledMasks(space, DEFAULT, 0.5, samples=200, granularity=1) for _ in range(2))
    for progress in (0.04, 0.08, 0.12, 0.16, 0.19, 0.2):
        assert torch.equal(one.resample(progress), other.resample(progress))
        rivals = one.rivals()
        if other.rivals():
            losses = torch.stack([rival.double() @ weights for rival in rivals])
            one.learn(losses)
            other.learn(scale * losses + offset)
    assert one.committed and torch.allclose(one.logits, other.logits, atol=1e-4)
    assert (one.logits[: len(space.groups)].abs() > 0.1).any()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_rival_whose_loss_is_no_number_teaches_nothing_and_growth_goes_on(value: float) -> None:
    space = space_of(Plain)
    masks = SampledMasks(space, DEFAULT, 0.5, SAMPLES, granularity=1)
    once = iter([value])
    follow(masks, lambda present: next(once, -width(space, present, 0)))
    assert masks.logits.isfinite().all() and masks.logits.argmax() == 0
    assert abs(masks.cost - 0.5) <= 0.02


def test_losses_that_do_not_differ_teach_nothing() -> None:
    masks = SampledMasks(space_of(Residual), DEFAULT, 0.5, SAMPLES, granularity=1)
    start = masks.logits.clone()
    follow(masks, lambda present: 1.0)
    assert torch.allclose(masks.logits, start, atol=1e-4)


def test_a_temperature_rises_with_the_periods_in_which_its_structure_was_present() -> None:
    space = space_of(Residual)
    masks = SampledMasks(space, DEFAULT, 0.5, SAMPLES, granularity=1)
    periods = [present for progress, present in follow(masks) if progress < DEFAULT.commit]
    seen = torch.stack(periods)[:, space.filters :].sum(0)
    expected = DEFAULT.beta_start * DEFAULT.beta_growth ** (seen / len(periods))
    assert torch.allclose(masks.temperatures[len(space.groups) :], expected.float(), rtol=0.05)


def test_masks_that_are_taken_up_again_go_on_as_they_would_have() -> None:
    masks, again = (
        SampledMasks(space_of(Residual), DEFAULT, 0.5, SAMPLES, granularity=1, seed=seed) for seed in (4, 9)
    )

    def go_on(masks: SampledMasks, progress: float) -> list[Tensor]:
        present = masks.resample(progress)
        rivals = masks.rivals()
        masks.learn(torch.stack([rival.float().sum() for rival in rivals]))
        return [present, *rivals]

    at_budget(masks)
    for progress in (0.08, 0.1):
        go_on(masks, progress)
    again.load_state_dict(masks.state_dict())
    for progress in (0.12, 0.14):
        pairs = zip(go_on(masks, progress), go_on(again, progress), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)
    assert torch.equal(masks.logits, again.logits)


class Watched(Growing):
    """Growing that adds up the forward MACs of what trains and of what is compared."""

    trained = compared = 0

    def before_step(self, model: ElasticModel, step: int, steps: int) -> None:
        super().before_step(model, step, steps)
        self.trained += model.macs
        self.compared += sum(map(model.space.macs, self._rivals))


def test_what_is_compared_is_billed_as_forward_passes() -> None:
    job = small_job(Residual, epochs=4, steps=5)
    model = job.model()
    masks = SampledMasks(model.space, DEFAULT, job.budget, SAMPLES, granularity=1)
    growing = Watched(model, masks, job.total_steps, periods=job.total_steps)
    for _ in job.fit(model, growing):
        pass
    assert growing.compared > 0
    forward_and_backward = 3 * growing.trained + growing.compared
    assert job.meter.total == pytest.approx(job.recipe.batch_size * forward_and_backward, rel=1e-4)


def test_a_group_that_a_normalised_convolution_takes_in_has_gates_whose_gradients_add_up_to_zero() -> None:
    network = seeded(Plain)
    space = space_of(Plain)
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(64, 1, 8, 8, generator=generator), torch.randint(10, (64,), generator=generator)
    gates = torch.full((len(space),), 0.7, requires_grad=True)
    loss = nn.functional.cross_entropy(GatedNetwork(space, space.full(), network.train())(inputs, gates), targets)
    (slopes,) = torch.autograd.grad(loss, gates)
    for group in space.groups[:2]:  # the last one goes into the classifier, which nothing normalises
        assert slopes[group.structures].sum().abs() < 1e-3 * slopes[group.structures].abs().sum()
    last = slopes[space.groups[2].structures]
    assert last.sum().abs() > 0.01 * last.abs().sum()


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


@pytest.mark.parametrize("seed", range(2))
def test_a_branch_that_sees_the_digit_becomes_wider_than_one_that_sees_noise(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    digits = Digits().load(torch.device("cpu")).train.epoch(0, 64, 0)
    batches = [(torch.cat([x, torch.randn(x.shape, generator=generator)], 1), targets) for x, targets in digits]
    example = torch.zeros(1, 2, 8, 8)
    settings = SamplingSettings(compared=1.0)  # the run is short: with the default there is next to no evidence
    model = seeded(TwoBranches, seed)
    grown = grow(
        model, example, batches, epochs=30, seed=seed, granularity=1, settings=settings, progress=False
    ).network
    digit, noise = (sum(part[0].out_channels for part in branch) for branch in (grown.digit, grown.noise))
    assert digit > noise


@pytest.mark.parametrize("budget", [0.15, 0.5])
def test_plain_layers_stay_from_the_start(budget: float) -> None:
    space = discover(create("cifar_vgg16_bn", 10, 3), torch.zeros(1, 3, 16, 16))
    masks = SampledMasks(space, DEFAULT, budget, samples=2, granularity=8)
    assert space.layers
    assert all(present[space.filters :].all() for progress, present in follow(masks) if progress > 0)
    assert abs(masks.cost - budget) <= 0.02


@pytest.mark.parametrize("structures", ["filters", "layers"])
def test_what_is_not_grown_is_there_from_the_start(structures: Any) -> None:
    space = space_of(Residual)
    masks = SampledMasks(space, replace(DEFAULT, structures=structures), 0.75, SAMPLES, granularity=1)
    fixed = slice(space.filters, None) if structures == "filters" else slice(0, space.filters)
    assert all(present[fixed].all() for _, present in follow(masks))
    assert masks.cost <= 0.75 + 1e-9
