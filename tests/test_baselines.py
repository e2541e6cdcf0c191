"""The baselines: what each keeps, that it meets the budget, and that it goes on from its state bit by bit."""

from __future__ import annotations

import importlib
import io
import pkgutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch_pruning
from tiny_networks import EXAMPLE, Plain, Residual, seeded
from torch import Tensor, nn

import baselines
from nasbench_grow.base.errors import UserError
from nasbench_grow.baselines.dense import Dense
from nasbench_grow.baselines.grow import Grow
from nasbench_grow.baselines.grow_paper import GrowPaper
from nasbench_grow.baselines.l1 import L1, filter_norms, ranks_by_norm
from nasbench_grow.baselines.random import Random
from nasbench_grow.baselines.uniform import Uniform
from nasbench_grow.contract.method import Job, Method
from nasbench_grow.contract.task import Batch, Recipe
from nasbench_grow.cost.macs import TrainingMeter, count_macs
from nasbench_grow.structure.discovery import discover
from nasbench_grow.structure.space import Space

METHODS = [Dense, Uniform, Random, L1, Grow, GrowPaper]
STEPS = 2


def job(make: Callable[[], nn.Module] = Residual, **changes: Any) -> Job:
    """Four epochs of two steps on noise."""
    arguments = {
        "budget": 0.5,
        "seed": 0,
        "epochs": 4,
        "steps_per_epoch": STEPS,
        "granularity": 1,
        "example": EXAMPLE,
        "recipe": Recipe(batch_size=8, learning_rate=0.05),
        "loss": F.cross_entropy,
        "build": lambda: seeded(make),
        "meter": TrainingMeter(),
    }
    return Job(**{**arguments, **changes})


def batches(epoch: int) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(epoch)
    for _ in range(STEPS):
        yield torch.randn(8, 1, 8, 8, generator=generator), torch.randint(0, 10, (8,), generator=generator)


def train_epoch(method: Method, epoch: int) -> float:
    """One epoch with the clock moved on as the harness does."""
    clock = method.grower.clock if isinstance(method, Grow) else method.job.clock
    clock.move_to((epoch - 1) * STEPS)
    return method.train_epoch(clock.each(batches(epoch)))


def train(method: Method, first: int, last: int) -> None:
    for epoch in range(first, last + 1):
        train_epoch(method, epoch)


def widths(network: nn.Module) -> dict[str, int]:
    return {name: module.out_channels for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}


def equal(one: nn.Module, other: nn.Module) -> bool:
    mine, others = one.state_dict(), other.state_dict()
    return mine.keys() == others.keys() and all(torch.equal(tensor, others[name]) for name, tensor in mine.items())


def share(network: nn.Module, make: Callable[[], nn.Module] = Residual) -> float:
    return count_macs(network, EXAMPLE) / count_macs(make(), EXAMPLE)


# --- every method ---


def test_every_file_of_the_package_holds_a_method_that_says_what_it_is():
    found = []
    for module in pkgutil.iter_modules(baselines.__path__):
        held = importlib.import_module(f"baselines.{module.name}")
        own = [value for value in vars(held).values() if isinstance(value, type) and value.__module__ == held.__name__]
        found += [value for value in own if issubclass(value, Method)]
        assert any(issubclass(value, Method) for value in own), f"{module.name} holds no method"
    assert set(METHODS) <= set(found)
    assert len({method.name for method in found}) == len(found)
    for method in found:
        assert method.name and method.summary, method
        assert method.source or method is Dense, f"{method.name} does not say where it comes from"
        assert method.uses_budget == (method is not Dense)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_continues_bit_by_bit_from_its_state(method):
    straight = method(job())
    train(straight, 1, 4)
    for stop in (1, 3):
        first = method(job())
        train(first, 1, stop)
        file = io.BytesIO()
        torch.save(first.state_dict(), file)
        file.seek(0)
        second = method(job())
        second.load_state_dict(torch.load(file, weights_only=True))
        assert equal(second.network(), first.network())
        train(second, stop + 1, 4)
        assert equal(second.finish(), straight.finish()), f"stopped after epoch {stop}"


