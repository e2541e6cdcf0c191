"""What a growing run promises: its budget, its cost, what it touches, and that it can stop and go on."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_networks import EXAMPLE, Plain, Residual, digit_batches, seeded, sgd
from torch import Tensor, nn

from nasbench_grow.backbones import create
from nasbench_grow.base.errors import UserError
from nasbench_grow.cost.macs import TrainingMeter, count_macs
from nasbench_grow.growing.grower import Grower
from nasbench_grow.growing.presets import PRESETS


def resnet20() -> nn.Module:
    return create("cifar_resnet20", 10, 1)


def wide() -> nn.Module:
    """So many filters that one costs less than the 0.02 by which a budget may be missed."""
    return Plain(48)


def grower(make: Callable[[], nn.Module] = Residual, epochs: int = 10, **changes: Any) -> Grower:
    """A grower on a fresh network that is the same each time."""
    model = seeded(make)
    arguments = {"budget": 0.5, "steps_per_epoch": 2, "loss": F.cross_entropy, "optimizer": sgd}
    return Grower(model, EXAMPLE, epochs=epochs, **{**arguments, **changes})


def train(run: Grower, epochs: int, steps: int = 2, batch_size: int = 8) -> None:
    for epoch in range(1, epochs + 1):
        run.train(digit_batches(epoch, steps, batch_size))


def tensors(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def there(run: Grower, name: str, tensor: Tensor) -> Tensor:
    """Which entries of a bank's tensor the present structures own, as a mask of its shape."""
    mask = torch.ones(tensor.shape, dtype=torch.bool)
    if not run.space.layer_present(run.masks.present, run.space.layer_of(name)):
        return torch.zeros_like(mask)
    for dim in range(tensor.ndim):
        kept = run.space.kept(run.masks.present, (name, dim))
        if kept is not None:
            along = torch.zeros(tensor.shape[dim], dtype=torch.bool)
            along[kept] = True
            mask &= along.view([-1 if axis == dim else 1 for axis in range(tensor.ndim)])
    return mask


# --- budget, commitment, growth ---


RUNS = [(resnet20, 10, 0), (wide, 10, 1), (wide, 40, 2)]
CASES = [(*run, budget) for run in RUNS for budget in (0.25, 0.5, 0.75)] + [(wide, 160, 3, 0.5)]


@pytest.mark.parametrize("make, epochs, seed, budget", CASES)
def test_the_returned_network_meets_the_budget_and_is_the_last_sampled_one(make, epochs, seed, budget):
    run = grower(make, epochs, budget=budget, seed=seed)
    train(run, epochs, batch_size=4)
    sampled, returned = run.network(), run.finish()
    assert abs(count_macs(returned, EXAMPLE) / count_macs(run.bank, EXAMPLE) - budget) <= 0.02
    inputs = torch.randn(4, 1, 8, 8)
    assert torch.equal(sampled(inputs), returned(inputs))


@pytest.mark.parametrize("make, budget", [(Residual, 0.25), (Residual, 0.5), (resnet20, 0.75)])
def test_growth_is_gradual_from_the_seed(make, budget):
    run = grower(make, epochs=1, steps_per_epoch=40, budget=budget)
    assert set(run.widths().values()) == {0, 1}
    assert run.macs == run.space.macs(run.space.seed())
    costs = [run.macs / run.dense_macs]
    for batch in digit_batches(1, 40, batch_size=2):
        run.train([batch])
        costs.append(run.macs / run.dense_macs)
    assert max(after - before for before, after in pairwise(costs)) <= 0.25
    assert run.log()["largest_step"] == pytest.approx(max(abs(after - before) for before, after in pairwise(costs)))
    assert costs[-1] > 10 * costs[0]


def test_removable_layers_appear():
    run = grower(Residual, epochs=10)
    layers = run.space.filters
    assert not run.masks.present[layers:].any()
    assert isinstance(run.network().get_submodule("blocks.1"), nn.Identity)
    train(run, 10)
    assert run.masks.present[layers:].any()
    grown = [layer.name for index, layer in enumerate(run.space.layers) if run.masks.present[layers + index]]
    returned = run.finish()
    for layer in run.space.layers:
        assert isinstance(returned.get_submodule(layer.name), nn.Identity) == (layer.name not in grown)


