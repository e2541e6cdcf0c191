"""CHEX: leverage scores and distances against direct computations, and what is pruned and regrown when."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from tiny_networks import EXAMPLE, Plain, Residual, small_job
from torch import nn

from nasbench_grow import count_macs
from nasbench_grow.base.errors import UserError
from nasbench_grow.baselines import chex
from nasbench_grow.baselines.chex import Chex, Exploring, Settings, distances, grams, leverage_scores
from nasbench_grow.contract import Job
from nasbench_grow.tasks.digits import Digits


def matrix(rows: int = 30, columns: int = 8, seed: int = 0) -> torch.Tensor:
    """Columns of very different size, float64."""
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=draws, dtype=torch.float64) * torch.linspace(0.2, 3, columns)


def error(columns: torch.Tensor, chosen: tuple[int, ...]) -> float:
    """What of a matrix its projection onto some of its columns leaves: the objective of column subset selection."""
    part = columns[:, list(chosen)]
    return float((columns - part @ torch.linalg.lstsq(part, columns).solution).square().sum())


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_leverage_scores_are_those_of_a_singular_value_decomposition(rank):
    columns = matrix()
    direct = torch.linalg.svd(columns).Vh[:rank].square().sum(0)
    scores = leverage_scores(columns.T @ columns, rank)
    assert torch.allclose(scores, direct)
    assert float(scores.sum()) == pytest.approx(rank)
    assert scores.min() >= 0 and scores.max() <= 1 + 1e-9


def test_at_full_rank_leverage_is_the_diagonal_of_the_hat_matrix():
    columns = matrix(rows=5, columns=9)  # of rank 5
    hat = torch.linalg.pinv(columns) @ columns
    assert torch.allclose(leverage_scores(columns.T @ columns, 5), hat.diagonal())


def test_leverage_scores_choose_the_best_subset_where_brute_force_finds_one():
    draws = torch.Generator().manual_seed(1)
    basis = torch.linalg.qr(torch.randn(12, 12, generator=draws, dtype=torch.float64)).Q
    columns = torch.cat([basis[:, :3] * 4, basis[:, 3:7] + 0.3 * basis[:, :4]], 1)[:, [3, 0, 5, 1, 6, 2, 4]]
    best = min(combinations(range(7), 3), key=lambda chosen: error(columns, chosen))
    scores = leverage_scores(columns.T @ columns, 3)
    assert set(torch.argsort(scores, descending=True)[:3].tolist()) == set(best) == {1, 3, 5}


def test_leverage_scores_choose_better_than_most_subsets():
    for seed in range(5):
        columns = matrix(seed=seed)
        chosen = torch.argsort(leverage_scores(columns.T @ columns, 3), descending=True)[:3]
        errors = sorted(error(columns, subset) for subset in combinations(range(8), 3))
        assert error(columns, tuple(chosen.tolist())) <= errors[len(errors) // 5]


def test_distances_are_residuals_of_least_squares():
    columns = matrix()
    columns[:, 7] = columns[:, 0] - 2 * columns[:, 1]
    chosen = torch.tensor([True, True, False, True, False, False, False, False])
    part = columns[:, chosen]
    direct = (columns - part @ torch.linalg.lstsq(part, columns).solution).norm(dim=0)
    found = distances(columns.T @ columns, chosen)
    assert torch.allclose(found, direct, atol=1e-6)
    assert found[7] < 1e-6 and found[chosen].max() < 1e-6


def test_coupled_filters_have_the_rows_of_every_layer_that_makes_them():
    model = small_job(lambda: Residual(6)).model()
    model.resize(torch.arange(len(model.space)) != 2)
    stream = next(index for index, group in enumerate(model.space.groups) if group.layer is None)
    gram, height = grams(model.space, model.network, model.structures)[stream]
    blocks = [block.conv2.weight for block in model.network.blocks]
    rows = torch.cat([weight.detach().flatten(1) for weight in (model.network.stem.weight, *blocks)], 1).double()
    assert height == rows.shape[1]
    present = model.structures[model.space.groups[stream].structures]
    assert torch.allclose(gram[present][:, present], rows @ rows.T)
    assert gram[~present].abs().sum() == 0


def exploring(budget: float = 0.5, **settings: float) -> tuple[Job, Exploring]:
    job = small_job(lambda: Plain(16), budget=budget)
    return job, Exploring(job, Settings(**settings))


def test_regrown_filters_come_back_with_the_weights_they_had():
    job, callback = exploring(budget=0.25)
    model = job.model()
    callback.before_step(model, 0, 100)
    with torch.no_grad():  # what trained
        for weight in model.network.parameters():
            weight.add_(1.0)
    first = model.structures
    last = {name: weight.clone() for name, weight in next(model.variants([model.space.full()])).state_dict().items()}
    callback.before_step(model, 20, 100)
    assert (model.structures & ~first).any(), "some come back"
    assert (first & ~model.structures).any(), "others leave"
    kept = (
        model.space.kept(model.structures, ("conv2.weight", 0)),
        model.space.kept(model.structures, ("conv2.weight", 1)),
    )
    assert torch.equal(model.network.conv2.weight, last["conv2.weight"][kept[0]][:, kept[1]])
    assert torch.equal(model.network.bn2.running_var, last["bn2.running_var"][kept[0]])


def test_the_filters_of_the_highest_leverage_stay():
    job, callback = exploring()
    model = job.model()
    rows = model.network.conv2.weight.detach().flatten(1).double()
    norms = rows.abs().sum(1)
    callback.before_step(model, 72, 100)  # the last round, which regrows nothing
    there = model.structures[model.space.groups[1].structures]
    width = int(there.sum())
    scores = torch.linalg.svd(rows.T).Vh[:width].square().sum(0)
    assert 1 < width < 16 and set(torch.nonzero(there).flatten().tolist()) == set(scores.topk(width).indices.tolist())
    assert set(norms.topk(width).indices.tolist()) != set(scores.topk(width).indices.tolist()), "not the largest ones"


def test_what_is_far_from_the_span_of_those_that_stay_is_regrown():
    for seed in range(6):
        job, callback = exploring(budget=0.25)
        callback.draws.manual_seed(seed)
        model = job.model()
        callback.before_step(model, 0, 100)
        second = model.space.groups[1]
        absent = torch.nonzero(~model.structures[second.structures]).flatten().tolist()
        with torch.no_grad():
            model.dense.conv2.weight[absent[:-1]] = 0
            model.dense.conv2.weight[absent[-1]] *= 1000
        callback.before_step(model, 20, 100)
        assert len(absent) > 3 and model.structures[second.structures][absent[-1]]


def test_the_share_regrown_falls_by_a_cosine(monkeypatch):
    shares = []

    def noted(space, within, keys, regrowth):
        shares.append(regrowth)
        return within

    monkeypatch.setattr(chex, "with_more", noted)
    job, callback = exploring()
    model = job.model()
    for step in (0, 18, 36, 72):
        callback.before_step(model, step, 72 / 0.72)
    assert shares == pytest.approx([0.43, 0.43 * (1 + 0.5**0.5) / 2, 0.215, 0.0])


def test_a_residual_stream_keeps_its_width():
    job = small_job(lambda: Residual(16), budget=0.3)
    model, callback = job.model(), Exploring(job, Settings())
    with torch.no_grad():
        for norm in (model.network.norm, *(block.bn2 for block in model.network.blocks)):
            norm.weight.fill_(0.01)
    for step in (0, 10, 72):
        callback.before_step(model, step, 100)
        assert model.network.stem.out_channels == 16
    assert model.macs <= 0.3 * job.dense_macs


def test_scales_divide_the_budget_and_the_last_round_regrows_nothing():
    job, callback = exploring()
    model = job.model()
    with torch.no_grad():
        model.network.bn1.weight.fill_(0.1)
        model.network.bn2.weight.fill_(0.2)
    callback.before_step(model, 72, 100)
    widths = [len(norm.weight) for norm in (model.network.bn1, model.network.bn2, model.network.bn3)]
    assert widths[0] < widths[1] <= widths[2] == 16
    assert model.macs <= 0.5 * job.dense_macs
    before = model.structures
    callback.before_step(model, 80, 100)
    assert torch.equal(model.structures, before)


def test_the_first_network_is_larger_than_the_target_by_the_regrowth():
    sizes = []
    for regrowth in (1e-6, 0.5, 1.0):
        job, callback = exploring(regrowth=regrowth, budget=0.25)
        model = job.model()
        callback.before_step(model, 0, 100)
        sizes.append(int(model.structures.sum()))
    assert sizes[1] == sizes[0] + round((48 - sizes[0]) / 2) and sizes[2] == 48


@pytest.mark.parametrize("granularity", [1, 8])
@pytest.mark.parametrize("make", [lambda: Plain(48), lambda: Residual(48)])
def test_it_meets_the_budget_and_bills_the_networks_that_trained(make, granularity):
    job = small_job(make, granularity=granularity)
    macs, stages = [], Chex().run(job)
    try:
        while True:
            macs.append(count_macs(next(stages).network, EXAMPLE))
    except StopIteration as end:
        network = end.value
    share = count_macs(network, EXAMPLE) / job.dense_macs
    assert job.budget - 0.02 <= share <= job.budget
    assert macs[0] > macs[3] > macs[-1] == macs[7], "less and less is regrown until 0.72 of ten epochs"
    assert job.meter.total == 3 * 8 * 2 * sum(macs), "every step is billed for the network that it trained"


def test_it_skips_what_has_no_batch_normalisation():
    assert "batch normalisation" in (Chex().skip(Digits(), nn.Conv2d(1, 2, 1)) or "")
    assert Chex().skip(Digits(), Plain()) is None


@pytest.mark.parametrize("wrong", [{"regrowth": 0.0}, {"period": 0.0}, {"explored_share": 1.2}])
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(UserError, match=f"{next(iter(wrong))} .* is out of range"):
        Settings(**wrong)