@pytest.mark.parametrize("method", [Dense, Uniform, Random, L1])  # the others: see test_grower.py
def test_the_meter_counts_the_network_of_each_epoch(method):
    run = method(job())
    total = 0
    for epoch in range(1, 5):
        train_epoch(run, epoch)
        total += 3 * count_macs(run.network(), EXAMPLE) * 8 * STEPS
    assert run.job.meter.total == total


@pytest.mark.parametrize("method", METHODS)
def test_the_result_is_an_ordinary_network_that_runs(method):
    run = method(job())
    loss = train_epoch(run, 1)
    assert 0 < loss < 100
    assert type(run.finish()) is Residual
    assert run.finish().eval()(torch.randn(3, 1, 8, 8)).shape == (3, 10)


def test_dense_keeps_everything():
    run = Dense(job(budget=0.1))
    assert equal(run.network(), seeded(Residual))


# --- uniform ---


@pytest.mark.parametrize("budget", [0.25, 0.5, 0.75])
def test_uniform_keeps_the_same_share_everywhere_and_every_layer(budget):
    network = Uniform(job(budget=budget)).network()
    assert not any(isinstance(block, nn.Identity) for block in network.blocks)
    kept = widths(network)
    assert kept.keys() == widths(Residual()).keys()
    shares = [width / 12 for width in kept.values()]
    assert max(shares) - min(shares) <= 2.01 / 12
    assert budget - 0.05 <= share(network) <= budget


@pytest.mark.parametrize("budget", [0.25, 0.5, 0.75])
def test_uniform_meets_the_budget_closely_where_filters_are_many(budget):
    network = Uniform(job(lambda: Plain(48), budget=budget)).network()
    assert share(network, lambda: Plain(48)) == pytest.approx(budget, abs=0.02)


def test_uniform_at_full_budget_is_the_dense_network():
    assert equal(Uniform(job(budget=1.0)).network(), seeded(Residual))


# --- random ---


def test_random_draws_its_structure_from_the_seed_alone():
    shapes = [widths(Random(job(seed=seed)).network()) for seed in (0, 0, 1, 2)]
    torch.manual_seed(99)
    assert shapes[0] == shapes[1] == widths(Random(job(seed=0)).network())
    assert shapes[0] != shapes[2] != shapes[3]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("budget", [0.25, 0.5, 0.75])
def test_random_meets_the_budget(budget, seed):
    network = Random(job(lambda: Plain(48), budget=budget, seed=seed)).network()
    assert share(network, lambda: Plain(48)) == pytest.approx(budget, abs=0.02)
    assert share(network, lambda: Plain(48)) <= budget


def test_random_also_removes_layers():
    removed = [
        sum(isinstance(block, nn.Identity) for block in Random(job(seed=seed)).network().blocks) for seed in range(8)
    ]
    assert 0 < sum(removed) < 24


@pytest.mark.parametrize("method", [Random, L1])
def test_widths_are_multiples_of_the_granularity(method):
    run = method(job(lambda: Plain(40), granularity=8, epochs=2))
    train(run, 1, 2)
    found = widths(run.finish()).values()
    rounded = [width for width in found if width % 8 == 0 or width < 8]
    assert len(rounded) >= len(found) - 1, "one width may spend what the rounded ones leave of the budget"


# --- L1 ---


