"""DepGraph: it keeps what Torch-Pruning keeps, and its training is regularised by Torch-Pruning and billed."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch_pruning
from cells import small_cell
from tiny_networks import EXAMPLE, Block, Plain, Residual, seeded, small_job
from torch import Tensor, nn

from nasbench_grow import count_macs, select
from nasbench_grow.base.errors import UserError
from nasbench_grow.baselines.depgraph import DepGraph, Settings, SparseLearning, make_pruner, removal_order
from nasbench_grow.harness.reproduce import run_one
from nasbench_grow.harness.store import Store


class Depthwise(nn.Module):
    """A pointwise convolution, a depthwise one and a block: (B, 1, 8, 8) to (B, 10)."""

    def __init__(self, width: int = 40) -> None:
        super().__init__()
        self.expand = nn.Conv2d(1, width, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.project = nn.Conv2d(width, width, 1, bias=False)
        self.block = Block(width)
        self.fc = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.project(torch.relu(self.depthwise(torch.relu(self.norm(self.expand(x))))))
        return self.fc(self.block(x).mean((2, 3)))


def uneven(make: Callable[[], nn.Module]) -> nn.Module:
    """A network whose filters are of very different norms."""
    network = seeded(make)
    draws = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data *= 2 * torch.rand(len(module.weight), 1, 1, 1, generator=draws)
    return network


def pruned_by_the_library(network: nn.Module, limit: float, normalizer: str) -> nn.Module:
    """As the library's own scripts prune: globally, in 400 steps, until the network is small enough."""
    pruner = torch_pruning.pruner.GroupNormPruner(
        network,
        EXAMPLE,
        torch_pruning.importance.GroupMagnitudeImportance(p=2, normalizer=normalizer),
        global_pruning=True,
        pruning_ratio=1.0,
        iterative_steps=400,
        ignored_layers=[network.get_submodule("fc")],
    )
    while count_macs(network, EXAMPLE) > limit:
        pruner.step()
    return network.train()


@pytest.mark.parametrize(
    ("make", "normalizer"),
    [(lambda: Plain(24), "max"), (lambda: Residual(12), "mean"), (lambda: Depthwise(24), "mean")],
)
def test_what_stays_is_what_the_library_leaves(make, normalizer):
    network = uneven(make)
    limit = 0.6 * count_macs(network, EXAMPLE)
    theirs = pruned_by_the_library(copy.deepcopy(network), limit, normalizer)
    model = small_job(lambda: network).model()
    order = removal_order(model, limit, Settings(max_pruning_ratio=1.0, normalizer=normalizer))
    model.resize(select(model.space, order, count_macs(theirs, EXAMPLE)))
    mine, others = model.network.state_dict(), theirs.state_dict()
    assert mine.keys() == others.keys()
    for name, weights in mine.items():
        assert torch.equal(weights, others[name]), name
    filters = model.space.filters
    present, order = model.structures[:filters], order[:filters]
    assert order[~present].min() == 1 and order[~present].max() < order[present].min()


def two_groups() -> nn.Module:
    """Groups of three and of two filters, whose squared norms are 1 + 82, 4 + 1, 9 + 26; 106.1 and 3.1."""
    network = nn.Sequential(
        nn.Conv2d(1, 3, 1), nn.Conv2d(3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 10)
    )
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1, 1))
        network[1].weight.copy_(torch.tensor([[9.0, 0.0, 5.0], [1.0, 1.0, 1.0]]).view(2, 3, 1, 1))
        network[4].weight.fill_(0.1)
    return network


def test_filters_of_small_norm_leave_first_relative_to_their_groups_largest():
    # relative to the largest 1, 0.06, 0.42 and 1, 0.03. The last of a group stays.
    order = removal_order(small_job(two_groups).model(), 0.0, Settings(normalizer="max"))
    first, second = order[:3], order[3:5]
    assert second[1] < first[1] < first[2] < first[0] == second[0]


def test_what_the_library_leaves_is_ranked_by_what_it_is_worth():
    job = small_job(two_groups)
    order = removal_order(job.model(), job.dense_macs, Settings(normalizer="max"))
    assert order.tolist() == pytest.approx([1 + 1, 1 + 5 / 83, 1 + 35 / 83, 1 + 1, 1 + 3.1 / 106.1])
    order = removal_order(job.model(), job.dense_macs, Settings())  # means of 41 and 54.6
    assert order.tolist() == pytest.approx([1 + 83 / 41, 1 + 5 / 41, 1 + 35 / 41, 1 + 106.1 / 54.6, 1 + 3.1 / 54.6])