class FixedStream(Residual):
    """All that can be grown lies inside the blocks: their seed is nothing at all."""

    def forward(self, x: Tensor) -> Tensor:
        mixed = F.softmax(self.norm(self.stem(x)), dim=1)
        return self.fc(self.blocks(mixed).mean((2, 3)))


@pytest.mark.parametrize("preset", ["paper", "default"])
def test_a_seed_that_has_nothing_to_scale_grows_all_the_same(preset):
    run = grower(FixedStream, budget=0.6, preset=preset)
    assert all(group.layer is not None for group in run.space.groups)
    assert not run.masks.present[run.space.filters :].any()
    train(run, 10)
    assert run.finish()(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert preset == "paper" or run.masks.present[run.space.filters :].any()


def test_the_log_tells_scheduled_and_actual_cost():
    run = grower(Plain, epochs=10, budget=0.4)
    seed = run.macs / run.dense_macs
    start = run.log()
    assert (start["target"], start["cost"]) == (pytest.approx(seed), pytest.approx(seed))
    train(run, 10)
    end = run.log()
    assert (end["target"], end["cost"]) == (pytest.approx(0.4), pytest.approx(run.macs / run.dense_macs))


@pytest.mark.parametrize("preset", ["paper", "default"])
def test_the_network_now_is_an_ordinary_module_that_computes_what_is_trained(preset):
    run = grower(Residual, epochs=4, preset=preset)
    train(run, 3)
    network = run.network()
    inputs = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        gated = run.gated.eval()(inputs, run.masks.gates())
    assert torch.allclose(network(inputs), gated, atol=1e-5)
    assert count_macs(network, EXAMPLE) == run.macs
    assert type(network) is Residual
    before = tensors(network)
    train(run, 1)
    assert same(tensors(network), before), "the copy does not change when training goes on"


@pytest.mark.parametrize("preset", ["paper", "default"])
def test_hardening_leaves_the_run_able_to_finish_twice(preset):
    run = grower(Residual, epochs=3, preset=preset)
    train(run, 3)
    assert same(tensors(run.finish()), tensors(run.finish()))


# --- what it costs and what it touches ---


@pytest.mark.parametrize("preset", ["paper", "default"])
def test_the_training_meter_counts_the_networks_that_ran(preset):
    meter = TrainingMeter()
    run = grower(Residual, epochs=6, preset=preset, meter=meter)
    total = 0
    for epoch in range(1, 7):
        for inputs, target in digit_batches(epoch, 2, batch_size=4 + epoch):
            run.train([(inputs, target)])
            total += 3 * count_macs(run.gated.network, EXAMPLE) * len(inputs)
    assert meter.total == total


@pytest.mark.parametrize("preset", ["paper", replace(PRESETS["default"], newborn="fresh")], ids=["paper", "priced"])
def test_absent_structures_are_not_touched(preset):
    run = grower(Residual, epochs=8, preset=preset)
    absent = 0
    for epoch in range(1, 9):
        for batch in digit_batches(epoch, 2, batch_size=4):
            before = tensors(run.bank)
            mine = {name: there(run, name, tensor) for name, tensor in before.items()}
            run.train([batch])  # where a period ends, this first writes back what was present until then
            for name, tensor in run.bank.state_dict().items():
                assert torch.equal(tensor[~mine[name]], before[name][~mine[name]]), name
            absent += sum(int((~mask).sum()) for mask in mine.values())
    assert absent > 0


def test_what_was_trained_is_written_back():
    run = grower(Residual, epochs=5, preset=replace(PRESETS["default"], periods=5, growth=1.0, settle=1.0))
    for epoch in range(1, 5):
        run.train(digit_batches(epoch, 2 if epoch == 1 else 1, batch_size=4))  # to the end of a period
        trained, present = tensors(run.gated.network), run.masks.present
        mine = {name: there(run, name, tensor) for name, tensor in run.bank.state_dict().items()}
        run.train(digit_batches(epoch, 1, batch_size=4))
        assert not torch.equal(run.masks.present, present)
        for name, tensor in trained.items():
            assert torch.equal(run.bank.state_dict()[name][mine[name]], tensor.flatten()), name


@pytest.mark.parametrize("preset", ["paper", "default"])
def test_only_the_present_structures_have_weights_and_optimizer_state(preset):
    run = grower(Residual, epochs=8, preset=preset)
    for epoch in range(1, 9):
        run.train(digit_batches(epoch, 2, batch_size=4))
        sizes = dict(run.space.sizes(run.masks.present))
        assert {name: tuple(tensor.shape) for name, tensor in run.gated.network.state_dict().items()} == sizes
        trained = {id(parameter) for parameter in run.gated.network.parameters()}
        optimized = [parameter for group in run.optimizer.param_groups for parameter in group["params"]]
        assert {id(parameter) for parameter in optimized} == trained and len(optimized) == len(trained)
        assert {id(parameter) for parameter in run.optimizer.state} <= trained
        for parameter, state in run.optimizer.state.items():
            assert state["momentum_buffer"].shape == parameter.shape


def test_the_learning_rate_is_that_of_the_step():
    rates = []

    def rate(step: int) -> float:
        rates.append(step)
        return 0.01 * (step + 1)

    run = grower(Plain, epochs=5, learning_rate_at=rate)
    train(run, 5)
    assert sorted(set(rates)) == list(range(10))
    assert all(group["lr"] == pytest.approx(0.1) for group in run.optimizer.param_groups)


def test_the_mean_loss_is_returned():
    seen = []

    def loss(output: Tensor, target: Tensor) -> Tensor:
        seen.append(F.cross_entropy(output, target))
        return seen[-1]

    run = grower(Plain, loss=loss)
    mean = run.train(digit_batches(1, 2))
    assert mean == pytest.approx(sum(value.item() for value in seen) / 2)


# --- stopping and going on ---


@pytest.mark.parametrize("stop", [4, 7, 9], ids=["at a period's end", "within a period", "within another"])
@pytest.mark.parametrize("preset", ["paper", "default"])
def test_a_run_continues_bit_by_bit_from_its_state(preset, stop):
    chosen = PRESETS[preset] if preset == "paper" else replace(PRESETS["default"], periods=8)
    arguments = {"epochs": 8, "preset": chosen, "seed": 5}
    batches = [batch for epoch in range(8) for batch in digit_batches(epoch, 2)]
    straight = grower(Residual, **arguments)
    straight.train(batches)

    first = grower(Residual, **arguments)
    first.train(batches[:stop])
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = grower(Residual, **arguments)
    second.load_state_dict(torch.load(file, weights_only=True))
    assert second.macs == first.macs
    second.train(batches[stop:])

    assert torch.equal(second.masks.present, straight.masks.present)
    assert torch.equal(second.masks.logits, straight.masks.logits)
    assert same(tensors(second.network()), tensors(straight.network()))
    assert same(tensors(second.finish()), tensors(straight.finish()))


@pytest.mark.parametrize("preset", ["paper", "default"])
def test_the_same_seed_gives_the_same_network_and_another_seed_another(preset):
    def present(seed: int) -> Tensor:
        run = grower(Residual, epochs=10, preset=preset, seed=seed)
        train(run, 10)
        return run.masks.present

    assert torch.equal(present(1), present(1))
    assert not torch.equal(present(1), present(2))


# --- bad input ---


def refused(message: str, **changes: Any) -> None:
    with pytest.raises(UserError, match=message) as caught:
        grower(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("budget", [0.0, -0.5, 1.01, float("nan")])
def test_a_budget_outside_its_range_is_refused(budget):
    refused(r"outside \(0, 1\]", budget=budget)


def test_a_budget_below_the_seed_is_refused():
    refused("below the seed network's own cost", budget=1e-5)


def test_an_unknown_preset_is_refused():
    refused("unknown preset 'papers'; did you mean 'paper'", preset="papers")


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)),
        lambda: nn.Sequential(nn.Conv2d(1, 10, 8), nn.Flatten()),
        lambda: nn.Sequential(nn.AvgPool2d(2), nn.Flatten()),
    ],
    ids=["one linear layer", "one convolution", "no weights"],
)
def test_a_model_with_nothing_to_grow_is_refused(make):
    refused("nothing in this model can be grown", make=make)
