"""AutoSlim: the sandwich, what is slimmed first, what all of it is billed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from small_runs import job_for, run, same, share, wide_plain, wide_residual
from supernets import CELLS, KINDS, run_whole_and_killed, search_job
from torch import nn

from nasbench_grow import SharedWeights, extract, recalibrate
from nasbench_grow.base.errors import UserError
from nasbench_grow.baselines import slimmable
from nasbench_grow.baselines.slimmable import Sandwich, Slimmable, SlimmableSettings, distance, least, widest

QUICK = SlimmableSettings(slimmable_share=0.5, search_share=1.0)


def test_every_step_trains_the_widest_the_narrowest_and_random_networks():
    job = job_for(wide_residual)
    model = job.model()
    sandwich, seen = Sandwich(job, model, 0.25, 2), []
    for step in range(30):
        sandwich.before_step(model, step, 30)
        whole, narrow, *drawn = sandwich.sandwich
        assert whole.present().all()
        assert narrow.filters == [12] * 4 and narrow.layers == [False] * 3
        assert sandwich.step_macs(model) == sum(model.space.macs(each.present()) for each in sandwich.sandwich)
        seen += drawn
    filters = [width for each in seen for width in each.filters]
    assert min(filters) == 12 and max(filters) == 48, "of its own width in each group"
    assert {sum(each.layers) for each in seen} == {0, 1, 2, 3}
    assert len(set(seen[0].filters)) > 1


def test_the_widest_learns_from_labels_and_the_others_from_its_answers():
    job = job_for(wide_plain)
    model = job.model()
    inputs, targets = next(job.train.batches(8))
    sandwich = Sandwich(job, model, 0.25, 1)
    sandwich.before_step(model, 0, 1)
    found = sandwich.loss(model, model.network, inputs, targets, F.cross_entropy)
    networks = [extract(model.space, model.dense, each.present()) for each in sandwich.sandwich]
    whole, *others = (network.train()(inputs) for network in networks)
    answers = whole.softmax(1).detach()
    torch.testing.assert_close(
        found, F.cross_entropy(whole, targets) + sum(F.cross_entropy(other, answers) for other in others)
    )
    found.backward()
    gradient = torch.autograd.grad(F.cross_entropy(whole, targets), networks[0].fc.weight)[0]
    alone = ~sandwich.sandwich[2].present()[model.space.groups[-1].structures]  # what only the widest holds
    torch.testing.assert_close(model.dense.fc.weight.grad[:, alone], gradient[:, alone])


def test_answers_weigh_as_labels_do_in_the_tasks_loss():
    output, labels = torch.randn(4, 5, 7), torch.randint(7, (4, 5))
    certain = 1e4 * F.one_hot(labels, 7).float()
    text = F.cross_entropy(output.flatten(0, 1), labels.flatten(), reduction="sum") / 4
    torch.testing.assert_close(distance(output, certain, labels), text)
    pixels = output.movedim(2, 1).unsqueeze(-1)
    there = distance(pixels, certain.movedim(2, 1).unsqueeze(-1), labels.unsqueeze(-1))
    torch.testing.assert_close(there, F.cross_entropy(pixels, labels.unsqueeze(-1)))


def test_a_sub_network_is_the_extracted_one_after_recalibration():
    job = job_for(wide_residual)
    model = job.model()
    inputs = torch.randn(32, 1, 8, 8)
    present = Sandwich(job, model, 0.25, 1).drawn().present()
    candidate = extract(model.space, model.dense, present)
    counts = {}
    norms = [module for module in candidate.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.register_forward_pre_hook(lambda norm, given: counts.update({norm: given[0][:, 0].numel()}))
    recalibrate(candidate, [inputs])
    for norm in norms:  # training mode divides by n, running statistics by n - 1
        norm.running_var *= (counts[norm] - 1) / counts[norm]
    shared = SharedWeights(model.space, model.dense)(present, inputs)
    torch.testing.assert_close(candidate.eval()(inputs), shared, rtol=1e-5, atol=1e-6)


def slimmed_by(table, monkeypatch, settings=None, make=wide_residual, **changes):
    """What the greedy search finds where a table says how good a network is, and how many it asked for."""
    job = job_for(make, **changes)
    model, asked = job.model(), []

    def score(_, __, present):
        asked.append(present)
        return table(model.space, present)

    monkeypatch.setattr(slimmable, "shared_score", score)
    return Slimmable(settings or SlimmableSettings(search_share=1000)).slimmed(job, model), model.space, asked


def test_it_slims_step_by_step_what_costs_the_least(monkeypatch):
    def table(space, present):
        stream, first, *_ = (float(present[group.structures].sum()) for group in space.groups)
        return stream + 0.1 * first + 100 * float(present[space.filters :].sum())

    found, space, asked = slimmed_by(table, monkeypatch, budget=0.5)
    stream, first, second, third = found.filters
    assert stream == 48 and all(found.layers), "both cost much"
    assert first == 48 and second < 48 and third < 48, "those that cost nothing go first"
    dense = space.macs(space.full())
    assert found.macs() <= 0.5 * dense
    assert found.macs() > 0.5 * dense - 5 * max(space.marginal_macs(space.full())[: space.filters]), "and no further"
    rounds = (48 - second) // 5 + (48 - third) // 5
    assert rounds * 5 <= len(asked) <= rounds * 7, "each round tries every group and layer"


def test_of_equal_scores_the_one_that_saves_most_goes_and_a_layer_is_one_of_them(monkeypatch):
    found, _, _ = slimmed_by(lambda space, present: 0.0, monkeypatch, budget=0.7)
    assert not all(found.layers), "a block saves more than a tenth of any width"
    assert found.filters == [48] * 4 or sum(found.layers) < 3


def test_a_short_run_slims_several_at_once(monkeypatch):
    settings = SlimmableSettings(search_share=0.5)
    found, space, asked = slimmed_by(lambda space, present: 0.0, monkeypatch, settings, epochs=4)
    # 4 epochs of 16 samples, 3 passes each, at half the MACs; a candidate takes 3.6 samples at three quarters
    affordable = int(0.5 * 3 * 0.5 * 4 * 16 / (3.6 * 0.75))
    assert len(asked) <= affordable + len(widest(space).places(least(space, 0.1)))
    assert found.macs() <= 0.5 * space.macs(space.full())


def test_nothing_is_slimmed_below_the_narrowest(monkeypatch):
    found, space, _ = slimmed_by(lambda space, present: 0.0, monkeypatch, budget=0.001)
    there = [group.layer is None or found.layers[group.layer] for group in space.groups]
    widths = [width for width, kept in zip(found.filters, there, strict=True) if kept]
    assert all(5 <= width < 10 for width in widths) and not any(found.layers)


@pytest.mark.parametrize(("kind", "granularity"), CELLS)
def test_the_network_meets_the_budget_on_every_kind_of_backbone(kind, granularity):
    job = search_job(KINDS[kind], epochs=1, granularity=granularity)
    network, _ = run(Slimmable(SlimmableSettings(search_share=0.1)), job)
    assert 0.48 <= share(network, job) <= 0.5


def test_everything_is_billed(monkeypatch):
    steps, candidates, scored = [], [], slimmable.shared_score

    class Watched(Sandwich):
        def before_step(self, model, step, total):
            super().before_step(model, step, total)
            steps.append(sum(model.space.macs(each.present()) for each in self.sandwich))

    def watched(job, model, present):
        candidates.append(model.space.macs(present))
        return scored(job, model, present)

    monkeypatch.setattr(slimmable, "Sandwich", Watched)
    monkeypatch.setattr(slimmable, "shared_score", watched)
    job = search_job(wide_residual, epochs=4)
    _, macs = run(Slimmable(QUICK), job)
    assert len(steps) == 4 and candidates
    assert job.meter.spent == {
        "training": 3 * 4 * 16 * macs[-1],
        "search": 3 * 8 * sum(steps) + 16 * sum(candidates),
        "calibration": 2 * sum(candidates),
        "source": 0,
    }


@pytest.mark.parametrize("kind", ["small", "words"])
def test_killed_again_and_again_it_goes_on_to_the_same_bits(kind):
    settings = SlimmableSettings(slimmable_share=1.0, search_share=0.1)
    (whole, first), (pieces, second) = run_whole_and_killed(Slimmable(settings), KINDS[kind], epochs=2)
    assert same(whole, pieces)
    assert first.meter.spent == second.meter.spent


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"slimmable_share": 0.0}, "slimmable_share 0 is out of range"),
        ({"narrowest": 1.5}, "narrowest 1.5 is out of range"),
        ({"sampled": 0}, "sampled 0 is out of range: give a number above 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        SlimmableSettings(**settings)
