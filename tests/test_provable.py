"""Provable filter pruning: sensitivities by brute force, the bound by drawing, budget and bill."""

from __future__ import annotations

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
from tiny_networks import Plain, Residual
from torch import nn

from nasbench_grow.base.errors import UserError
from nasbench_grow.baselines import provable
from nasbench_grow.baselines.provable import Provable, ProvableSettings, drawn, draws_for, error_of, shares


def test_a_share_is_the_largest_part_of_what_an_output_sums_up_each_sign_apart():
    layer = nn.Linear(3, 2)
    layer.weight.data = torch.tensor([[1.0, 1.0, 2.0], [-3.0, 0.0, 1.0]])
    # Of the input (1, 2, 1) the first output sums up 1 + 2 + 2, the second 1 and, of the other sign, 3.
    found, places, macs = shares(layer, torch.tensor([[1.0, 2.0, 1.0]]))
    assert found.tolist() == pytest.approx([1.0, 0.4, 1.0])
    assert (places, macs) == (1, 4 * 2 * 3)


@pytest.mark.parametrize("chunk", [1, 2**22])
def test_shares_of_a_convolution_are_those_of_brute_force(monkeypatch, chunk):
    monkeypatch.setattr(provable, "CHUNK", chunk)
    torch.manual_seed(0)
    layer, inputs = nn.Conv2d(3, 2, 3, stride=2, padding=1), torch.randn(2, 3, 5, 5)
    padded = F.pad(inputs, (1, 1, 1, 1))
    expected = [0.0, 0.0, 0.0]
    for part in (padded.clamp(min=0), -padded.clamp(max=0)):
        for sample in part:
            for kernel in (*layer.weight.detach().clamp(min=0), *-layer.weight.detach().clamp(max=0)):
                for row in range(0, 5, 2):
                    for column in range(0, 5, 2):
                        sums = (sample[:, row : row + 3, column : column + 3] * kernel).sum((1, 2))
                        for channel in range(3):
                            expected[channel] = max(expected[channel], float(sums[channel] / sums.sum()))
    found, places, _ = shares(layer, inputs)
    assert found.tolist() == pytest.approx(expected, rel=1e-5) and places == 9


def test_a_filter_that_several_layers_take_in_counts_with_the_largest_of_its_shares():
    job = job_for(lambda: Residual(6))
    model = job.model()
    network, space = model.network, model.space
    found = provable.sensitivities(job, model, 16)
    takers = [network.fc, *(block.conv1 for block in network.blocks)]
    seen = {layer: [] for layer in takers}
    for layer in takers:
        layer.register_forward_pre_hook(lambda module, inputs: seen[module].append(shares(module, inputs[0])[0]))
    network.eval()
    with torch.no_grad():
        for inputs, _ in job.calibrate(network, 16):
            network(inputs)
    each = torch.stack([torch.stack(seen[layer]).amax(0) for layer in takers])
    stream = next(group for group in space.groups if group.layer is None)
    assert found.values[stream.structures].tolist() == pytest.approx(each.amax(0).tolist(), rel=1e-5)
    assert len(each.argmax(0).unique()) > 1, "not all the same layer's"


def test_so_many_draws_give_so_many_different_filters_on_average():
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05, 0.0])
    draws = draws_for(probabilities)
    for number, found in enumerate(draws[1:4], start=1):
        assert float((1 - (1 - probabilities) ** found).sum()) == pytest.approx(number, rel=1e-4)
    assert draws[0] < 1e-6, "one filter stays for nothing"
    assert draws[4] == torch.inf, "one of probability zero is never drawn"


def test_the_error_is_the_one_at_which_the_bound_asks_for_that_many_draws():
    draws = torch.tensor([1.0, 50.0, 4000.0], dtype=torch.float64)
    error = error_of(draws, total=2.5, terms=10, failure=0.01)
    needed = 3 * (6 + 2 * error) * 2.5 * torch.log(torch.tensor(8 * 10 / 0.01)) / error**2
    assert torch.allclose(needed, draws)
    assert error_of(draws, 2.5, 10, 0.0001)[1] > error[1] > error[2], "surer or with fewer draws: a larger error"


