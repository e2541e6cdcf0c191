"""Differentiable widths: what the relaxed network computes and costs, what moves its logits, what it is billed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from small_runs import run, same, share, wide_plain, wide_residual
from supernets import CELLS, KINDS, leaving, run_whole_and_killed, search_job
from tiny_networks import seeded

from nasbench_grow import backbones, discover, extract, select
from nasbench_grow.base.errors import UserError
from nasbench_grow.baselines.darts_width import DartsWidth, DartsWidthSettings, Relaxed, RelaxedMacs, Searching
from nasbench_grow.baselines.random import random_keys

CPU = torch.device("cpu")


def searching(make, settings=None, **changes):
    job = search_job(make, **changes)
    model = job.model()
    return Searching(job, model, settings or DartsWidthSettings()), model


@pytest.mark.parametrize("name", ["cifar_resnet20", "deeplabv3plus_thin", "lstm_200"])
def test_relaxed_macs_are_those_of_the_network_where_everything_is_there_or_not(name):
    example = torch.zeros(1, 6, dtype=torch.int64) if name == "lstm_200" else torch.zeros(1, 3, 32, 32)
    space = discover(backbones.create(name, 10, 3), example)
    macs, draws = RelaxedMacs(space, CPU), random_keys(space, 1)
    for _ in range(2):
        present = select(space, next(draws), 0.5 * space.macs(space.full()), 1)
        counts, layers = space.counts(present)
        found = macs(torch.tensor(counts).float(), torch.tensor(layers).float())
        assert float(found) == pytest.approx(space.macs(present), rel=1e-6)


def test_relaxed_macs_of_a_layer_half_there_are_in_between():
    network = seeded(leaving)
    space = discover(network, torch.zeros(1, 1, 8, 8))
    macs, widths = RelaxedMacs(space, CPU), torch.tensor([8.0, 16.0, 24.0])
    half = macs(widths, torch.tensor([0.5, 1.0]))
    # 64 positions: 1 to 8, half of 8 to 16, (8 + 16) / 2 to 24 filters of nine weights, and 24 to 10 classes
    assert float(half) == pytest.approx(64 * 9 * (8 + 0.5 * 8 * 16 + 12 * 24) + 24 * 10)


@pytest.mark.parametrize("kind", ["plain", "residual", "depthwise", "leaving"])
def test_at_gates_of_zero_and_one_the_relaxed_network_computes_what_the_small_one_does(kind):
    network = seeded(KINDS[kind])
    space = discover(network, torch.zeros(1, 1, 8, 8))
    present = space.full()
    for group in space.groups:
        present[group.start + group.size // 2 : group.start + group.size] = False
    present[space.filters :][::2] = False
    inputs = torch.randn(4, 1, 8, 8)
    small = extract(space, network, present).eval()(inputs)
    relaxed = Relaxed(space, network.eval())(inputs, present.float())
    torch.testing.assert_close(relaxed, small, rtol=1e-5, atol=1e-5)


def test_a_plain_layer_half_there_is_mixed_with_its_input():
    network = seeded(leaving).eval()
    space = discover(network, torch.zeros(1, 1, 8, 8))
    gates = space.full().float()
    gates[space.filters] = 0.5
    inputs = torch.randn(4, 1, 8, 8)
    first = network[:3](inputs)
    expected = network[6:](0.5 * network[3:6](first) + 0.5 * first)
    torch.testing.assert_close(Relaxed(space, network)(inputs, gates), expected)


def test_a_filter_is_scaled_by_the_probability_of_the_widths_that_hold_it():
    search, _ = searching(wide_plain)
    with torch.no_grad():
        search.width_logits[0, :] = torch.arange(8.0)
    chances = torch.arange(8.0).softmax(0)
    gates = search.gates_of(0, 1).detach()[:48]
    widths = [round(48 * part / 10) for part in range(3, 11)]
    for place in range(48):
        expected = sum(float(chance) for chance, width in zip(chances, widths, strict=True) if place < width)
        assert float(gates[place]) == pytest.approx(expected, abs=1e-6)


def test_gumbel_gates_are_drawn_and_settle_as_it_cools():
    search, _ = searching(wide_plain, DartsWidthSettings(relaxation="gumbel"))
    hot = torch.stack([search.gates_of(0, 100).detach() for _ in range(200)])
    cold = torch.stack([search.gates_of(100, 100).detach() for _ in range(200)])
    firm = [float(((gates < 0.05) | (gates > 0.95))[:, 20:48].float().mean()) for gates in (hot, cold)]
    assert firm[0] < 0.4 and firm[1] > 0.8
    # Cold draws are one width each, any of the eight alike: the last filters belong to the full width alone.
    assert float(cold[:, 47].mean()) == pytest.approx(1 / 8, abs=0.07)


def test_the_price_is_paid_above_the_budget_earned_far_below_and_nothing_between():
    search, _ = searching(wide_plain, budget=0.5)
    dense = search.job.dense_macs
    for choice in range(8):
        with torch.no_grad():
            search.width_logits.zero_()
            search.width_logits[:, choice] = 50.0
        widths, layers = search.likeliest()
        assert widths.tolist() == [round(48 * (3 + choice) / 10)] * 3
        cost = float(search.macs(widths, layers.float())) / dense
        sign = 1 if cost > 0.5 else -1 if cost < 0.45 else 0
        log = float(torch.tensor(cost * dense).log())
        assert float(search.price().detach()) == pytest.approx(2 * sign * log, abs=1e-3), f"{cost:.3f}"


def test_logits_learn_from_the_search_split_and_weights_do_not():
    search, model = searching(wide_residual)
    before = [parameter.clone() for parameter in model.network.parameters()]
    search.before_step(model, 0, 10)
    assert all(torch.equal(*pair) for pair in zip(before, model.network.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in model.network.parameters())
    moved = search.width_logits.detach().abs()
    assert float(moved.max()) == pytest.approx(0.6, rel=0.01), "Adam's first step is its rate, 6 in 10 steps"
    assert search.layer_logits.detach().abs().min() > 0


def test_the_search_finds_the_budget_by_its_price():
    search, model = searching(wide_plain, budget=0.3, epochs=20)
    for _ in search.job.fit(model, search, epochs=20, searching=True):
        pass
    assert 0.22 <= search.log(model)["likeliest_macs"] <= 0.36


@pytest.mark.parametrize(("kind", "granularity"), CELLS)
def test_the_network_meets_the_budget_on_every_kind_of_backbone(kind, granularity):
    job = search_job(KINDS[kind], epochs=2, granularity=granularity)
    network, _ = run(DartsWidth(), job)
    assert 0.48 <= share(network, job) <= 0.5


def test_a_step_is_billed_for_weights_and_logits_both_in_the_dense_network():
    job = search_job(wide_residual, epochs=4)
    _, macs = run(DartsWidth(DartsWidthSettings(search_share=0.5)), job)
    assert job.meter.spent == {
        "training": 3 * 4 * 16 * macs[-1],
        "search": 2 * 3 * 2 * 16 * job.dense_macs,
        "calibration": 0,
        "source": 0,
    }


@pytest.mark.parametrize(("kind", "relaxation"), [("small", "gumbel"), ("leaving", "softmax"), ("words", "gumbel")])
def test_killed_again_and_again_it_goes_on_to_the_same_bits(kind, relaxation):
    method = DartsWidth(DartsWidthSettings(relaxation=relaxation, search_share=1.0))
    (whole, first), (pieces, second) = run_whole_and_killed(method, KINDS[kind], epochs=2)
    assert same(whole, pieces)
    assert first.meter.spent == second.meter.spent


def test_what_a_recurrent_network_carries_is_kept_apart_for_the_two_streams():
    search, model = searching(KINDS["words"])
    inputs, targets = next(search.job.train.batches(8))
    loss = F.cross_entropy(search.relaxed(inputs, search.gates_of(0, 1)).flatten(0, 1), targets.flatten())
    assert torch.isfinite(loss)
    carried = {name: buffer.clone() for name, buffer in model.network.named_buffers()}
    assert carried and all(buffer.abs().sum() > 0 for buffer in carried.values())
    search.before_step(model, 0, 10)
    assert all(torch.equal(carried[name], buffer) for name, buffer in model.network.named_buffers())
    assert all(buffer.abs().sum() > 0 for buffer in search.carried.values())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"relaxation": "hard"}, "hard"),
        ({"reach": 0.0}, "reach 0 is out of range: give a number above 0"),
        ({"search_share": 2.0}, "search_share 2 is out of range"),
        ({"weight_decay": -1.0}, "weight_decay -1 is out of range: give 0 or more"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        DartsWidthSettings(**settings)
