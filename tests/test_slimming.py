"""Network slimming: the price on the scales, one threshold on all of them, when it trains how."""

from types import SimpleNamespace

import pytest
import torch
import torch_pruning
from cells import small_cell
from killing import outcome, run_whole_and_in_pieces
from test_baselines import BATCH, STEPS, job, run, share, widths
from tiny_networks import EXAMPLE, Plain, Residual, seeded
from torch import nn

from nasbench_grow.base.errors import UserError
from nasbench_grow.baselines.slimming import PUBLISHED_REACH, ScalePrice, Slimming, SlimmingSettings, reach
from nasbench_grow.contract import ElasticModel, Recipe
from nasbench_grow.harness import registry

NORMS = nn.BatchNorm2d


def scattered(make=Plain, seed=1):
    """A model whose scales are random, some negative, one zero."""
    network = seeded(make)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, NORMS):
                module.weight.copy_(torch.randn(len(module.weight), generator=generator))
                module.weight[0] = 0
    return ElasticModel(network, EXAMPLE, Recipe().optimizer)


def gradients(model, price):
    """Of all parameters for some inputs, the price's added."""
    inputs = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    model.network.zero_grad()
    model.network(inputs).square().mean().backward()
    price.after_backward(model)
    return {name: parameter.grad.clone() for name, parameter in model.network.named_parameters()}


def test_the_price_adds_the_subgradient_of_the_papers_penalty_and_nothing_else():
    model = scattered()
    without, priced = gradients(model, ScalePrice(0.0)), gradients(model, ScalePrice(0.3))
    scales = [module.weight for module in model.network.modules() if isinstance(module, NORMS)]
    penalty = torch.autograd.grad(0.3 * sum(scale.abs().sum() for scale in scales), scales)
    expected = dict(zip([f"bn{number}.weight" for number in (1, 2, 3)], penalty, strict=True))
    assert all((gradient == 0).any() for gradient in penalty), "none at zero"
    for name, gradient in priced.items():
        torch.testing.assert_close(gradient, without[name] + expected.get(name, 0))


def moved(epochs, share, momentum=0.9):
    """How far SGD really moves a parameter whose gradient is one, over the first part of a run of 50 steps an epoch."""
    recipe = Recipe(learning_rate=0.2, momentum=momentum)
    parameter = nn.Parameter(torch.zeros(2, 2))
    optimizer = torch.optim.SGD([parameter], lr=1.0, momentum=momentum)
    for step in range(round(share * epochs * 50)):
        parameter.grad = torch.ones_like(parameter)
        recipe.set_rate(optimizer, recipe.learning_rate_at((step + 1) / (epochs * 50)))
        optimizer.step()
    return -parameter[0, 0].item(), reach(SimpleNamespace(total_steps=50 * epochs, recipe=recipe), share)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("epochs, share", [(10, 0.5), (40, 0.5), (10, 1.0)])
def test_the_reach_of_a_price_is_how_far_the_optimizer_moves_a_scale(epochs, share, momentum):
    real, told = moved(epochs, share, momentum)
    assert told == pytest.approx(real, rel=0.05)


def test_a_price_moves_a_scale_as_far_in_a_short_run_as_in_the_papers():
    for epochs in (4, 8):
        small = job(epochs=epochs)
        strength = Slimming(SlimmingSettings(strength=1e-4)).price(small).strength
        assert strength * reach(small, 0.5) == pytest.approx(1e-4 * PUBLISHED_REACH)
    assert pytest.approx(6.6, abs=0.01) == 1e-4 * PUBLISHED_REACH, "of scales that start at 0.5"


@pytest.mark.parametrize("start, began", [("scratch", 0.5), ("trained", 1.0)])
def test_scales_begin_at_a_half_unless_they_are_trained(start, began):
    slow = Recipe(batch_size=BATCH, learning_rate=1e-6)
    small = job(lambda: Plain(48), recipe=slow, source=SimpleNamespace(network=lambda: seeded(lambda: Plain(48))))
    network, _ = run(Slimming(SlimmingSettings(start=start, strength=1e-9)), small)
    scales = torch.cat([module.weight.detach() for module in network.modules() if isinstance(module, NORMS)])
    assert scales.tolist() == pytest.approx([began] * len(scales), abs=1e-3)


def keys_of(model):
    return Slimming().keys(model)