def with_an_outlier() -> nn.Module:
    """A network in which one filter of the stream is far larger than the others."""
    network = seeded(lambda: Residual(20))
    with torch.no_grad():
        for weight in (network.stem.weight, network.norm.weight, *(block.bn2.weight for block in network.blocks)):
            weight[7] *= 20
    return network


@pytest.mark.parametrize(("ratio", "budget", "fewest", "most"), [(1.0, 0.2, 1, 4), (0.7, 0.2, 5, 6), (0.7, 0.02, 1, 4)])
def test_no_layer_loses_more_than_the_ratio_unless_the_budget_needs_it(ratio, budget, fewest, most):
    job = small_job(with_an_outlier, budget=budget, epochs=4)
    model = job.model()
    DepGraph(Settings(max_pruning_ratio=ratio, normalizer="max")).prune(job, model, budget * job.dense_macs)
    assert fewest <= model.network.stem.out_channels <= most
    assert model.macs <= budget * job.dense_macs


@pytest.mark.parametrize("budget", [0.25, 0.5, 0.75])
def test_removable_layers_stay_where_widths_are_rounded_up(budget):
    job = small_job(lambda: uneven(lambda: Residual(36)), budget=budget, granularity=8)
    model = job.model()
    DepGraph().prune(job, model, budget * job.dense_macs)
    assert model.structures[model.space.filters :].all()
    assert budget - 0.02 <= model.macs / job.dense_macs <= budget


def test_the_regulariser_takes_the_place_of_weight_decay():
    model = small_job(lambda: Plain(6)).model()
    learning = SparseLearning(make_pruner(model.space, model.network, EXAMPLE, Settings(strength=0.1)))
    for parameter in model.network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    learning.after_backward(model)
    assert [group["weight_decay"] for group in model.optimizer.param_groups] == [0.0]
    network, weights = model.network, model.network.conv3.weight.detach()
    square = weights.square().sum((1, 2, 3)) + network.bn3.weight.detach().square() + network.fc.weight.square().sum(0)
    norms = square.detach().sqrt()  # of the last group; what the library divides them by cancels out
    factors = 16 ** ((norms.max() - norms) / (norms.max() - norms.min()))
    assert factors.min() == 1 and factors.max() == pytest.approx(16)
    assert torch.allclose(network.bn3.weight.grad, 0.1 * factors * network.bn3.weight.detach(), rtol=1e-4)
    assert torch.allclose(network.fc.weight.grad, 0.1 * factors * network.fc.weight.detach(), rtol=1e-4)
    learning.after_step(model)
    assert [group["weight_decay"] for group in model.optimizer.param_groups] == [5e-4]


@pytest.mark.parametrize("granularity", [1, 8])
@pytest.mark.parametrize("make", [lambda: Plain(48), lambda: Residual(48), Depthwise])
def test_it_meets_the_budget_and_every_step_is_billed(make, granularity):
    job = small_job(make, epochs=4, granularity=granularity)
    method = DepGraph()
    stages = method.run(job)
    try:
        while True:
            next(stages)
    except StopIteration as end:
        macs = count_macs(end.value, EXAMPLE)
    assert job.budget - 0.02 <= macs / job.dense_macs <= job.budget
    assert job.meter.total == 3 * 8 * 2 * (2 * job.dense_macs + 2 * macs), "8 samples, 2 steps an epoch"


def test_a_trained_network_is_learnt_sparse_on_top(tmp_path):
    cell = small_cell(method="depgraph[start=trained]", backbone="tiny_residual", budget=0.5, epochs=4)
    store = Store(tmp_path)
    run_one(cell.source(), store)
    record = run_one(cell, store)
    assert record["status"] == "ok", record["error"]
    dense, small = record["dense_macs"], record["macs"]
    samples = record["source_macs"] / (3 * 4 * dense)
    assert record["train_macs"] == pytest.approx(3 * samples * (4 * dense + dense + 2 * small))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"sparse_share": 0.8}, "sparse_share 0.8 is more than dense_share 0.5, which it is a part of"),
        ({"strength": 0.0}, "strength 0 is out of range: give a number above 0"),
        ({"sparse_share": 0.0}, "sparse_share 0 is out of range: it is a share"),
        ({"normalizer": "sum"}, "normalizer 'sum'"),
        ({"max_pruning_ratio": 1.5}, "max_pruning_ratio 1.5 is out of range: it is a share"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong, words):
    with pytest.raises(UserError) as caught:
        Settings(**wrong)
    assert words in str(caught.value)


def test_it_learns_sparse_at_a_tenth_of_the_rate():
    job = small_job(lambda: Plain(12), epochs=8, rate=lambda progress: 1.0)
    rates = [stage.learning_rate for stage in DepGraph().run(job)]
    assert rates == pytest.approx([1.0, 1.0, 0.1, 0.1, 1.0, 1.0, 1.0, 1.0])
