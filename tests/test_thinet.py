"""ThiNet: the greedy choice and the least squares by brute force, what stays whole, the budget and the bill."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from backbone_spaces import space_for
from test_baselines import equal, run, share, wide, widths
from tiny_networks import EXAMPLE, Kept, Plain, Residual, seeded, small_job
from torch import Tensor, nn

from nasbench_grow.base.errors import UserError
from nasbench_grow.baselines.thinet import (
    ThiNet,
    ThiNetSettings,
    Thinning,
    contributions,
    least_missed,
    rescaling,
    widths_to_keep,
)
from nasbench_grow.cost.macs import count_macs
from nasbench_grow.harness import registry

FEW = ThiNetSettings(images=16)


def sampled(rows: int = 60, channels: int = 9) -> Tensor:
    """Contributions to as many entries, correlated, shape (rows, channels)."""
    draws = torch.Generator().manual_seed(3)
    mixed = torch.randn(channels, channels, generator=draws, dtype=torch.float64)
    return torch.randn(rows, channels, generator=draws, dtype=torch.float64) @ mixed


# --- the choice ---


def test_each_greedy_step_is_the_best_by_brute_force():
    parts = sampled()
    gone = least_missed(parts.T @ parts, 5)
    assert len(set(gone)) == 5
    for count in range(5):
        errors = {
            channel: float(parts[:, [*gone[:count], channel]].sum(1).square().sum())
            for channel in range(9)
            if channel not in gone[:count]
        }
        assert gone[count] == min(errors, key=errors.get)


def test_the_rescaling_is_the_least_squares_solution():
    parts = sampled()
    kept = torch.tensor([0, 2, 3, 7])
    expected = torch.linalg.lstsq(parts[:, kept], parts.sum(1, keepdim=True)).solution.flatten()
    factors = rescaling(parts.T @ parts, kept)
    assert torch.allclose(factors, expected, rtol=1e-6)
    best = (parts[:, kept] @ factors - parts.sum(1)).square().sum()
    for _ in range(20):
        other = factors + 0.1 * torch.randn(4, dtype=torch.float64)
        assert (parts[:, kept] @ other - parts.sum(1)).square().sum() > best


def test_channels_that_say_nothing_make_no_trouble():
    parts = sampled()
    parts[:, 4] = 0
    assert least_missed(parts.T @ parts, 1) == [4]
    factors = rescaling(parts.T @ parts, torch.arange(9))
    assert torch.allclose(parts @ factors, parts.sum(1))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(4, 5, 3, padding=1, bias=False), (3, 4, 7, 6)),
        (nn.Conv2d(4, 5, (1, 3), stride=2, padding=(0, 2), dilation=2, bias=False), (3, 4, 9, 8)),
        (nn.Linear(4, 5, bias=False), (3, 4)),
    ],
)
def test_contributions_add_up_to_entries_of_the_output(layer, shape):
    inputs = torch.randn(shape)
    with torch.no_grad():
        outputs = layer(inputs)
        parts = contributions(layer, inputs, 30, torch.Generator().manual_seed(0))
    assert parts.shape == (90, 4)
    if outputs.ndim == 4:  # entries come sample by sample
        outputs = outputs.flatten(1).repeat_interleave(30, 0)
    else:
        outputs = outputs.flatten()[None].expand(90, -1)
    distances, found = (outputs - parts.sum(1, keepdim=True)).abs().min(1)
    assert distances.max() < 1e-5
    assert len(found.unique()) > 10, "not always the same entry"


# --- pruning a network ---


def thinned(network: nn.Module, budget: float, **changes):
    """A network all of whose layers are pruned at once, and its job."""
    cell = small_job(lambda: network, budget=budget, steps=4, **changes)
    model = cell.model()
    thinning = Thinning(cell, model, FEW)
    thinning.prune(model, 1.0)
    return model, cell


def test_dead_filters_go_and_the_network_computes_what_it_did():
    network = seeded(Plain)
    dead = torch.arange(0, 16, 2)
    with torch.no_grad():
        for norm in (network.bn1, network.bn2, network.bn3):
            norm.weight[dead] = norm.bias[dead] = 0
    inputs = torch.randn(4, *EXAMPLE.shape[1:])
    before = network.eval()(inputs)
    model, _ = thinned(network, 0.36)  # about 9 filters in each layer: all that are alive, and a dead one
    assert all(8 <= width <= 10 for width in widths(model.network).values())
    assert torch.allclose(model.network.eval()(inputs), before, atol=1e-4)


def test_of_two_filters_that_are_the_same_one_speaks_for_both():
    class Twins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.fc = nn.Conv2d(1, 2, 1), nn.Conv2d(2, 40, 1, bias=False), nn.Linear(40, 10)
            with torch.no_grad():
                for parameter in (self.one.weight, self.one.bias):
                    parameter[1] = parameter[0]
                self.two.weight[:, 1] = self.two.weight[:, 0]

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.two(self.one(x)).relu().mean((2, 3)))

    network = seeded(Twins)
    inputs = torch.randn(4, *EXAMPLE.shape[1:])
    cell = small_job(lambda: network, steps=4)
    model = cell.model()
    thinning = Thinning(cell, model, FEW)
    thinning.removed = {0: 1}
    before = network(inputs)
    thinning.prune(model, 1.0)
    assert model.network.one.weight.shape[0] == 1
    assert torch.allclose(model.network(inputs), before, atol=1e-5)


def test_each_consumer_of_a_stream_is_rescaled_by_factors_of_its_own():
    model, cell = thinned(seeded(Residual), 0.2)
    assert 3 < widths(model.network)["stem"] < 12, "30 % inside do not reach the budget"
    assert count_macs(model.network, EXAMPLE) <= 0.2 * cell.dense_macs
    found = []
    for number, original in enumerate(seeded(Residual).blocks):
        name = f"blocks.{number}.conv1.weight"
        rows, channels = (model.space.kept(model.structures, (name, dim)) for dim in (0, 1))
        ratios = model.network.get_parameter(name) / original.conv1.weight[rows][:, channels]
        assert torch.allclose(ratios, ratios[:1, :, :1, :1].expand_as(ratios), rtol=1e-3)
        found.append(ratios[0, :, 0, 0])
    assert not torch.allclose(found[0], found[1], rtol=1e-2)


def test_every_consumer_of_a_stream_has_the_same_say_however_large_its_weights():
    found = []
    for scale in (1.0, 100.0):
        network = seeded(Residual)
        block = network.blocks[0]
        with torch.no_grad():
            block.conv1.weight *= scale  # which the norm undoes, by statistics to match
            block.bn1.running_var *= scale**2
        model, _ = thinned(network, 0.2)
        found.append(model.structures)
    assert torch.equal(*found) and not found[0][: model.space.filters].all()


def test_outputs_of_blocks_stay_whole_where_the_budget_can_be_met_inside():
    half, _ = thinned(seeded(Residual), 0.5)
    found = widths(half.network)
    assert found["stem"] == 12 and found["blocks.0.conv2"] == 12
    assert {found[f"blocks.{number}.conv1"] for number in range(3)} <= {5, 6}


@pytest.mark.parametrize(
    ("task", "backbone"),
    [
        ("cifar10_16px", "cifar_resnet20"),
        ("cifar10_16px", "cifar_vgg16_bn"),
        ("cifar10_16px", "cifar_mobilenetv2"),
        ("landcover", "deeplabv3plus_thin"),
    ],
)
def test_the_budget_is_met_on_other_backbones(task, backbone):
    space, task = space_for(task, backbone), registry.task(task)()
    network = registry.build_backbone(backbone, task)
    assert ThiNet().skip(task, network) is None
    cell = small_job(lambda: network, example=task.example(), budget=0.5)
    model = cell.model()
    model.space = space
    for cell.granularity in (8, 1):
        present = widths_to_keep(model, cell)
        assert 0.48 <= model.space.macs(present) / cell.dense_macs <= 0.5
    thinning = Thinning(cell, model, ThiNetSettings(images=2))
    first, *_, last = thinning.removed  # two, to be quick
    thinning.removed = {number: thinning.removed[number] for number in (first, last)}
    thinning.prune(model, 1.0)
    for number, removed in thinning.removed.items():
        group = model.space.groups[number]
        assert int(model.present[group.structures].sum()) == group.size - removed


def test_recurrent_networks_are_skipped():
    task = registry.task("ptb_small")()
    assert "recurrent" in ThiNet().skip(task, registry.build_backbone("lstm_200", task))


# --- the run ---


@pytest.mark.parametrize("budget", [0.25, 0.5, 0.75])
def test_layer_by_layer_to_the_budget_and_statistics_are_billed(budget):
    cell = small_job(wide, budget=budget, epochs=8, steps=3)
    network, macs = run(ThiNet(FEW), cell)
    assert budget - 0.02 <= share(network, wide) <= budget
    assert all(one >= other for one, other in pairwise(macs)) and len(set(macs)) >= 3
    assert macs[3] == cell.dense_macs > macs[4] and macs[-1] == macs[5]
    # each of the three layers is pruned by 16 images on the network as it then is: dense at first
    model = cell.model()
    present, expected = model.space.full(), 0
    target = widths_to_keep(model, cell)
    for group in model.space.groups:
        expected += 16 * model.space.macs(present)
        kept = int(target[group.structures].sum())
        present[group.structures] = torch.arange(group.size) < kept
    assert cell.meter.spent["calibration"] == expected
    steps = cell.meter.spent["training"] / (3 * 8)
    assert 12 * cell.dense_macs + 12 * macs[-1] < steps < 18 * cell.dense_macs + 6 * macs[-1]


def test_a_trained_start_prunes_in_the_part_of_the_schedule_that_is_left():
    class Source:
        def network(self) -> nn.Module:
            return seeded(wide)

    cell = small_job(wide, epochs=8, steps=3, source=Source())
    network, macs = run(ThiNet(ThiNetSettings(start="trained", images=16)), cell)
    assert len(macs) == 4 and macs[-1] == count_macs(network, EXAMPLE) < macs[0]
    assert 0.48 <= share(network, wide) <= 0.5


def test_all_layers_are_pruned_even_in_a_run_of_one_step():
    network, _ = run(ThiNet(FEW), small_job(wide, epochs=1, steps=1))
    assert 0.48 <= share(network, wide) <= 0.5


def test_killed_after_any_epoch_it_ends_with_the_same_bits():
    def small(**changes):
        return small_job(wide, epochs=6, steps=3, **changes)

    whole, _ = run(ThiNet(FEW), small())
    storage = Kept()
    for _ in range(5):
        stages = ThiNet(FEW).run(small(storage=storage))
        for _ in zip(range(2), stages, strict=False):
            pass
        stages.close()
    resumed, _ = run(ThiNet(FEW), small(storage=storage))
    assert equal(whole, resumed)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"images": 0}, "images 0 is out of range: give a number above 0"),
        ({"pruning_share": 0.8}, "dense_share 0.5 and pruning_share 0.8 are more than the run"),
        ({"start": "warm"}, "warm"),
    ],
)
def test_settings_outside_their_range_are_refused(changes, said):
    with pytest.raises(UserError, match=said):
        ThiNetSettings(**changes)
