"""Budget-aware regularisation: barrier and gates by hand, the folded network, budget, bill and resuming."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from small_runs import (
    Depthwise,
    Unnormalised,
    from_trained,
    job_for,
    killed_after,
    run,
    same,
    share,
    wide_plain,
    wide_residual,
    words,
)
from torch import nn

from nasbench_grow.base.errors import UserError
from nasbench_grow.baselines.bar import Bar, BarSettings, Gates, Taught, allowed, barrier, probability, sampled, settled


def test_the_barrier_is_zero_below_the_budget_and_infinite_at_what_is_allowed_now():
    assert barrier(0.4, 0.5, 0.9) == barrier(0.5, 0.5, 0.9) == 0
    assert barrier(0.7, 0.5, 0.9) == pytest.approx(0.2**2 / (0.4 * 0.2))
    assert barrier(0.9, 0.5, 0.9) == barrier(1.0, 0.5, 0.9) == math.inf
    assert barrier(0.5 + 1e-4, 0.5, 0.9) < 1e-6, "it sets in smoothly"
    assert barrier(0.8999999, 0.5, 0.9) > 1e6
    assert barrier(0.5, 0.4999, 0.5) == math.inf, "at the end the budget itself is the bound"


def test_what_is_allowed_falls_from_above_the_dense_cost_to_the_budget_along_a_sigmoid():
    assert allowed(0.0, 0.3) == pytest.approx(1.01)
    assert allowed(0.5, 0.3) == pytest.approx((1.01 + 0.3) / 2)
    assert allowed(1.0, 0.3) == pytest.approx(0.3)
    # Slope 10: a quarter of the way 1 / (1 + e^2.5) of the sigmoid is done, of which 1 / (1 + e^5) was there before.
    done = (1 / (1 + math.exp(2.5)) - 1 / (1 + math.exp(5))) / (1 - 2 / (1 + math.exp(5)))
    assert allowed(0.25, 0.3) == pytest.approx(1.01 + done * (0.3 - 1.01))


@pytest.mark.parametrize("log_odds", [-3.0, -1.0, 0.0, 2.0])
def test_the_expected_number_of_open_gates_is_how_often_draws_are_not_zero(log_odds):
    torch.manual_seed(0)
    drawn = sampled(torch.full((200_000,), log_odds))
    assert drawn.min() >= 0 and drawn.max() <= 1
    closed_form = 1 / (1 + math.exp(-(log_odds - 2 / 3 * math.log(0.1 / 1.1))))
    assert float(probability(torch.tensor(log_odds))) == pytest.approx(closed_form, rel=1e-5)
    assert float((drawn > 0).double().mean()) == pytest.approx(closed_form, abs=0.004)


def test_settled_gates_are_stretched_and_clipped():
    assert settled(torch.tensor([-2.5, 0.0, 2.5])).tolist() == pytest.approx([0.0, 0.5, 1.0])
    # Closed from log(1/11) = -2.398 on, where the stretched sigmoid crosses zero.
    assert settled(torch.tensor(-2.39)) > 0 and settled(torch.tensor(-2.41)) == 0


def gates_of(make, **settings):
    """A job, a model whose norms are not as they are made, and gates on it."""
    job = job_for(make)
    model = job.model()
    torch.manual_seed(0)
    for parameter in model.network.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape)
    return job, model, Gates(job, model, copy.deepcopy(model.network), BarSettings(**settings))


@pytest.mark.parametrize("make", [wide_plain, wide_residual, lambda: Depthwise(24), Unnormalised])
def test_the_hard_network_computes_what_the_gated_one_did(make):
    job, model, gates = gates_of(make)
    while model.space.macs(gates.open(model)) > job.budget * job.dense_macs:  # close gates until the budget is met
        gates.log_odds.data = torch.where(torch.rand(len(model.space)) < 0.05, -5 - torch.rand(1), gates.log_odds.data)
    gates.log_odds.data += 0.5 * torch.randn(len(model.space))
    gates.log_odds.data.clamp_(min=-6)
    chosen = gates.open(model)
    job.budget = model.space.macs(chosen) / job.dense_macs
    inputs = torch.randn(4, 1, 8, 8)
    soft = gates.evaluated(model).eval()(inputs)
    gates.harden(model)
    assert torch.equal(model.structures, chosen) and model.macs < 0.55 * job.dense_macs
    assert torch.allclose(model.network.eval()(inputs), soft, atol=1e-5)


def test_the_price_is_the_expected_cost_times_the_barrier():
    job, model, gates = gates_of(wide_plain, strength=0.5)
    gates.before_step(model, 0, 1)
    filters = model.space.filters
    prices = model.space.marginal_macs(model.space.full())[:filters] / job.dense_macs
    expected = float(probability(torch.tensor(4.0))) * float(prices.sum())
    factor = barrier(1.0, 0.5 - 1e-4 * 1.01, allowed(1 / gates.steps, 0.5))
    assert gates.penalty(model).item() == pytest.approx(0.5 * min(factor, 1000) * expected, rel=1e-4)
    gates.cost = 0.4
    assert gates.penalty(model).item() == 0


def test_distillation_is_hintons():
    torch.manual_seed(0)
    student, teacher, targets = torch.randn(5, 10), torch.randn(5, 10), torch.arange(5)

    class Fixed(nn.Module):
        def __init__(self, answers):
            super().__init__()
            self.answers, self.weight = answers, nn.Parameter(torch.zeros(1))

        def forward(self, inputs):
            return self.answers[: len(inputs)]

    job = job_for(wide_plain)
    taught = Taught(job, Fixed(teacher), BarSettings())
    found = taught.loss(None, Fixed(student), torch.zeros(5, 1, 8, 8), targets, F.cross_entropy)
    soft = F.kl_div(F.log_softmax(student / 4, 1), F.softmax(teacher / 4, 1), reduction="batchmean") * 16
    assert float(found) == pytest.approx(0.9 * float(soft) + 0.1 * float(F.cross_entropy(student, targets)), rel=1e-5)


@pytest.mark.parametrize("make", [wide_plain, wide_residual, lambda: Depthwise(24), lambda: Unnormalised(64), words])
@pytest.mark.parametrize("granularity", [1, 8])
def test_the_budget_is_met_on_every_kind_of_network(make, granularity):
    job = job_for(make, granularity=granularity, budget=0.4)
    network, macs = run(Bar(), job)
    assert 0.38 <= share(network, job) <= 0.4
    assert macs == 3 * [job.dense_macs] + [macs[-1]], "gates mask, until they are folded in"


def test_gates_close_as_the_budget_falls():
    job = job_for(wide_plain, epochs=40)
    opened = [stage.log["open_share"] for stage in Bar().run(job) if "open_share" in stage.log]
    assert len(opened) == 10 and opened[-1] < 0.65 < opened[0]


def test_the_teacher_is_billed_in_every_step_that_it_teaches():
    job = job_for(wide_plain)
    _, macs = run(Bar(), job)
    dense, batch = job.dense_macs, 8 * 2
    assert job.meter.total == batch * (3 * 2 * dense + (3 + 1) * dense + 3 * macs[-1] + dense)
    alone = job_for(wide_plain)
    run(Bar(BarSettings(distillation=0.0)), alone)
    assert alone.meter.total == pytest.approx(job.meter.total - batch * 2 * dense, rel=0.01)


def test_a_trained_start_is_model_and_teacher_and_is_billed_once():
    job = from_trained(job_for(wide_plain), wide_plain, macs=10**6)
    method = Bar(BarSettings(start="trained"))
    network, macs = run(method, job)
    assert method.source == "dense" and job.meter.spent["source"] == 10**6
    assert len(macs) == 2 and 0.48 <= share(network, job) <= 0.5


@pytest.mark.parametrize("make, epochs", [(wide_plain, 3), (wide_plain, 4), (words, 4)])
def test_killed_at_any_time_it_ends_with_the_same_bits(make, epochs):
    method = Bar(BarSettings(dense_share=0.25, pruning_share=0.5))
    torch.manual_seed(3)
    whole_job = job_for(make)
    whole, _ = run(method, whole_job)
    again, job = killed_after(epochs, method, make)
    assert same(whole, again) and job.meter.spent == whole_job.meter.spent


@pytest.mark.parametrize(
    "given, words",
    [
        ({"strength": 0.0}, "strength 0 is out of range: give a number above 0"),
        ({"dense_share": 0.8}, "dense_share 0.8 and pruning_share 0.25 are more than the run"),
        ({"distillation": 1.5}, "distillation 1.5 is out of range: it is a weight, from 0 to 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(given, words):
    with pytest.raises(UserError, match=words):
        BarSettings(**given)
