"""Single path one-shot: what paths cost, what evolution finds, what all of it is billed."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from small_runs import job_for, run, same, share, wide_plain, wide_residual
from supernets import CELLS, KINDS, run_whole_and_killed, search_job
from tiny_networks import Plain, seeded

from nasbench_grow import discover, extract
from nasbench_grow.base.errors import UserError
from nasbench_grow.baselines import single_path_one_shot
from nasbench_grow.baselines.single_path_one_shot import (
    OnePath,
    Paths,
    SinglePathOneShot,
    SinglePathSettings,
    affordable,
    at_cost,
)

QUICK = SinglePathSettings(population=2, generations=2, search_share=1.0)


@pytest.mark.parametrize(
    ("kind", "budget", "granularity"),
    [("plain", 0.7, 8), ("residual", 0.3, 1), ("depthwise", 0.3, 8), ("leaving", 0.7, 1)],
)
def test_a_path_has_the_cost_that_was_asked_for(kind, budget, granularity):
    job = job_for(KINDS[kind], granularity=granularity)
    space = discover(seeded(KINDS[kind]), job.example)
    paths = Paths(space, job)
    for _ in range(5):
        cost = space.macs(paths.present(paths.drawn(), budget)) / job.dense_macs
        assert budget - 0.02 <= cost <= budget


def test_widths_are_in_the_proportions_of_the_genes_and_layers_stay_where_they_can():
    job = job_for(wide_residual)
    space = discover(seeded(wide_residual), job.example)
    shares = torch.tensor([0.3, 0.6, 0.3, 0.6])[: len(space.groups)]
    layers = torch.tensor([True, False, True])
    present = at_cost(space, shares, layers, 0.2 * job.dense_macs, 1)
    stream, first, _, third = (int(present[group.structures].sum()) for group in space.groups)  # the second is gone
    assert first / stream == pytest.approx(2, abs=0.15) and third / stream == pytest.approx(2, abs=0.15)
    assert present[space.filters :].tolist() == layers.tolist()
    more = at_cost(space, shares, layers, 0.9 * job.dense_macs, 1)
    assert more[space.filters :].all(), "two of three blocks cannot cost nine tenths"


def test_paths_trained_cost_around_the_budget_and_are_billed():
    job = job_for(wide_residual, budget=0.5)
    model = job.model()
    one_path, costs = OnePath(model, Paths(model.space, job), 0.2), []
    for step in range(60):
        one_path.before_step(model, step, 60)
        costs.append(one_path.step_macs(model) / job.dense_macs)
        assert one_path.step_macs(model) == model.space.macs(one_path.path)
    assert 0.38 <= min(costs) < 0.42 and 0.58 < max(costs) <= 0.6, "a fifth around the budget"
    assert sum(costs) / 60 == pytest.approx(0.5, abs=0.03)


def test_evolution_comes_close_to_the_best_of_all_paths(monkeypatch):
    job = job_for(wide_plain, budget=0.4)
    model = job.model()
    space, paths = model.space, Paths(model.space, job)

    def table(_, __, present):
        first, second, third = (float(present[group.structures].sum()) / 48 for group in space.groups)
        return first - 2 * (second - 0.4) ** 2 + 0.1 * third

    values = [0.2, 0.4, 0.6, 0.8, 1.0]
    every = [table(job, model, paths.present(torch.tensor(genes), 0.4)) for genes in product(values, repeat=3)]
    monkeypatch.setattr(single_path_one_shot, "shared_score", table)
    method = SinglePathOneShot(SinglePathSettings(population=12, generations=8, search_share=100))
    best = table(job, model, method.evolved(job, model, paths))
    assert best >= sorted(every)[-2], "of a grid of 125, as good as the second"


def test_a_generation_holds_each_path_once_and_no_more_than_the_run_affords(monkeypatch):
    judged = []
    monkeypatch.setattr(single_path_one_shot, "shared_score", lambda _, __, present: judged.append(present) or 0.0)
    small = job_for(wide_residual, epochs=4)
    model = small.model()
    SinglePathOneShot(SinglePathSettings(search_share=0.5)).evolved(small, model, Paths(model.space, small))
    # 4 epochs of 16 samples, 3 passes each; a path takes 1.6 samples to judge and 2 to calibrate
    assert affordable(small, 0.5, small.budget * small.dense_macs) == int(0.5 * 3 * 4 * 16 / 3.6) == 26
    assert 20 <= len(judged) <= 26
    assert len({present.numpy().tobytes() for present in judged}) == len(judged)
    assert SinglePathOneShot().size(job_for(wide_residual, epochs=10_000)) == (50, 20), "as published"


@pytest.mark.parametrize(("kind", "granularity"), CELLS)
def test_the_network_meets_the_budget_on_every_kind_of_backbone(kind, granularity):
    job = search_job(KINDS[kind], epochs=1, granularity=granularity)
    network, _ = run(SinglePathOneShot(QUICK), job)
    assert 0.48 <= share(network, job) <= 0.5


def test_everything_is_billed(monkeypatch):
    steps, candidates, scored = [], [], single_path_one_shot.shared_score

    class Watched(OnePath):
        def step_macs(self, model):
            steps.append(model.space.macs(self.path))
            return steps[-1]

    def watched(job, model, present):
        candidates.append(model.space.macs(present))
        return scored(job, model, present)

    monkeypatch.setattr(single_path_one_shot, "OnePath", Watched)
    monkeypatch.setattr(single_path_one_shot, "shared_score", watched)
    job = search_job(wide_residual, epochs=4)
    _, macs = run(SinglePathOneShot(QUICK), job)
    assert len(steps) == 4 and len(candidates) == 4
    assert job.meter.spent == {
        "training": 3 * 4 * 16 * macs[-1],
        "search": 3 * 8 * sum(steps) + 16 * sum(candidates),
        "calibration": 2 * sum(candidates),
        "source": 0,
    }


def test_a_path_is_judged_by_the_supernets_weights_with_statistics_of_its_own():
    job = search_job(Plain)
    model = job.model()
    present = Paths(model.space, job).present(Paths(model.space, job).drawn(), 0.5)
    candidate = extract(model.space, model.dense, present)
    inputs, _ = next(job.train.batches(8))
    candidate.train()(inputs)  # another way to set statistics: by momentum
    assert single_path_one_shot.shared_score(job, model, present) != job.score(candidate)
    before = [parameter.clone() for parameter in model.dense.parameters()]
    assert all(torch.equal(*pair) for pair in zip(before, model.dense.parameters(), strict=True))


@pytest.mark.parametrize("kind", ["small", "words"])
def test_killed_again_and_again_it_goes_on_to_the_same_bits(kind):
    (whole, first), (pieces, second) = run_whole_and_killed(SinglePathOneShot(QUICK), KINDS[kind], epochs=2)
    assert same(whole, pieces)
    assert first.meter.spent == second.meter.spent


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"supernet_share": 0.0}, "supernet_share 0 is out of range"),
        ({"spread": 1.0}, "spread 1 is out of range: it is a share of the budget, 0 <= spread < 1"),
        ({"population": 0}, "population 0 is out of range: give 1 or more"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        SinglePathSettings(**settings)
