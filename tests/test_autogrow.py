"""AutoGrow: which block joins when, when stages stop, the widths that meet the budget, what is billed."""

import pytest
import torch
import torch.nn.functional as F
from backbone_spaces import space_of
from cells import small_cell
from killing import outcome, run_whole_and_in_pieces
from test_baselines import run
from tiny_networks import EXAMPLE, Block, FewBatches, Plain, Residual, small_job
from torch import nn

from nasbench_grow import backbones
from nasbench_grow.base.errors import UserError
from nasbench_grow.baselines.autogrow import AutoGrow, Initialising, Settings, at_depth
from nasbench_grow.cost.macs import count_macs
from nasbench_grow.harness import registry

STEPS, BATCH = 4, 8


class Stages(nn.Module):
    """A stage of two removable blocks and one of three: (B, 1, 8, 8) to (B, 10)."""

    def __init__(self, width=24):
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.first = nn.Sequential(Block(width), Block(width))
        self.down = nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False)
        self.second = nn.Sequential(Block(width), Block(width), Block(width))
        self.fc = nn.Linear(width, 10)

    def forward(self, x):
        x = self.first(F.relu(self.stem(x)))
        return self.fc(self.second(F.relu(self.down(x))).mean((2, 3)))


class Halves(FewBatches):
    """Batches of digits, the last of which can be held out."""

    def hold_out(self, share, batch_size=1):
        return Halves(self.steps - 1, self.batch_size, self.shape), Halves(1, self.batch_size, self.shape)


def job_of(make, scores, **changes):
    """Ten epochs of four steps; networks are judged by the next of the scores, and then as by the last one."""
    given = iter(scores)
    last = [0.0]

    def score(network, split):
        last[0] = next(given, last[0])
        return last[0]

    job = small_job(make, steps=STEPS, batch_size=BATCH, score=score, **changes)
    job.train = Halves(STEPS, BATCH, tuple(EXAMPLE.shape[1:]))
    return job


def depths(network):
    return [sum(isinstance(block, Block) for block in stage) for stage in (network.first, network.second)]


def grown(scores, **settings):
    """The depths of every network that trained, of the search and after it, each depth once."""
    job, seen = job_of(lambda: Stages(8), scores), []
    for stage in AutoGrow(Settings(growth=0.5, **settings)).run(job):
        if not seen or seen[-1] != depths(stage.network):
            seen.append(depths(stage.network))
        if stage.purpose == "training":
            break
    return seen


def test_blocks_join_the_stages_in_turn_while_the_score_rises():
    assert grown([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]) == [[0, 0], [1, 0], [1, 1], [2, 1], [2, 2], [2, 3]]


def test_a_stage_whose_block_did_not_help_stops_for_good_and_the_others_go_on():
    # J is one period: what the first block brought is known after the second score
    assert grown([0.1, 0.1, 0.2, 0.3, 0.4]) == [[0, 0], [1, 0], [1, 1], [1, 2], [1, 3]]
    assert grown([0.1, 0.2, 0.2004, 0.3]) == [[0, 0], [1, 0], [1, 1], [2, 1]], "0.04 points are too few"


def test_the_best_score_is_compared_with_the_best_of_j_ago():
    scores = [0.1, 0.3, 0.2]  # and no better ever after
    assert grown(scores, patience=0.1)[-1] == [2, 1], "of the second stage, one block brought nothing"
    assert grown(scores, patience=0.2)[-1] == [2, 2], "found a period later"


def test_where_nothing_helps_the_shallow_network_becomes_wide():
    job = job_of(lambda: Residual(24), [0.5], budget=0.3)
    network, macs = run(AutoGrow(Settings(growth=0.3)), job)
    assert sum(isinstance(block, Block) for block in network.blocks) == 1
    assert network.stem.out_channels > 20, "nearly as wide as can be"
    assert 0.28 <= macs[-1] / job.dense_macs <= 0.3


def test_the_rate_is_large_while_the_network_grows_and_the_whole_schedule_follows():
    job = job_of(lambda: Residual(24), [0.1, 0.2, 0.3, 0.4], rate=lambda done: 0.1 * (1 - done) if done > 0.1 else done)
    rates = {"search": [], "training": []}
    for stage in AutoGrow().run(job):
        rates[stage.purpose].append(stage.learning_rate)
    assert set(rates["search"]) == {0.1}
    assert len(rates["training"]) == 10 and 0 < rates["training"][5] < 0.1 and rates["training"][-1] == pytest.approx(0)


