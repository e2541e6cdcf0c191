"""Variance transfer: pairs that cancel, variances that stay, the learning rate of each stage, the bill."""

from __future__ import annotations

from itertools import islice, pairwise

import pytest
import torch
from test_baselines import Residual, equal, job, run, share, wide, widths
from test_net2net import Layers, Recurrent, disturb
from tiny_networks import Kept, Plain, small_job
from torch import nn

from nasbench_grow.base.errors import UserError
from nasbench_grow.baselines.uniform import Uniform
from nasbench_grow.baselines.variance_transfer import (
    Transferring,
    VarianceTransfer,
    VarianceTransferSettings,
    norms_behind,
    pairs,
    relative_norms,
)
from nasbench_grow.contract import Recipe

SOON = VarianceTransferSettings(seed_share=0.5, steps=2, begin=0.25, growth=0.5)


def begun(make, settings=SOON):
    small = small_job(make)
    model = small.model()
    growing = Transferring(small, model, settings)
    torch.manual_seed(0)
    for _ in range(20):
        disturb(model)
    return model, growing


def test_stages_become_wider_and_longer_by_a_fifth():
    stages = VarianceTransferSettings().stages()
    assert len(stages) == 9 and stages[0] == (0.0, 0.25) and stages[-1] == (pytest.approx(0.793), 1.0)
    begins = [begin for begin, _ in stages] + [1.0]
    lengths = [after - before for before, after in pairwise(begins)]
    assert [after / before for before, after in pairwise(lengths)] == pytest.approx([1.2] * 8, 1e-2)
    ratios = [after / before for (_, before), (_, after) in pairwise(stages)]
    assert ratios == pytest.approx([4 ** (1 / 8)] * 8)


@pytest.mark.parametrize("make", [Plain, Residual, Layers])
def test_growing_leaves_all_but_the_scale_of_the_output_as_it_was(make):
    """Behind normalisations nothing changes but what they add to a variance; the output layer is scaled."""
    model, growing = begun(make)
    inputs = torch.randn(8, 1, 8, 8)
    for present in growing.networks[1:]:
        network = model.network.eval()
        before, width = network(inputs) - network.fc.bias, network.fc.in_features
        growing.grow(model, present)
        after = model.network.eval()(inputs) - model.network.fc.bias
        off = (after - before * width / model.network.fc.in_features).abs().max()
        assert off < 5e-4 * before.abs().max()
        disturb(model)


def test_pairs_cancel_and_the_one_left_over_is_not_heeded():
    model, growing = begun(lambda: Recurrent(13))
    before, after = growing.networks[:2]
    origin, sign = pairs(model.space, before, after)
    for group in model.space.groups:
        born = [group.start + at for at in torch.nonzero((after & ~before)[group.structures]).flatten().tolist()]
        assert [int(origin[each]) for each in born[1::2]] == born[: 2 * (len(born) // 2) : 2]
        assert sign[born].tolist() == ([1.0, -1.0] * len(born))[: 2 * (len(born) // 2)] + [0.0] * (len(born) % 2)
    kept, width = model.network.fc.in_features, int(after[: model.space.groups[0].size].sum())
    growing.grow(model, after)
    weight = model.network.fc.weight.detach()
    paired = kept + 2 * ((width - kept) // 2)
    assert torch.equal(weight[:, kept:paired:2], -weight[:, kept + 1 : paired : 2])
    assert not weight[:, paired:].any() and weight[:, kept:paired].any()
    states = model.network.first(torch.randn(4, 8, 8))[0]
    assert torch.equal(states[..., kept:paired:2], states[..., kept + 1 : paired : 2])


def test_rescaling_keeps_the_variance_of_what_a_layer_gives_out():
    """He's variance 2 / fan-in at every width, before anything is trained."""
    small = small_job(lambda: Plain(64))
    build = small.build

    def initialised() -> nn.Module:
        network = build()
        torch.manual_seed(3)
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
        return network

    small.build = initialised
    model = small.model()
    growing = Transferring(small, model, VarianceTransferSettings(seed_share=0.25, steps=3))
    for present in growing.networks:
        growing.grow(model, present)
        weight = model.network.conv2.weight.detach()
        assert float(weight.var() * weight[0].numel()) == pytest.approx(2, rel=0.12)


def test_each_stage_learns_at_its_own_rate():
    weight = torch.tensor([[3.0, 4.0], [1.0, 2.0]])
    births = torch.tensor([[0, 0], [1, 2]])
    assert relative_norms(weight, births, 4).tolist() == pytest.approx([1.0, 0.2, 0.4, 0.0])
    model, growing = begun(Plain)
    rows, columns = model.network.conv2.weight.shape[:2]
    growing.grow(model, growing.networks[1])
    network = model.network
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    growing.after_backward(model)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.sub_(0.1)
    growing.after_step(model)
    moved = {name: before[name] - parameter.detach() for name, parameter in network.named_parameters()}
    weight = before["conv2.weight"]
    inside = weight[:rows, :columns].square().sum()
    rate = ((weight.square().sum() - inside) / inside).sqrt()
    assert torch.allclose(moved["conv2.weight"][:rows, :columns], torch.tensor(0.1), atol=1e-6)
    assert torch.allclose(moved["conv2.weight"][rows:], 0.1 * rate, atol=1e-6)
    assert torch.allclose(moved["conv2.weight"][:rows, columns:], 0.1 * rate, atol=1e-6)
    assert torch.allclose(moved["bn2.weight"], torch.tensor(0.1), atol=1e-6)


def test_the_norm_behind_each_convolution_is_found():
    found = norms_behind(small_job(Residual))
    assert found["stem"] == "norm" and found["blocks.1.conv2"] == "blocks.1.bn2" and len(found) == 7


@pytest.mark.parametrize("make, granularity", [(wide, 1), (lambda: Residual(24), 8), (Recurrent, 1)])
def test_the_last_network_is_that_of_uniform(make, granularity):
    network, macs = run(VarianceTransfer(), job(make, granularity=granularity))
    assert widths(network) == widths(Uniform().choose(job(make, granularity=granularity)))
    assert macs[0] < macs[-1] and 0.45 <= share(network, make) <= 0.5


def test_every_step_is_billed_what_its_stage_costs():
    small = job(wide, recipe=Recipe(batch_size=8, learning_rate=0.0))
    _, macs = run(VarianceTransfer(VarianceTransferSettings(steps=1, begin=0.25, growth=0.25)), small)
    assert macs[0] == macs[1] < macs[2] == macs[3]
    assert small.meter.total == 3 * 8 * 2 * sum(macs)


@pytest.mark.parametrize("epochs", [1, 3])
def test_a_killed_run_goes_on_where_it_was(epochs):
    storage = Kept()
    for _ in islice(VarianceTransfer(SOON).run(job(storage=storage)), epochs):
        pass
    again, whole = job(storage=storage), job()
    assert equal(run(VarianceTransfer(SOON), again)[0], run(VarianceTransfer(SOON), whole)[0])
    assert again.meter.spent == whole.meter.spent


def test_a_pace_that_makes_no_sense_is_refused():
    with pytest.raises(UserError, match="pace 0 is out of range: give a number above 0"):
        VarianceTransferSettings(pace=0.0)