def test_one_threshold_on_the_scales_of_the_whole_network_decides():
    model = scattered()
    space, limit = model.space, 0.5 * model.macs
    named = zip(space.groups, (1, 2, 3), strict=True)
    scales = torch.cat([model.network.get_submodule(f"bn{number}").weight.detach().abs() for _, number in named])
    above = [scales > threshold for threshold in scales.sort().values]
    largest = next(present for present in above if space.macs(present) <= limit)  # the lowest threshold that fits
    Slimming().prune(job(Plain), model, limit)
    assert (model.structures & largest).sum() == largest.sum()
    assert model.structures.sum() - largest.sum() <= 2, "but for what fills the rest of the budget"
    assert len({int(width) for width in widths(model.network).values()}) > 1, "not the same share everywhere"


def test_filters_of_a_residual_stream_are_ranked_as_torch_pruning_ranks_them():
    model = scattered(Residual)
    network, keys = model.network, keys_of(model)
    graph = torch_pruning.DependencyGraph().build_dependency(network, example_inputs=EXAMPLE)
    importance = torch_pruning.importance.BNScaleImportance(group_reduction="max", normalizer=None)
    for group in model.space.groups:
        layer = network.get_submodule(group.name)
        whole = graph.get_pruning_group(layer, torch_pruning.prune_conv_out_channels, idxs=list(range(group.size)))
        torch.testing.assert_close(keys[group.structures], importance(whole))
    assert torch.isinf(keys[model.space.filters :]).all(), "layers stay"


class HalfScaled(nn.Module):
    """A convolution without norm beside one with."""

    def __init__(self):
        super().__init__()
        self.bare, self.conv, self.norm = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 20, 3), nn.BatchNorm2d(20)
        self.fc = nn.Linear(20, 10)

    def forward(self, x):
        return self.fc(self.norm(self.conv(self.bare(x))).relu().mean((2, 3)))


def test_a_filter_without_scale_stays():
    network, _ = run(Slimming(), job(HalfScaled, budget=0.4))
    assert network.bare.out_channels == 4 and network.conv.out_channels < 20
    assert 0.35 < share(network, HalfScaled) <= 0.4


@pytest.mark.parametrize("granularity", [1, 8])
@pytest.mark.parametrize("budget", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("make", [lambda: Plain(48), lambda: Residual(32)], ids=["plain", "residual"])
def test_the_budget_is_met(make, budget, granularity):
    network, _ = run(Slimming(), job(make, budget=budget, granularity=granularity, epochs=2))
    assert budget - 0.02 <= share(network, make) <= budget


def test_scales_are_priced_before_pruning_and_between_rounds_but_not_in_the_end():
    priced = []

    class Watched(Slimming):
        def price(self, job):
            price = super().price(job)
            price.after_epoch = lambda model: priced.append(model.macs)
            return price

    small = job(lambda: Plain(48), epochs=8, budget=0.5)
    settings = SlimmingSettings(rounds=2, dense_share=0.25, pruning_share=0.5)
    _, macs = run(Watched(settings), small)
    assert priced == macs[: len(priced)] and len(priced) == 4
    assert [round(each / small.dense_macs, 1) for each in macs] == 2 * [1.0] + 2 * [0.7] + 4 * [0.5]


@pytest.mark.parametrize("start, epochs", [("scratch", 4), ("trained", 4)])
def test_sparse_training_is_part_of_the_run_from_scratch_and_comes_on_top_of_a_trained_network(start, epochs):
    source = SimpleNamespace(network=lambda: seeded(lambda: Plain(48)))
    small = job(lambda: Plain(48), epochs=epochs, source=source)
    network, macs = run(Slimming(SlimmingSettings(start=start)), small)
    dense, pruned = small.dense_macs, macs[-1]
    assert macs == [dense, dense, pruned, pruned]
    assert small.meter.total == 3 * BATCH * STEPS * (2 * dense + 2 * pruned)
    assert share(network, lambda: Plain(48)) == pytest.approx(0.5, abs=0.02)


def test_the_start_says_what_the_run_begins_with():
    assert Slimming().source is None
    assert Slimming(SlimmingSettings(start="trained")).source == "dense"


def test_several_rounds_survive_kills(tmp_path):
    cell = small_cell(method="slimming[rounds=2]", budget=0.5, epochs=4, backbone="tiny_residual")
    whole, pieces = run_whole_and_in_pieces(cell, tmp_path)
    assert whole["status"] == "ok", whole["error"]
    assert outcome(pieces) == outcome(whole)


def test_networks_without_batch_normalisation_are_skipped():
    task = registry.tasks()["digits"]()
    assert "no batch normalisation" in Slimming().skip(task, nn.Sequential(nn.Conv2d(1, 2, 3), nn.GroupNorm(1, 2)))
    assert Slimming().skip(task, Plain()) is None


def test_a_price_of_nothing_is_refused():
    with pytest.raises(UserError, match="strength 0 is out of range: give a number above 0"):
        SlimmingSettings(strength=0)