class Chain(nn.Module):
    """Two convolutions without norm or bias, 3 and 2 filters, weights set by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 3, 1, bias=False)
        self.second = nn.Conv2d(3, 2, 1, bias=False)
        self.fc = nn.Linear(2, 10)
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([0.5, -2.0, 1.0]).view(3, 1, 1, 1))
            self.second.weight.copy_(torch.tensor([[3.0, -0.1, 0.0], [-1.0, 1.0, 1.5]]).view(2, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.second(F.relu(self.first(x)))).mean((2, 3)))


def norms_of(network: nn.Module) -> tuple[Space, dict[str, list[float]]]:
    space = discover(network, EXAMPLE)
    norms = filter_norms(space, network)
    return space, {group.name: norms[group.structures].tolist() for group in space.groups}


def test_norms_are_the_sums_of_absolute_weights_that_make_a_filter():
    _, norms = norms_of(Chain())
    assert norms == {"first": pytest.approx([0.5, 2.0, 1.0]), "second": pytest.approx([3.1, 3.5])}


def test_coupled_filters_are_ranked_by_the_sum_over_the_layers_that_write_them():
    network = seeded(Residual)
    space, norms = norms_of(network)
    stream = next(group for group in space.groups if group.layer is None)
    writers = [network.stem, *(block.conv2 for block in network.blocks)]
    expected = sum(writer.weight.detach().abs().sum((1, 2, 3)) for writer in writers)
    assert norms[stream.name] == pytest.approx(expected.tolist(), rel=1e-5)


def test_the_largest_norms_stay():
    run = L1(job(Chain, budget=0.5, epochs=2, recipe=Recipe(learning_rate=0.0)))
    train(run, 1, 2)
    pruned = run.finish()
    # Half of 3 x 64 + 6 x 64 + 20 = 596 MACs is 298. By rank within the layer: 2.0 of `first`, 3.5 of `second`, then
    # 1.0 of `first`, together 2 x 64 + 2 x 64 + 10 = 266; either filter left would exceed it.
    assert pruned.first.weight.flatten().tolist() == pytest.approx([-2.0, 1.0])
    assert pruned.second.weight.flatten().tolist() == pytest.approx([1.0, 1.5])


def test_plain_layers_are_ranked_as_torch_pruning_ranks_them():
    network = seeded(Plain)
    _, norms = norms_of(network)
    graph = torch_pruning.DependencyGraph().build_dependency(network, example_inputs=EXAMPLE)
    importance = torch_pruning.importance.MagnitudeImportance(p=1, normalizer=None, target_types=[nn.Conv2d])
    for name in ("conv1", "conv2", "conv3"):
        layer = network.get_submodule(name)
        whole = graph.get_pruning_group(layer, torch_pruning.prune_conv_out_channels, idxs=list(range(16)))
        alone = [item for item in whole if item.dep.target.module is layer]  # theirs also adds up the consumers'
        theirs = importance(_only(whole, alone))
        assert torch.equal(torch.argsort(torch.tensor(norms[name])), torch.argsort(theirs.double()))


def _only(group: Any, items: list[Any]) -> Any:
    """A pruning group with some of its items."""
    group._group = items
    return group


def test_every_group_keeps_the_same_share_by_norm_and_layers_stay():
    network = seeded(Residual)
    space, norms = norms_of(network)
    keys = ranks_by_norm(space, network)
    assert torch.isinf(keys[space.filters :]).all()
    for group in space.groups:
        by_key = torch.argsort(keys[group.structures], descending=True)
        by_norm = torch.argsort(torch.tensor(norms[group.name]), descending=True)
        assert torch.equal(by_key, by_norm)
        assert torch.equal(keys[group.structures].sort().values, keys[space.groups[0].structures].sort().values)


@pytest.mark.parametrize("epochs, dense_epochs", [(2, 1), (4, 2), (5, 2)])
def test_l1_prunes_at_half_the_epochs(epochs, dense_epochs):
    run = L1(job(lambda: Plain(48), epochs=epochs))
    for epoch in range(1, epochs + 1):
        train_epoch(run, epoch)
        cost = share(run.network(), lambda: Plain(48))
        assert cost == 1.0 if epoch <= dense_epochs else cost == pytest.approx(0.5, abs=0.02)


def test_l1_needs_an_epoch_before_and_after_pruning():
    with pytest.raises(UserError, match="l1 cannot run for 1 epoch"):
        L1(job(epochs=1))


def test_survivors_keep_their_momentum():
    run = L1(job(Plain, epochs=2))
    train(run, 1, 1)
    before = {
        name: run.optimizer.state[parameter]["momentum_buffer"].clone()
        for name, parameter in run.trained.named_parameters()
    }
    run._become(_every_other(run.space))
    kept = slice(None, None, 2)
    for name, parameter in run.trained.named_parameters():
        expected = before[name]
        if name != "fc.bias":
            expected = expected[:, kept] if name == "fc.weight" else expected[kept]
            if name in ("conv2.weight", "conv3.weight"):
                expected = expected[:, kept]
        assert torch.equal(run.optimizer.state[parameter]["momentum_buffer"], expected), name


def _every_other(space: Space) -> Tensor:
    present = space.full()
    present[1::2] = False
    return present
