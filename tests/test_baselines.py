"""The baselines: what each keeps, that it meets the budget, and what its training is billed.

That each goes on bit by bit after a kill is tested for whatever is registered (test_resuming.py); controls that begin
with another cell have tests of their own (test_sources.py).
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch_pruning
from tiny_networks import EXAMPLE, FewBatches, Plain, Residual, seeded
from torch import Tensor, nn

from nasbench_grow import baselines
from nasbench_grow.base.errors import UserError
from nasbench_grow.baselines.dense import Dense
from nasbench_grow.baselines.grow import Grow
from nasbench_grow.baselines.grow_paper import GrowPaper
from nasbench_grow.baselines.l1 import L1
from nasbench_grow.baselines.placebo import Placebo
from nasbench_grow.baselines.random import SPREAD, UNSPENT, Random, RandomSettings
from nasbench_grow.baselines.random_widths import RandomWidths
from nasbench_grow.baselines.scaled import Scaled
from nasbench_grow.baselines.uniform import Uniform
from nasbench_grow.contract import Batch, ElasticModel, Job, Method, Recipe, RoundsSettings
from nasbench_grow.cost.macs import count_macs
from nasbench_grow.structure.architecture import describe
from nasbench_grow.structure.discovery import discover
from nasbench_grow.structure.selection import share_keys
from nasbench_grow.structure.space import Space

METHODS = [Dense, Uniform, Random, L1, Scaled, Grow, Placebo, GrowPaper]
OF_A_BUDGET = [Uniform, Random, L1, Scaled, Grow, Placebo]
STEPS, BATCH = 2, 8


class Noise(FewBatches):
    """Two batches of noise an epoch."""

    def __init__(self) -> None:
        super().__init__(STEPS, BATCH, (1, 8, 8))

    def epoch(self, epoch: int, batch_size: int, seed: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(epoch)
        for _ in range(STEPS):
            yield torch.randn(8, 1, 8, 8, generator=generator), torch.randint(0, 10, (8,), generator=generator)


def job(make: Callable[[], nn.Module] = Residual, **changes: Any) -> Job:
    """Four epochs of two steps on noise."""
    arguments = {
        "budget": 0.5,
        "seed": 0,
        "epochs": 4,
        "granularity": 1,
        "example": EXAMPLE,
        "recipe": Recipe(batch_size=BATCH, learning_rate=0.05),
        "loss": F.cross_entropy,
        "build": lambda: seeded(make),
        "train": Noise(),
    }
    return Job(**{**arguments, **changes})


def run(method: Method, job: Job) -> tuple[nn.Module, list[int]]:
    """The network that a method returns, and the MACs of its network at the end of each stage."""
    stages, macs = method.run(job), []
    while True:
        try:
            macs.append(count_macs(next(stages).network, EXAMPLE))
        except StopIteration as end:
            return end.value, macs


def widths(network: nn.Module) -> dict[str, int]:
    return {name: module.out_channels for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}


def removed(network: nn.Module) -> list[bool]:
    """Which blocks of a residual network are gone."""
    return [isinstance(block, nn.Identity) for block in network.blocks]


def equal(one: nn.Module, other: nn.Module) -> bool:
    mine, others = one.state_dict(), other.state_dict()
    return mine.keys() == others.keys() and all(torch.equal(tensor, others[name]) for name, tensor in mine.items())


def share(network: nn.Module, make: Callable[[], nn.Module] = Residual) -> float:
    return count_macs(network, EXAMPLE) / count_macs(make(), EXAMPLE)


def wide() -> nn.Module:
    """So many filters that one costs less than the 0.02 by which a budget may be missed."""
    return Plain(48)


# --- every method ---


def test_every_file_of_the_folder_holds_a_method_that_says_what_it_is():
    found = []
    for module in pkgutil.iter_modules(baselines.__path__):
        held = importlib.import_module(f"nasbench_grow.baselines.{module.name}")
        own = [value for value in vars(held).values() if isinstance(value, type) and value.__module__ == held.__name__]
        found += [value for value in own if issubclass(value, Method)]
        assert any(issubclass(value, Method) for value in own), f"{module.name} holds no method"
    assert set(METHODS) <= set(found)
    assert len({method.name for method in found}) == len(found)
    for method in found:
        assert method.name and method.summary, method
        assert method.family in ("control", "pruning", "growing", "search")
        assert method.citation or method.family == "control", f"{method.name} does not say where it comes from"
        assert method.uses_budget == (method.name not in ("dense", "darts_cells", "by_stage"))


@pytest.mark.parametrize("method", [Dense, Uniform, Random])
def test_a_network_that_stays_is_billed_three_passes_a_sample(method):
    small = job()
    network, macs = run(method(), small)
    assert macs == 4 * [count_macs(network, EXAMPLE)]
    assert small.meter.spent == {"training": 3 * sum(macs) * BATCH * STEPS, "search": 0, "source": 0, "calibration": 0}


@pytest.mark.parametrize("method", METHODS)
def test_the_result_is_an_ordinary_network_that_runs(method):
    network, macs = run(method(), job())
    assert len(macs) == 4
    assert type(network) is Residual
    assert network.eval()(torch.randn(3, 1, 8, 8)).shape == (3, 10)


@pytest.mark.parametrize("budget", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("method", OF_A_BUDGET)
def test_the_network_returned_meets_the_budget_where_filters_are_many(method, budget):
    for seed in range(3):
        network, _ = run(method(), job(wide, budget=budget, seed=seed))
        assert budget - 0.02 <= share(network, wide) <= budget, f"seed {seed}"


@pytest.mark.parametrize("method", OF_A_BUDGET)
def test_widths_are_multiples_of_the_granularity(method):
    network, _ = run(method(), job(lambda: Plain(40), granularity=8))
    found = widths(network).values()
    rounded = [width for width in found if width % 8 == 0 or width < 8]
    assert len(rounded) >= len(found) - 1, "one width may spend what the rounded ones leave of the budget"


def test_dense_keeps_everything_whatever_the_budget():
    network = Dense().choose(job(budget=0.1))
    assert equal(network, seeded(Residual))


# --- uniform ---


@pytest.mark.parametrize("budget", [0.25, 0.5, 0.75])
def test_uniform_keeps_the_same_share_everywhere_and_every_layer(budget):
    network = Uniform().choose(job(budget=budget))
    assert not any(removed(network))
    kept = widths(network)
    assert kept.keys() == widths(Residual()).keys()
    shares = [width / 12 for width in kept.values()]
    assert max(shares) - min(shares) <= 2.01 / 12
    assert budget - 0.05 <= share(network) <= budget


def test_uniform_rounds_to_the_granularity_as_everybody_does():
    exact, rounded = (widths(Uniform().choose(job(lambda: Plain(64), granularity=step))) for step in (1, 8))
    assert not any(width % 8 == 0 for width in exact.values()), "about 64 / sqrt(2) = 45 filters"
    assert all(width % 8 == 0 for width in rounded.values())


def test_uniform_at_full_budget_is_the_dense_network():
    assert equal(Uniform().choose(job(budget=1.0)), seeded(Residual))


# --- random ---


def test_random_draws_its_structure_from_the_seed_alone():
    networks = [Random().choose(job(seed=seed)) for seed in (0, 0, 1, 2)]
    torch.manual_seed(99)
    networks.append(Random().choose(job(seed=0)))
    assert equal(networks[0], networks[1]) and equal(networks[0], networks[4])
    shapes = [(widths(network), removed(network)) for network in networks]
    assert shapes[0] != shapes[2] != shapes[3]


def drawn(draw: int | None, budget: float = 0.25, make: Callable[[], nn.Module] = lambda: Residual(16), **changes: Any):
    return Random(RandomSettings(draw=draw)).choose(job(make, budget=budget, **changes))


@pytest.mark.parametrize("budget, granularity", [(0.1, 1), (0.25, 1), (0.5, 8), (0.75, 1)])
def test_random_meets_the_budget_whatever_it_draws(budget, granularity):
    for draw in range(6):
        share_of_dense = share(drawn(draw, budget, granularity=granularity), lambda: Residual(16))
        assert budget - UNSPENT <= share_of_dense <= budget, f"draw {draw}"


def test_the_draw_decides_on_the_architecture_and_the_seed_where_there_is_none():
    one, again, other = drawn(3, seed=0), drawn(3, seed=5), drawn(4, seed=0)
    assert equal(one, again)
    assert (widths(one), removed(one)) != (widths(other), removed(other))
    assert equal(drawn(None, seed=3), one) and equal(drawn(None, seed=4), other)


def test_random_draws_the_depth_and_widths_that_differ_between_groups():
    networks = [drawn(draw) for draw in range(16)]
    assert {sum(removed(network)) for network in networks} >= {0, 1, 2}
    inner = [
        [block.conv1.out_channels for block in network.blocks if not isinstance(block, nn.Identity)]
        for network in networks
    ]
    ratios = [max(found) / min(found) for found in inner if len(found) > 1]
    assert max(ratios) > 2 and sum(ratio > 1 for ratio in ratios) > 0.7 * len(ratios)
    assert max(ratios) <= SPREAD * 1.5, "a few filters more by rounding"
    assert len({(*found,) for found in inner}) > 10
    widest = [max(range(3), key=lambda block: found[block]) for found in inner if len(found) == 3]
    assert len(set(widest)) > 1, "no block is always the widest"


def test_a_budget_that_no_random_network_meets_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr("nasbench_grow.baselines.random.TRIES", 20)
    for budget, make in ((1e-4, lambda: Residual(16)), (0.6, lambda: Plain(2))):
        with pytest.raises(UserError) as caught:
            drawn(None, budget, make)
        assert str(caught.value) == (
            f"no random network of budget {budget:g} was found in 20 tries; give another budget"
        )


def test_random_widths_has_the_layers_of_its_source_and_widths_of_its_own():
    for draw in (0, 1, 2):
        found = drawn(draw)
        source = SimpleNamespace(architecture=describe(found, Residual(16)))
        networks = [
            RandomWidths().choose(job(lambda: Residual(16), budget=0.25, seed=seed, source=source))
            for seed in (draw, 9)
        ]
        for network in networks:
            assert removed(network) == removed(found)
            whole = share(found, lambda: Residual(16))
            assert whole - UNSPENT <= share(network, lambda: Residual(16)) <= whole, "as dear as its source"
        assert len({str(widths(network)) for network in (found, *networks)}) == 3


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


def norms_in(network: nn.Module) -> torch.Tensor:
    """What L1 ranks by, shape (structures,)."""
    return ElasticModel(network, EXAMPLE, Recipe().optimizer).filter_sums(lambda weight: weight.detach().abs())


def norms_of(network: nn.Module) -> tuple[Space, dict[str, list[float]]]:
    space = discover(network, EXAMPLE)
    norms = norms_in(network)
    return space, {group.name: norms[group.structures].tolist() for group in space.groups}


def test_norms_are_the_sums_of_absolute_weights_that_make_a_filter():
    _, norms = norms_of(Chain())
    assert norms == {"first": pytest.approx([0.5, 2.0, 1.0]), "second": pytest.approx([3.1, 3.5])}


def test_sums_of_scales_and_shifts_are_those_of_the_norms():
    network = seeded(Plain)
    model = ElasticModel(network, EXAMPLE, Recipe().optimizer)
    with torch.no_grad():
        network.bn2.weight.copy_(torch.arange(16.0))
        network.bn2.bias.copy_(-torch.arange(16.0))
    second = model.space.groups[1].structures
    for role, sign in (("scale", 1), ("shift", -1)):
        assert torch.equal(
            model.filter_sums(lambda weight: weight.detach(), of=(role,))[second], sign * torch.arange(16.0)
        )


def test_coupled_filters_are_ranked_by_the_sum_over_the_layers_that_write_them():
    network = seeded(Residual)
    space, norms = norms_of(network)
    stream = next(group for group in space.groups if group.layer is None)
    writers = [network.stem, *(block.conv2 for block in network.blocks)]
    expected = sum(writer.weight.detach().abs().sum((1, 2, 3)) for writer in writers)
    assert norms[stream.name] == pytest.approx(expected.tolist(), rel=1e-5)


def test_the_largest_norms_stay():
    still = Recipe(batch_size=BATCH, learning_rate=0.0)
    pruned, _ = run(L1(), job(Chain, budget=0.5, epochs=2, recipe=still))
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
    keys = share_keys(space, norms_in(network))
    assert torch.isinf(keys[space.filters :]).all()
    for group in space.groups:
        by_key = torch.argsort(keys[group.structures], descending=True)
        by_norm = torch.argsort(torch.tensor(norms[group.name]), descending=True)
        assert torch.equal(by_key, by_norm)
        assert torch.equal(keys[group.structures].sort().values, keys[space.groups[0].structures].sort().values)


@pytest.mark.parametrize(
    ("epochs", "dense_share", "dense_steps"), [(2, 0.5, 2), (4, 0.5, 4), (5, 0.5, 4), (1, 0.5, 1), (4, 0.25, 2)]
)
def test_l1_prunes_after_its_share_of_the_epochs_or_in_the_middle_of_the_only_one(epochs, dense_share, dense_steps):
    small = job(wide, epochs=epochs)
    network, macs = run(L1(RoundsSettings(dense_share=dense_share)), small)
    dense, pruned = small.dense_macs, count_macs(network, EXAMPLE)
    assert pruned / dense == pytest.approx(0.5, abs=0.02)
    steps = epochs * STEPS
    assert small.meter.total == 3 * BATCH * (dense_steps * dense + (steps - dense_steps) * pruned)
    assert set(macs) == {dense, pruned} and macs == sorted(macs, reverse=True)


def test_l1_goes_on_in_the_one_schedule_after_pruning():
    small = job(wide)
    rates = [stage.learning_rate for stage in L1().run(small)]
    plain = [stage.learning_rate for stage in Dense().run(job(wide))]
    assert rates == plain


def test_l1_refuses_what_is_no_share():
    with pytest.raises(UserError, match="dense_share 0 is out of range: it is a share"):
        replace(RoundsSettings(), dense_share=0)


def test_survivors_keep_their_momentum():
    small = job(Plain)
    model = small.model()
    for _ in small.fit(model, epochs=1):
        pass
    before = {
        name: model.optimizer.state[parameter]["momentum_buffer"].clone()
        for name, parameter in model.network.named_parameters()
    }
    model.resize(_every_other(model.space))
    kept = slice(None, None, 2)
    for name, parameter in model.network.named_parameters():
        expected = before[name]
        if name != "fc.bias":
            expected = expected[:, kept] if name == "fc.weight" else expected[kept]
            if name in ("conv2.weight", "conv3.weight"):
                expected = expected[:, kept]
        assert torch.equal(model.optimizer.state[parameter]["momentum_buffer"], expected), name


def _every_other(space: Space) -> Tensor:
    present = space.full()
    present[1::2] = False
    return present
