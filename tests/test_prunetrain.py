"""PruneTrain: what the lasso prices, when channels leave, what is billed."""

import pytest
import torch
import torch.nn.functional as F
import torch_pruning
from test_baselines import BATCH, STEPS, job, run, share
from tiny_networks import EXAMPLE, Plain, Residual, seeded
from torch import nn

from nasbench_grow.base.errors import UserError
from nasbench_grow.baselines.prunetrain import PruneTrain, PruneTrainSettings, Reconfiguring, alive, norms
from nasbench_grow.contract import ElasticModel, Recipe
from nasbench_grow.cost.macs import count_macs

TINY = 1e-6


def model_of(network):
    return ElasticModel(network, EXAMPLE, Recipe().optimizer)


def group_of(model, name):
    return next(group for group in model.space.groups if group.name == name)


@pytest.mark.parametrize("make", [Plain, Residual])
def test_norms_are_the_roots_of_what_torch_pruning_sums_layer_by_layer(make):
    model = model_of(seeded(make))
    graph = torch_pruning.DependencyGraph().build_dependency(model.network, example_inputs=EXAMPLE)
    squares = torch_pruning.importance.GroupMagnitudeImportance(
        p=2, group_reduction=None, normalizer=None, target_types=[nn.Conv2d, nn.Linear]
    )
    found = norms(model)
    for group in model.space.groups:
        layer = model.network.get_submodule(group.name)
        whole = graph.get_pruning_group(layer, torch_pruning.prune_conv_out_channels, idxs=list(range(group.size)))
        torch.testing.assert_close(found[group.structures], squares(whole).sqrt().sum(0), rtol=1e-4, atol=1e-4)


def test_the_first_step_sets_the_price_to_its_share_of_the_objective():
    model = model_of(seeded(Plain))
    lasso = Reconfiguring(PruneTrainSettings(ratio=0.2), limit=0, granularity=1)
    inputs, targets = torch.randn(8, 1, 8, 8), torch.arange(8)
    loss = lasso.loss(model, model.network, inputs, targets, F.cross_entropy)
    penalty = lasso.penalty(model)
    assert float((penalty / (loss + penalty)).detach()) == pytest.approx(0.2, rel=1e-5)
    again = lasso.loss(model, model.network, 5 * inputs, targets, F.cross_entropy)
    assert not torch.equal(again, loss) and torch.equal(lasso.penalty(model), penalty), "it then stays"


def test_the_gradient_of_the_lasso_is_the_weights_by_their_norms():
    model = model_of(seeded(Plain))
    lasso = Reconfiguring(PruneTrainSettings(), limit=0, granularity=1)
    lasso.strength = torch.tensor(0.3)
    lasso.penalty(model).backward()
    weight = model.network.conv2.weight
    made, taken = (weight.square().sum(dims, keepdim=True).sqrt() for dims in ((1, 2, 3), (0, 2, 3)))
    torch.testing.assert_close(weight.grad, 0.3 * (weight / made + weight / taken))
    first = model.network.conv1.weight
    torch.testing.assert_close(first.grad, 0.3 * first / first.square().sum((1, 2, 3), keepdim=True).sqrt())
    assert model.network.bn1.weight.grad is None and model.network.fc.bias.grad is None


class Depthwise(nn.Module):
    """Two convolutions with a depthwise one between."""

    def __init__(self):
        super().__init__()
        self.expand = nn.Conv2d(1, 20, 1, bias=False)
        self.depthwise = nn.Conv2d(20, 20, 3, groups=20, bias=False)
        self.project = nn.Conv2d(20, 4, 1, bias=False)
        self.fc = nn.Linear(4, 10)

    def forward(self, x):
        return self.fc(self.project(self.depthwise(self.expand(x)).relu()).mean((2, 3)))


def test_depthwise_convolutions_are_neither_priced_nor_asked():
    model = model_of(seeded(Depthwise))
    network = model.network
    expected = network.expand.weight.square().sum((1, 2, 3)).sqrt()
    expected = expected + network.project.weight.square().sum((0, 2, 3)).sqrt()
    torch.testing.assert_close(norms(model)[group_of(model, "expand").structures], expected)
    with torch.no_grad():
        network.expand.weight[3], network.project.weight[:, 3] = TINY, TINY
    assert torch.nonzero(~alive(model, 1e-4)).flatten().tolist() == [group_of(model, "expand").start + 3]


def emptied(make, filters, taken_in=True):
    """A network whose second convolution has lost these output channels, and whose third does not take them in."""
    network = seeded(make)
    with torch.no_grad():
        network.conv2.weight[filters] = TINY
        if taken_in:
            network.conv3.weight[:, filters] = -TINY
    return network


