"""MorphNet: what a scale pays, which filters are alive, the one factor that meets the budget."""

import pytest
import torch
from cells import small_cell
from killing import outcome, run_whole_and_in_pieces
from test_baselines import BATCH, job, run, share, widths
from tiny_networks import EXAMPLE, Plain, Residual, seeded
from torch import nn

from nasbench_grow.base.errors import UserError
from nasbench_grow.baselines.morphnet import MorphNet, MorphNetSettings, Shrinking, expanded, factor
from nasbench_grow.contract import ElasticModel, Recipe
from nasbench_grow.cost.macs import count_macs
from nasbench_grow.harness import registry
from nasbench_grow.structure.discovery import discover


class Two(nn.Module):
    """Two 3 x 3 convolutions of 64 positions each, 6 and 4 filters, and a classifier."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 10)

    def forward(self, x):
        x = self.bn1(self.conv1(x)).relu()
        return self.fc(self.bn2(self.conv2(x)).relu().mean((2, 3)))


def shrinking_of(make, strength=1.0, threshold=0.01, target=0.0):
    model = ElasticModel(seeded(make), EXAMPLE, Recipe().optimizer)
    return model, Shrinking(model, strength, threshold, target)


def set_scales(model, **scales):
    with torch.no_grad():
        for name, values in scales.items():
            model.network.get_parameter(f"{name}.weight").copy_(torch.tensor(values))


def test_the_gradient_of_two_layers_is_the_price_beside_the_neighbours_alive():
    model, shrinking = shrinking_of(Two)
    # alive: 4 of 6 and 3 of 4; signs turn the gradient, and what is dead still pays
    set_scales(model, bn1=[1.0, -0.5, 0.2, 0.3, 0.001, -0.002], bn2=[1.0, -2.0, 0.5, 0.005])
    shrinking.before_step(model, 0, 10)
    shrinking.penalty(model).backward()
    of_first, of_second = 9 * 64 * (1 + 3), 9 * 64 * 4 + 10
    mean = (6 * 9 * 64 * (1 + 4) + 4 * (9 * 64 * 6 + 10)) / 10  # over the filters of the dense network
    first = torch.tensor([1.0, -1, 1, 1, 1, -1]) * of_first / mean
    second = torch.tensor([1.0, -1, 1, 1]) * of_second / mean
    torch.testing.assert_close(model.network.bn1.weight.grad, first)
    torch.testing.assert_close(model.network.bn2.weight.grad, second)
    assert model.network.conv1.weight.grad is None


def test_the_penalty_is_the_linear_form_of_the_macs():
    """Where every scale is 1, prices add up to the MACs, those of a product of two widths twice."""
    model, shrinking = shrinking_of(Two)
    shrinking.before_step(model, 0, 10)
    expected = 9 * 64 * 6 + 2 * 9 * 64 * 6 * 4 + 10 * 4
    assert float(shrinking.penalty(model).detach()) * shrinking.unit == pytest.approx(expected)


def test_of_coupled_filters_the_largest_scale_pays():
    model, shrinking = shrinking_of(lambda: Residual(4))
    writers = [model.network.norm, *(block.bn2 for block in model.network.blocks)]
    with torch.no_grad():
        for number, norm in enumerate(writers):
            norm.weight.copy_(0.1 * torch.arange(4) * (-1) ** number)
            norm.weight[number] = 0.5
    shrinking.before_step(model, 0, 10)
    shrinking.penalty(model).backward()
    paying = torch.stack([norm.weight.grad != 0 for norm in writers])
    assert torch.equal(paying, torch.eye(4, dtype=torch.bool))


def test_coupled_filters_die_together_and_a_block_with_its_last_one():
    model, shrinking = shrinking_of(lambda: Residual(4))
    blocks = model.network.blocks
    with torch.no_grad():
        model.network.norm.weight[:2] = 0.001
        for block in blocks:
            block.bn2.weight[0] = 0.001
        blocks[1].bn1.weight.fill_(0.001)
        blocks[2].bn1.weight[1:] = 0.001
    space, alive = model.space, shrinking.alive(model)
    stream = next(group for group in space.groups if group.layer is None)
    assert alive[stream.structures].tolist() == [False, True, True, True], "1 is alive in the blocks"
    assert alive[space.filters :].tolist() == [True, False, True]
    assert space.widths(alive)["blocks.2.conv1"] == 1


def test_a_group_that_cannot_go_keeps_its_largest_filter():
    model, shrinking = shrinking_of(Two)
    set_scales(model, bn1=[0.001, 0.002, -0.004, 0.003, 0, 0])
    assert shrinking.alive(model)[:6].tolist() == [False, False, True, False, False, False]


def alive_of(space, *counts):
    alive = space.full()
    for group, count in zip(space.groups, counts, strict=True):
        alive[group.start + count : group.start + group.size] = False
    return alive


def test_the_factor_of_a_network_worked_by_hand():
    space = discover(seeded(Two), EXAMPLE)
    # 2 and 4 alive cost 576 (2 + 2 x 4) + 40 = 5800; thrice as wide, 576 (6 + 6 x 12) + 120 = 45048
    alive = alive_of(space, 2, 4)
    assert factor(space, alive, 5800) == pytest.approx(1, abs=1e-3)
    assert factor(space, alive, 45048) == pytest.approx(3, abs=1e-3)
    assert factor(space, alive, 576 * (1 + 2) + 20) == pytest.approx(0.5, abs=1e-3)


def test_the_widths_alive_are_multiplied_by_one_factor_beyond_the_dense_network():
    small = job(Two, budget=45048 / count_macs(Two(), EXAMPLE))
    dense = small.build()
    space = discover(dense, EXAMPLE)
    network = expanded(space, dense, alive_of(space, 2, 4), small)
    assert widths(network) == {"conv1": 6, "conv2": 12} and dense.conv2.out_channels == 4
    assert count_macs(network, EXAMPLE) == 45048
    assert torch.equal(network.conv2.weight[:4], dense.conv2.weight), "with the initial weights"
    assert len(network.conv2.weight.flatten(1).unique(dim=0)) == 12, "and no two filters alike"


def test_layers_that_died_are_not_there_when_widths_are_expanded():
    small = job(lambda: Residual(8), budget=1.0)
    space = discover(small.build(), EXAMPLE)
    alive = alive_of(space, *[4] * len(space.groups))
    alive[space.filters + 1] = False
    network = expanded(space, small.build(), alive, small)
    assert [isinstance(block, nn.Identity) for block in network.blocks] == [False, True, False]
    assert min(widths(network).values()) > 8


@pytest.mark.parametrize("granularity", [1, 8])
@pytest.mark.parametrize("budget", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("make", [lambda: Plain(48), lambda: Residual(32)], ids=["plain", "residual"])
def test_the_budget_is_met_whatever_is_alive(make, budget, granularity):
    small = job(make, budget=budget, granularity=granularity)
    space = discover(small.build(), EXAMPLE)
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        counts = [int(group.size * (0.1 + 0.8 * torch.rand((), generator=generator))) for group in space.groups]
        network = expanded(space, small.build(), alive_of(space, *counts), small)
        assert budget - 0.02 <= share(network, make) <= budget
        odd = {width for width in widths(network).values() if width > 8 and width % 8}
        assert granularity == 1 or len(odd) <= 3, "half steps of 4, 2 and 1 that spend the rest"


class Halves:
    """A split of noise, a part of which can be held out."""

    def __init__(self, steps):
        self.steps = steps

    def __len__(self):
        return self.steps * BATCH

    def steps_per_epoch(self, batch_size):
        return self.steps

    def epoch(self, epoch, batch_size, seed):
        generator = torch.Generator().manual_seed(epoch)
        for _ in range(self.steps):
            yield torch.randn(BATCH, 1, 8, 8, generator=generator), torch.arange(BATCH)

    def hold_out(self, share, batch_size=1):
        return Halves(self.steps - 1), Halves(1)


@pytest.mark.parametrize("shrunk, searched", [(1e-6, 2), (1.0, 1)])
def test_the_search_ends_at_its_target_and_is_billed_on_top(shrunk, searched):
    small = job(lambda: Plain(32), train=Halves(3), epochs=4, budget=1.0)
    settings = MorphNetSettings(search_share=0.5, shrunk=shrunk)
    network, macs = run(MorphNet(settings), small)
    dense, found = small.dense_macs, count_macs(network, EXAMPLE)
    assert macs == searched * [dense] + 4 * [found]
    assert small.meter.spent["search"] == 3 * BATCH * searched * 2 * dense
    assert small.meter.spent["training"] == 3 * BATCH * 4 * 3 * found


def test_the_first_structure_at_the_target_is_kept():
    model, shrinking = shrinking_of(Two, target=5800)
    shrinking.before_step(model, 0, 100)
    assert shrinking.found is None
    set_scales(model, bn1=[1.0, 1, 0, 0, 0, 0])
    shrinking.before_step(model, 3, 100)
    assert shrinking.found is None, "prices are updated every twentieth of an epoch"
    shrinking.before_step(model, 5, 100)
    assert torch.equal(shrinking.found, alive_of(model.space, 2, 4))
    set_scales(model, bn1=[1.0, 0, 0, 0, 0, 0])
    shrinking.before_step(model, 10, 100)
    assert shrinking.found[:6].sum() == 2


def test_a_search_that_ended_early_survives_kills(tmp_path):
    method = "morphnet[search_share=1,shrunk=1,strength=50]"
    cell = small_cell(method=method, budget=1.0, epochs=2, backbone="tiny_residual")
    whole, pieces = run_whole_and_in_pieces(cell, tmp_path)
    assert whole["status"] == "ok", whole["error"]
    assert outcome(pieces) == outcome(whole)


def test_networks_without_batch_normalisation_are_skipped():
    task = registry.tasks()["digits"]()
    assert "no batch normalisation" in MorphNet().skip(task, nn.Sequential(nn.Conv2d(1, 2, 3), nn.GroupNorm(1, 2)))


@pytest.mark.parametrize("name", ["strength", "threshold", "search_share", "shrunk"])
def test_nothing_is_refused(name):
    with pytest.raises(UserError, match=f"{name} 0 is out of range"):
        MorphNetSettings(**{name: 0.0})
