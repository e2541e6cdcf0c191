"""Taylor pruning: the gate's gradient against a numerical one and another library's, schedule, budget and bill."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import torch_pruning
from small_runs import (
    WORDS,
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
    word_loss,
    words,
)
from tiny_networks import EXAMPLE, Plain, Residual, seeded, sgd
from torch import nn

from nasbench_grow import GatedNetwork
from nasbench_grow.base.errors import UserError
from nasbench_grow.baselines.taylor import Importance, Taylor, TaylorSettings
from nasbench_grow.contract import ElasticModel, cut


def batch_for(make):
    """Inputs, targets and loss for a tiny network."""
    draws = torch.Generator().manual_seed(5)
    if make is words:
        text = torch.randint(0, 20, (4, 7), generator=draws)
        return torch.cat([torch.zeros(4, 1, dtype=torch.int64), text[:, :-2]], 1), text[:, 1:-1], word_loss
    inputs = torch.randn(6, 1, 8, 8, generator=draws, dtype=torch.float64)
    return inputs, torch.arange(6), F.cross_entropy


def trained(make, example=EXAMPLE):
    """A network in double precision whose affine pairs are no longer as they are made."""
    network = seeded(make).double()
    draws = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=draws, dtype=torch.float64)
    return ElasticModel(network, example if make is words else example.double(), sgd)


@pytest.mark.parametrize("make", [Plain, Residual, Depthwise, Unnormalised, words])
def test_the_gate_gradient_is_the_slope_of_the_loss_along_real_gates(make):
    model = trained(make, WORDS if make is words else EXAMPLE)
    inputs, targets, loss = batch_for(make)
    gated = GatedNetwork(model.space, model.structures, model.network)

    def at(gates):
        if make is words:  # each measurement starts afresh
            for layer in model.network.layers:
                layer.hidden, layer.cell = layer.hidden[:, :0], layer.cell[:, :0]
        return loss(gated(inputs, gates), targets)

    ones = torch.ones(len(model.space), dtype=torch.float64)
    at(ones).backward()
    job = job_for(make)
    found = Importance(job, model, TaylorSettings()).gate_gradients(model)
    checked = torch.arange(0, model.space.filters, 3)
    for number in checked.tolist():
        step = 1e-5 * F.one_hot(torch.tensor(number), len(ones)).double()
        with torch.no_grad():
            slope = (at(ones + step) - at(ones - step)) / 2e-5
        assert float(found[number]) == pytest.approx(float(slope), rel=1e-3, abs=1e-6), number
    assert found[checked].abs().max() > 1e-3


def test_without_norms_importance_is_torch_prunings():
    network = seeded(Unnormalised)
    for layer in (network.conv1, network.conv2):
        nn.init.zeros_(layer.bias)  # theirs adds absolute values of weights' and biases' terms
    model = ElasticModel(network, EXAMPLE, sgd)
    F.cross_entropy(network(torch.randn(8, 1, 8, 8)), torch.arange(8)).backward()
    ours = Importance(job_for(Unnormalised), model, TaylorSettings()).gate_gradients(model).square()
    graph = torch_pruning.DependencyGraph().build_dependency(network, example_inputs=EXAMPLE)
    theirs = torch_pruning.importance.GroupTaylorImportance(normalizer=None, multivariable=True)
    for name, group in zip(("conv1", "conv2"), model.space.groups, strict=True):
        layer = network.get_submodule(name)
        whole = graph.get_pruning_group(layer, torch_pruning.prune_conv_out_channels, idxs=list(range(32)))
        assert torch.allclose(ours[group.structures], theirs(whole).square(), rtol=1e-3)


def test_importance_is_averaged_over_mini_batches_and_with_momentum_over_prunings(monkeypatch):
    job = job_for(wide_plain, epochs=8)
    model = job.model()
    settings = TaylorSettings(rounds=2, pruning_share=0.25, dense_share=0.5)  # 4 steps: two a pruning
    importance = Importance(job, model, settings)
    for gradients in ((1.0, -3.0), (2.0, 0.0)):
        for gradient in gradients:
            importance.before_step(model, 0, 1)
            full = torch.full((len(model.space),), gradient)
            monkeypatch.setattr(importance, "gate_gradients", lambda _, full=full: full)
            importance.after_backward(model)
        importance.after_epoch(model)
        if gradients[0] == 1.0:
            assert importance.average.unique().tolist() == [5.0]  # (1 + 9) / 2
            assert model.macs / job.dense_macs == pytest.approx(0.75, abs=0.02)
    assert importance.average.unique().tolist() == pytest.approx([0.9 * 5 + 0.1 * 2])
    assert model.macs / job.dense_macs == pytest.approx(0.5, abs=0.02)


def test_the_least_important_of_all_layers_leave_and_nothing_that_left_comes_back():
    job = job_for(Plain)
    model = job.model()
    importance = Importance(job, model, TaylorSettings(rounds=1))
    importance.average = torch.arange(len(model.space), dtype=torch.float32)
    keys = importance.keys(model)
    assert keys.tolist() == list(range(48)), "layers compete with each other"
    present = model.space.full()
    present[40] = False
    model.resize(present)
    importance.average = torch.ones(len(model.space))
    cut(model, importance.keys(model), job.dense_macs, job.granularity)
    assert not model.structures[40]


def test_importance_per_macs_is_divided_by_what_a_filter_costs():
    job = job_for(Plain)
    model = job.model()
    importance = Importance(job, model, TaylorSettings(per_macs=True))
    importance.average = torch.ones(len(model.space))
    # A filter of conv1 costs 64 positions of 9 and, to conv2, 16 of 9 x 16; one of conv3 4 of 9 x 16 and 10.
    keys = importance.keys(model)
    assert float(1 / keys[0]) == pytest.approx(64 * 9 + 16 * 9 * 16)
    assert float(1 / keys[32]) == pytest.approx(4 * 9 * 16 + 10)


@pytest.mark.parametrize("make", [wide_plain, wide_residual, lambda: Depthwise(24), Unnormalised, words])
@pytest.mark.parametrize("granularity", [1, 8])
def test_the_budget_is_met_on_every_kind_of_network(make, granularity):
    job = job_for(make, granularity=granularity, budget=0.4)
    network, macs = run(Taylor(), job)
    assert 0.38 <= share(network, job) <= 0.4
    assert macs == sorted(macs, reverse=True) and macs[1] == job.dense_macs


def test_each_step_is_billed_for_the_network_that_took_it():
    job = job_for(wide_plain)
    settings = TaylorSettings(rounds=2, pruning_share=0.5)
    _, macs = run(Taylor(settings), job)
    dense = job.dense_macs
    assert [found / dense for found in macs] == pytest.approx([1, 1, 0.75, 0.5], abs=0.02)
    assert job.meter.total == 3 * 8 * 2 * (3 * dense + macs[2]), "pruned after the third epoch and after the last"


def test_a_trained_start_is_billed_its_source_and_trains_the_rest_of_the_schedule():
    job = from_trained(job_for(wide_plain, epochs=4), wide_plain, macs=10**6)
    settings = TaylorSettings(start="trained", dense_share=0.5, pruning_share=0.25)
    assert Taylor(settings).source == "dense"
    network, macs = run(Taylor(settings), job)
    assert len(macs) == 2 and job.meter.spent["source"] == 10**6
    assert 0.48 <= share(network, job) <= 0.5


@pytest.mark.parametrize("epochs", [3, 4])
def test_killed_while_it_prunes_it_ends_with_the_same_bits(epochs):
    method = Taylor(TaylorSettings(rounds=5, pruning_share=0.4))
    torch.manual_seed(3)
    whole_job = job_for(wide_residual)
    whole, _ = run(method, whole_job)
    again, job = killed_after(epochs, method, wide_residual)
    assert same(whole, again) and job.meter.spent == whole_job.meter.spent


@pytest.mark.parametrize(
    "given, words",
    [
        ({"momentum": 1.0}, "momentum 1 is out of range: give 0 or more, below 1"),
        ({"dense_share": 0.9}, "dense_share 0.9 and pruning_share 0.25 are more than the run"),
    ],
)
def test_settings_that_make_no_sense_are_refused(given, words):
    with pytest.raises(UserError, match=words):
        TaylorSettings(**given)
