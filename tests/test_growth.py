"""Growing widths on a schedule: the stages, that the last network is that of ``uniform``, the bill, and resuming."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from test_baselines import Residual, equal, job, run, share, wide, widths
from tiny_networks import EXAMPLE, Kept, Plain

from nasbench_grow.base.errors import UserError
from nasbench_grow.baselines.random_growth import RandomGrowth
from nasbench_grow.baselines.uniform import Uniform
from nasbench_grow.contract import GrowthSettings, Recipe, Widening
from nasbench_grow.cost.macs import count_macs

SLOW = GrowthSettings(seed_share=0.5, steps=2, begin=0.25, growth=0.5)
"""Of eight steps, a growth step before the fifth and the seventh."""


def test_stages_rise_evenly_from_the_seed_to_the_last_network():
    assert SLOW.stages() == [(0.0, 0.5), (0.5, 0.75), (0.75, 1.0)]
    default = GrowthSettings().stages()
    assert default[0] == (0.0, 0.25) and default[-1] == (pytest.approx(0.05), 1.0) and len(default) == 11


@pytest.mark.parametrize("steps", [1, 7, 500, 5_000])
def test_the_last_stage_trains_in_runs_of_any_length(steps):
    small = job()
    widening = Widening(small, small.model(), GrowthSettings())
    seen = [widening.stage(step, steps) for step in range(steps)]
    assert seen == sorted(seen) and seen[-1] == 10
    assert seen.count(10) >= round(0.94 * steps)
    if steps >= 500:
        assert len(set(seen)) == 11


def test_each_stage_holds_the_filters_of_the_one_before():
    small = job(lambda: Residual(24))
    widening = Widening(small, small.model(), GrowthSettings())
    for one, other in zip(widening.networks, widening.networks[1:], strict=False):
        assert not (one & ~other).any() and (other & ~one).any()


@pytest.mark.parametrize("make", [wide, lambda: Residual(40)])
@pytest.mark.parametrize("granularity", [1, 8])
def test_the_last_network_is_that_of_uniform(make, granularity):
    network, macs = run(RandomGrowth(SLOW), job(make, granularity=granularity))
    assert widths(network) == widths(Uniform().choose(job(make, granularity=granularity)))
    assert 0.48 <= share(network, make) <= 0.5
    assert macs == sorted(macs) and macs[0] < macs[-1]


def test_every_step_is_billed_what_its_stage_costs():
    small = job(wide)
    _, macs = run(RandomGrowth(SLOW), small)
    model = job(wide).model()
    stages = [model.space.macs(present) for present in Widening(job(wide), model, SLOW).networks]
    assert macs == [stages[0], stages[0], stages[1], stages[2]]
    assert small.meter.spent["training"] == 3 * 8 * (4 * stages[0] + 2 * stages[1] + 2 * stages[2])
    assert small.meter.total == small.meter.spent["training"]


def test_newborn_filters_have_the_weights_of_the_dense_backbone():
    still = Recipe(batch_size=8, learning_rate=0.0)
    network, _ = run(RandomGrowth(SLOW), job(Plain, recipe=still))
    expected = Uniform().choose(job(Plain))
    assert all(torch.equal(tensor, network.state_dict()[name]) for name, tensor in expected.named_parameters())


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_killed_run_goes_on_where_it_was(epochs):
    storage = Kept()
    for _ in islice(RandomGrowth(SLOW).run(job(wide, storage=storage)), epochs):
        pass
    again = job(wide, storage=storage)
    network, _ = run(RandomGrowth(SLOW), again)
    whole = job(wide)
    assert equal(network, run(RandomGrowth(SLOW), whole)[0])
    assert again.meter.spent == whole.meter.spent


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"seed_share": 0.0}, "seed_share 0 is out of range"),
        ({"steps": 0}, "steps 0 is out of range: give 1 or more"),
        ({"begin": -0.1}, "begin -0.1 is out of range"),
        ({"begin": 0.6, "growth": 0.4}, "begin 0.6 and growth 0.4 leave nothing of the run"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, words):
    with pytest.raises(UserError, match=words):
        GrowthSettings(**settings)


def test_the_network_of_every_stage_costs_what_is_said():
    small = job(lambda: Residual(20))
    model = small.model()
    widening = Widening(small, model, SLOW)
    for present in widening.networks:
        model.resize(present, widening.start)
        assert count_macs(model.network, EXAMPLE) == model.macs