def test_every_network_is_billed_for_its_steps_and_its_score():
    job = job_of(lambda: Residual(24), [0.1, 0.2, 0.3, 0.4])
    network, macs = run(AutoGrow(Settings(growth=0.3)), job)
    searched = macs[:4]  # one epoch, three of its batches, at each depth from none to all three blocks
    assert searched == sorted(set(searched))
    assert job.meter.spent["search"] == sum(3 * macs * 3 * BATCH + macs * BATCH for macs in searched)
    assert job.meter.spent["training"] == 3 * count_macs(network, EXAMPLE) * 10 * STEPS * BATCH


@pytest.mark.parametrize("granularity", [1, 8])
@pytest.mark.parametrize("name", ["cifar_resnet20", "cifar_vgg16_bn", "cifar_mobilenetv2", "deeplabv3plus_thin"])
def test_the_budget_is_met_at_whatever_depth_growth_ends(name, granularity):
    space = space_of(name)
    dense = space.macs(space.full())
    for share, budget in ((0.0, 0.5), (0.5, 0.25), (1.0, 0.75), (0.0, 0.9)):
        layers = torch.arange(len(space.layers)) < share * len(space.layers)
        present = at_depth(space, layers, budget * dense, granularity)
        assert budget - 0.02 <= space.macs(present) / dense <= budget
        assert present[space.filters :][layers].all(), "what has grown stays"
        assert all(present[group.structures].any() for group in space.groups)


def test_at_full_depth_it_is_the_network_of_uniform():
    job = job_of(lambda: Stages(12), [float(number) for number in range(9)])
    network, _ = run(AutoGrow(Settings(growth=0.2)), job)
    uniform, _ = run(registry.method("uniform"), job_of(lambda: Stages(12), []))
    shapes = [tuple(parameter.shape) for parameter in network.parameters()]
    assert shapes == [tuple(parameter.shape) for parameter in uniform.parameters()]


def born(initialiser, make=lambda: Residual(8)):
    """A model whose second layer has just joined."""
    job = small_job(make)
    model = job.model()
    before = model.space.full()
    before[model.space.filters + 1] = False
    model.resize(before)
    old = model.network
    model.resize(model.space.full(), newborn=Initialising(initialiser, 0))
    return old, model.network


def test_a_block_of_zeros_changes_no_function_and_a_random_one_does():
    inputs = torch.randn(2, 1, 8, 8)
    outputs = {}
    for initialiser in ("zero", "gaussian", "uniform"):
        old, new = born(initialiser)
        outputs[initialiser] = (old.eval()(inputs) - new.eval()(inputs)).abs().max()
        norm = new.blocks[1].bn2
        if initialiser == "uniform":
            assert 0 <= norm.weight.min() <= norm.weight.max() <= 1 and len(norm.bias.unique()) == 8
        if initialiser == "gaussian":
            assert norm.weight.min() < 0 < norm.weight.max() and len(norm.bias.unique()) == 8
        assert torch.equal(new.blocks[0].bn2.weight, torch.ones(8))
    assert outputs["zero"] < 1e-6 < min(outputs["gaussian"], outputs["uniform"])


def test_a_growth_that_stops_early_survives_kills(tmp_path):
    cell = small_cell(method="autogrow[growth=1,threshold=0.3]", budget=0.5, epochs=2, backbone="tiny_residual")
    whole, pieces = run_whole_and_in_pieces(cell, tmp_path)
    assert whole["status"] == "ok", whole["error"]
    assert outcome(pieces) == outcome(whole)


def test_networks_of_fixed_depth_are_skipped():
    task = registry.tasks()["digits"]()
    assert "no removable layer" in AutoGrow().skip(task, Plain())
    assert AutoGrow().skip(task, Residual()) is None
    assert "no removable layer" in AutoGrow().skip(registry.tasks()["ptb_small"](), backbones.create("lstm_200", 10, 3))


@pytest.mark.parametrize("wrong", [{"growth": 0.0}, {"patience": 1.5}, {"threshold": 0.0}])
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(UserError, match=f"{next(iter(wrong))} .* is out of range"):
        Settings(**wrong)
    with pytest.raises(UserError, match="initialiser"):
        Settings(initialiser="adam")