def test_a_channel_leaves_where_all_that_makes_it_and_takes_it_in_is_below_the_threshold():
    model = model_of(emptied(Plain, [2, 5]))
    start = group_of(model, "conv2").start
    assert torch.nonzero(~alive(model, 1e-4)).flatten().tolist() == [start + 2, start + 5]
    assert alive(model, TINY / 2).all()
    assert alive(model_of(emptied(Plain, [2, 5], taken_in=False)), 1e-4).all(), "the union of both sides stays"


def test_a_block_without_channels_leaves_and_any_other_group_keeps_its_largest():
    network = seeded(Residual)
    with torch.no_grad():
        network.blocks[1].conv1.weight.fill_(TINY)
        network.blocks[1].conv2.weight.fill_(TINY)
    model = model_of(network)
    model.resize(alive(model, 1e-4))
    assert [isinstance(block, nn.Identity) for block in model.network.blocks] == [False, True, False]
    model = model_of(emptied(Plain, list(range(16))))
    with torch.no_grad():
        model.network.conv2.weight[7] *= 2
    group = group_of(model, "conv2")
    assert torch.nonzero(alive(model, 1e-4)[group.structures]).flatten().tolist() == [7]


def run_still(network, **changes):
    """A run whose weights stay, of four epochs of two steps: an interval of one step, the budget met after two epochs.

    Returns the job, and the MACs of the network after each epoch.
    """
    still = job(lambda: network(), recipe=Recipe(batch_size=BATCH, learning_rate=0.0), **changes)
    _, macs = run(PruneTrain(PruneTrainSettings(interval=1 / 8)), still)
    return still, macs


def test_emptied_channels_leave_on_the_way_and_what_is_there_is_billed():
    small, macs = run_still(lambda: emptied(Plain, [1, 2, 3, 4]))
    dense = 16 * 9 * 64 + 16 * 16 * 9 * 16 + 16 * 16 * 9 * 4 + 160
    smaller = 16 * 9 * 64 + 12 * 16 * 9 * 16 + 16 * 12 * 9 * 4 + 160
    assert macs[0] == macs[1] == smaller and macs[2] == macs[3] <= dense / 2 < smaller
    assert small.meter.total == 3 * BATCH * (dense + 3 * smaller + STEPS * 2 * macs[3])
    assert small.meter.total < 3 * BATCH * 4 * STEPS * small.dense_macs


def test_the_lasso_does_not_take_the_network_below_the_budget():
    small, macs = run_still(lambda: emptied(lambda: Plain(48), list(range(40))), budget=0.6)
    assert macs == 4 * [macs[0]]
    assert 0.58 <= macs[0] / small.dense_macs <= 0.6


def test_what_is_above_the_budget_is_removed_by_norm_in_proportion_to_the_group():
    def network():
        made = seeded(lambda: Plain(20))
        with torch.no_grad():
            made.conv1.weight *= 100  # not larger than others in proportion to its group
            for smaller in (3, 4):
                made.conv2.weight[smaller] *= 0.2
                made.conv3.weight[:, smaller] *= 0.2
        return made

    still = job(network, budget=0.95, recipe=Recipe(batch_size=BATCH, learning_rate=0.0))
    found, _ = run(PruneTrain(), still)
    dense = network()
    assert found.conv1.out_channels == found.conv3.out_channels == 20
    assert torch.equal(found.conv2.weight, dense.conv2.weight[[at for at in range(20) if at != 3 and at != 4]][:, :20])


@pytest.mark.parametrize("granularity", [1, 8])
@pytest.mark.parametrize("budget", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("make", [lambda: Plain(48), lambda: Residual(32)], ids=["plain", "residual"])
def test_the_budget_is_met(make, budget, granularity):
    network, macs = run(PruneTrain(), job(make, budget=budget, granularity=granularity, epochs=2))
    assert budget - 0.02 <= share(network, make) <= budget
    assert macs[0] == count_macs(make(), EXAMPLE)


def test_from_the_budget_on_nothing_is_priced():
    model = model_of(seeded(Plain))
    lasso = Reconfiguring(PruneTrainSettings(), limit=0.5 * model.macs, granularity=1)
    lasso.strength = torch.tensor(1.0)
    assert lasso.penalty(model) > 0
    lasso.meet(model)
    assert lasso.penalty(model) is None


@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_a_ratio_that_is_no_share_is_refused(ratio):
    with pytest.raises(UserError, match=f"ratio {ratio:g} is out of range: it is a share, 0 < ratio < 1"):
        PruneTrainSettings(ratio=ratio)
