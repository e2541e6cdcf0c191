"""NetAdapt: widths by brute force, the path of a toy score, the budget on several backbones, the bill, kills."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from backbone_spaces import space_for
from test_baselines import equal, run, widths
from tiny_networks import EXAMPLE, FewBatches, Kept, Plain, Residual, seeded, small_job
from torch import nn

from nasbench_grow.base.errors import UserError
from nasbench_grow.baselines.netadapt import NetAdapt, Settings, proposals, savings, short_steps, width_within
from nasbench_grow.contract import Job
from nasbench_grow.cost.macs import count_macs
from nasbench_grow.harness import registry

BATCH = 8


class Weighing(Kept):
    """Counts the networks that are kept at a time, at most."""

    most = 0

    def write(self, name: str, state: Any) -> None:
        super().write(name, state)
        self.most = max(self.most, sum("model" in self.read(each) for each in self.states))


class Halves(FewBatches):
    """Noise, the last batch of which a search is judged on."""

    def __init__(self, steps: int, shape: tuple[int, ...] = EXAMPLE.shape[1:]) -> None:
        super().__init__(steps, BATCH, shape)

    def hold_out(self, share: float, batch_size: int = 1) -> Any:
        return Halves(self.steps - 1, self.shape), Halves(1, self.shape)


def prefers_first(network: nn.Module, split: Any) -> float:
    """A toy table: a filter of the first convolution is worth three of the second, and ten of the third."""
    made = list(widths(network).values())
    return made[0] + made[1] / 3 + made[2] / 10


def plain() -> nn.Module:
    return Plain(12)


def adapting(make: Any = plain, score: Any = prefers_first, **changes: Any) -> Job:
    job = small_job(make, score=score, **{"epochs": 4, "batch_size": BATCH, **changes})
    job.train = Halves(3)
    return job


def few(**changes: Any) -> NetAdapt:
    return NetAdapt(Settings(**{"iterations": 4, "total": 1.0, **changes}))


# --- proposals ---


def test_savings_fall_by_the_decay_and_add_up_to_what_is_beyond_the_budget():
    found = savings(0.25, Settings())
    assert len(found) == 30 and sum(found) == pytest.approx(0.75)
    assert found[7] == pytest.approx(0.96 * found[6])
    assert savings(0.56, Settings())[0] == pytest.approx(0.025, abs=2e-4), "as published, at what 30 iterations save"


@pytest.mark.parametrize("granularity", [1, 4])
def test_each_width_is_the_largest_that_saves_enough_by_brute_force(granularity):
    model = small_job(Residual).model()
    space, full = model.space, model.space.full()
    for share in (0.95, 0.8, 0.6, 0.3):
        limit = share * space.macs(full)
        for index, group in enumerate(space.groups):
            fitting = []
            for width in range(1, group.size):
                present = full.clone()
                present[group.start + width : group.start + group.size] = False
                if space.macs(present) <= limit and (width % granularity == 0 or width < granularity):
                    fitting.append(width)
            assert width_within(space, full, index, limit, 0.0, granularity) == max(fitting, default=None)


def test_a_width_is_rounded_less_where_rounding_would_go_below_the_floor():
    space = small_job(plain).model().space
    dense = space.macs(space.full())
    rounded, finer = (width_within(space, space.full(), 1, 0.97 * dense, floor, 8) for floor in (0.0, 0.93 * dense))
    assert rounded == 8 and finer == 11


def test_a_proposal_narrows_one_group_and_keeps_the_filters_of_the_largest_norm():
    model = small_job(Residual).model()
    space = model.space
    options = proposals(model, 0.9 * model.macs, 0.0, 1)
    assert len(options) == len(space.groups)
    stem, blocks = model.network.stem, model.network.blocks
    squares = sum(conv.weight.detach().square().sum((1, 2, 3)) for conv in [stem, *(block.conv2 for block in blocks)])
    for group, present in zip(space.groups, options, strict=True):
        assert space.macs(present) <= 0.9 * model.macs
        gone = torch.nonzero(~present).flatten()
        assert ((gone >= group.start) & (gone < group.start + group.size)).all() and len(gone)
        if group.layer is None:
            lowest = group.start + torch.argsort(squares)[: len(gone)]
            assert set(gone.tolist()) == set(lowest.tolist())


# --- the run ---


def greedy(budget: float) -> list[tuple[list[list[int]], list[int]]]:
    """What the toy table leads to, worked out on widths alone: of every iteration the proposals and the best one."""
    space = small_job(plain).model().space
    now, dense = [12, 12, 12], space.macs(space.full())
    saving, target = savings(budget, Settings(iterations=4))[0] * dense, budget * dense
    found = []
    while space.macs_of(now, []) > target:
        limit = max(target, space.macs_of(now, []) - saving)
        options = []
        for group in range(3):
            for width in range(now[group] - 1, 0, -1):
                tried = [*now[:group], width, *now[group + 1 :]]
                if space.macs_of(tried, []) <= limit:
                    options.append(tried)
                    break
        options = [tried for tried in options if space.macs_of(tried, []) >= target - 0.01 * dense] or options
        now = max(options, key=lambda tried: tried[0] + tried[1] / 3 + tried[2] / 10)
        found.append((options, now))
        saving *= 0.96
    return found


@pytest.mark.parametrize("budget", [0.3, 0.6])
def test_the_best_proposal_of_every_iteration_goes_on_and_all_is_billed(budget):
    job = adapting(budget=budget)
    network, macs = run(few(), job)
    space, expected = small_job(plain).model().space, greedy(budget)
    assert list(widths(network).values()) == expected[-1][1]
    tried = [space.macs_of(widths, []) for options, _ in expected for widths in options]
    won = [space.macs_of(best, []) for _, best in expected]
    steps = short_steps(job, 3, Settings(iterations=4, total=1.0))
    assert job.meter.spent["search"] == 3 * BATCH * steps * sum(tried + won) + BATCH * sum(tried)
    assert macs[:2] == 2 * [job.dense_macs] and macs[-2:] == 2 * [won[-1]]
    assert job.meter.spent["training"] == 3 * BATCH * 3 * (sum(macs[:2]) + sum(macs[-2:]))


def test_the_search_costs_as_many_dense_trainings_as_it_may():
    for total, epochs in ((3.0, 40), (1.5, 200)):
        job = adapting(budget=0.5, epochs=epochs)
        steps = short_steps(job, 3, Settings(total=total))
        assert steps > 3
        networks = sum(1 - sum(savings(0.5, Settings())[: done + 1]) for done in range(30)) * job.dense_macs
        spent = networks * (3 * BATCH * steps * 4 + 3 * BATCH)
        dense = 3 * job.dense_macs * job.total_steps * BATCH
        assert total - networks * 12 * BATCH / dense < spent / dense <= total


def test_a_short_training_has_one_learning_rate_a_share_of_the_highest():
    job = adapting(budget=0.7, rate=lambda progress: 0.05 * (1 - progress))
    rates: dict[str, set[float]] = {}
    for stage in few(short_rate=0.02).run(job):
        rates.setdefault(stage.purpose, set()).add(round(stage.learning_rate, 9))
    assert rates["search"] == {round(0.02 * job.recipe.learning_rate_at(job.recipe.warmup), 9)}
    assert len(rates["training"]) == 4, "the schedule goes on"


def test_a_trained_start_adapts_what_another_cell_trained():
    class Source:
        def network(self) -> nn.Module:
            return seeded(plain)

    method = few(start="trained")
    assert method.source == "dense" and few().source is None
    job = adapting(budget=0.5, source=Source())
    network, macs = run(method, job)
    assert 0.48 <= count_macs(network, EXAMPLE) / job.dense_macs <= 0.5
    assert job.meter.spent["training"] == 3 * BATCH * 3 * sum(macs[-2:])


def test_where_no_layer_alone_can_save_enough_less_is_asked_for():
    job = adapting(budget=0.08)
    network, _ = run(few(iterations=2), job)
    assert count_macs(network, EXAMPLE) <= 0.08 * job.dense_macs


def test_a_budget_out_of_reach_is_refused_in_one_line():
    with pytest.raises(UserError, match=r"^budget 0.0001 is out of reach: every layer has one filter; give more$"):
        run(few(iterations=2), adapting(lambda: Plain(3), budget=1e-4))


@pytest.mark.parametrize("granularity", [1, 8])
@pytest.mark.parametrize(
    ("task", "backbone"),
    [
        ("cifar10_16px", "cifar_resnet20"),
        ("cifar10_16px", "cifar_vgg16_bn"),
        ("cifar10_16px", "cifar_mobilenetv2"),
        ("landcover", "deeplabv3plus_thin"),
        ("ptb_small", "lstm_200"),
    ],
)
def test_proposals_lead_to_the_budget_on_other_backbones(task, backbone, granularity):
    space, task = space_for(task, backbone), registry.task(task)()
    network = registry.build_backbone(backbone, task)
    assert NetAdapt().skip(task, network) is None
    job = small_job(lambda: network, example=task.example(), budget=0.5)
    model = job.model()
    model.space = space
    for _ in range(8):  # coarse iterations, of which the widest proposal goes on
        if model.macs > 0.5 * job.dense_macs:
            limit = max(0.5, model.macs / job.dense_macs - 0.1) * job.dense_macs
            options = proposals(model, limit, 0.49 * job.dense_macs, granularity)
            model.resize(max(options, key=lambda present: int(present.sum())))
    assert 0.48 <= model.macs / job.dense_macs <= 0.5
    assert count_macs(model.network, model.example) == model.macs


def test_killed_anywhere_it_ends_with_the_same_bits():
    def job(**changes: Any) -> Job:
        return adapting(budget=0.6, score=judged, **changes)

    def judged(network: nn.Module, split: Any) -> float:
        with torch.no_grad():
            return float(network.eval()(next(split.batches(BATCH))[0]).std())

    method = few(iterations=2)
    whole, macs = run(method, job())
    storage = Kept()
    for _ in range(len(macs) // 3):
        stages = method.run(job(storage=storage))
        for _ in zip(range(3), stages, strict=False):
            pass
        stages.close()
    resumed, _ = run(method, job(storage=storage))
    assert equal(whole, resumed)


def test_of_all_iterations_only_the_last_network_is_kept():
    storage = Weighing()
    run(few(iterations=4), adapting(budget=0.5, storage=storage))
    assert storage.most == 3, "the dense network, the last iteration, the training under way"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"decay": 1.5}, "decay 1.5 is out of range: it is a share, 0 < decay <= 1"),
        ({"iterations": 0}, "iterations 0 is out of range: give a number above 0"),
        ({"total": -1.0}, "total -1 is out of range: give a number above 0"),
        ({"start": "warm"}, "warm"),
    ],
)
def test_settings_outside_their_range_are_refused(changes, said):
    with pytest.raises(UserError) as caught:
        Settings(**changes)
    assert said in str(caught.value) and "\n" not in str(caught.value)