def test_drawn_filters_miss_the_bound_less_often_than_it_says(monkeypatch):
    monkeypatch.setattr(provable, "K", 1 / 3)  # what Bernstein's inequality needs where the sensitivities are exact
    draws = torch.Generator().manual_seed(0)
    inputs, weight = torch.rand(120, generator=draws) ** 4, torch.rand(3, 120, generator=draws) ** 2
    terms = weight * inputs
    sums = terms.sum(1)
    values = (terms / sums[:, None]).amax(0).double()
    probabilities, failure = values / values.sum(), 0.2
    width, none = 30, torch.zeros(120, dtype=torch.bool)
    error = error_of(draws_for(probabilities)[width - 1], float(values.sum()), 3, failure)
    estimates = []
    for _ in range(600):
        kept, weights = drawn(probabilities, width, none, draws)
        assert int(kept.sum()) == width and (weights[~kept] == 0).all()
        estimates.append((terms.double() * weights).sum(1))
    off = (torch.stack(estimates) / sums.double() - 1).abs()
    assert 0.2 < error < 2 and (off.amax(1) > error).double().mean() <= failure
    assert torch.allclose(torch.stack(estimates).mean(0), sums.double(), rtol=0.05), "on average nothing is missing"


def test_a_sure_filter_stays_with_its_weights_as_they_are():
    sure = torch.tensor([True, False, False, False])
    kept, weights = drawn(torch.tensor([0.7, 0.1, 0.1, 0.1]), 3, sure, torch.Generator().manual_seed(0))
    assert kept.sum() == 3 and kept[0] and weights[0] == 1 and (weights[kept][1:] > 0).all()


def test_layers_keep_filters_down_to_one_error_the_most_sensitive_ones():
    job = job_for(wide_plain)
    model = job.model()
    method = Provable()
    found = provable.sensitivities(job, model, 16)
    method.prune(job, model, 0.5 * job.dense_macs)
    least, most = [], []
    for group, terms in zip(model.space.groups, found.terms, strict=True):
        values, kept = found.values[group.structures], model.structures[group.structures]
        assert values[kept].min() >= values[~kept].max()
        ranked = values.sort(descending=True).values
        errors = error_of(draws_for(ranked / ranked.sum()), float(values.sum()), terms, 1e-16)
        width = int(kept.sum())
        least.append(float(errors[width - 1]))
        most.append(float(errors[width]))
    assert max(most) <= min(least) * 1.05, "nobody has a filter that another one needs more"


@pytest.mark.parametrize("make", [wide_plain, wide_residual, lambda: Depthwise(24), Unnormalised])
@pytest.mark.parametrize("choice, granularity", [("deterministic", 8), ("sampled", 1), ("mixed", 1)])
def test_the_budget_is_met_on_every_kind_of_network(make, choice, granularity):
    job = job_for(make, granularity=granularity, budget=0.4)
    network, macs = run(Provable(ProvableSettings(choice=choice)), job)
    assert 0.38 <= share(network, job) <= 0.4 and macs[1] == job.dense_macs


def test_what_takes_drawn_filters_in_is_reweighted():
    job = job_for(wide_plain)
    model = job.model()
    before = model.network.fc.weight.detach().clone()
    Provable(ProvableSettings(choice="sampled")).prune(job, model, 0.5 * job.dense_macs)
    kept = model.structures[model.space.groups[-1].structures]
    ratio = model.network.fc.weight.detach() / before[:, kept]
    assert torch.allclose(ratio, ratio[:1].expand_as(ratio), rtol=1e-4) and ratio.std() > 0.1


def test_recurrent_networks_are_skipped_with_the_reason():
    assert "recurrent" in Provable().skip(None, words())
    assert Provable().skip(None, Plain()) is None


def test_measuring_is_billed_with_all_that_is_computed_beside_the_network():
    job = job_for(lambda: Plain(16), epochs=4)
    _, macs = run(Provable(), job)
    convolutions = (4 * 4 + 2 * 2) * 16 * 16 * 9  # of conv2 and conv3
    assert job.meter.spent["calibration"] == 16 * (job.dense_macs + 4 * (convolutions + 160))
    assert job.meter.spent["training"] == 3 * 16 * (2 * job.dense_macs + 2 * macs[-1])


def test_a_trained_start_is_pruned_at_once():
    job = from_trained(job_for(wide_plain), wide_plain, macs=10**6)
    method = Provable(ProvableSettings(start="trained"))
    _, macs = run(method, job)
    assert method.source == "dense" and job.meter.spent["source"] == 10**6
    assert len(macs) == 2 and 0.48 <= macs[0] / job.dense_macs <= 0.5


def test_killed_after_it_pruned_it_ends_with_the_same_bits():
    method = Provable(ProvableSettings(choice="mixed", rounds=2))
    torch.manual_seed(3)
    whole_job = job_for(wide_residual)
    whole, _ = run(method, whole_job)
    again, job = killed_after(3, method, wide_residual)
    assert same(whole, again) and job.meter.spent == whole_job.meter.spent


@pytest.mark.parametrize(
    "given, words",
    [
        ({"failure": 1.0}, "failure 1 is out of range: it is a probability, 0 < failure < 1"),
        ({"choice": "drawn"}, "choice 'drawn'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(given, words):
    with pytest.raises(UserError, match=words):
        ProvableSettings(**given)
