"""The contract carries every kind of method in one file of few lines, resumable at every epoch, everything billed."""

import inspect
import json
from pathlib import Path

import pytest
import torch
from cells import METHODS, small_cell
from killing import outcome, run_whole_and_in_pieces
from kinds.activations import Responsive
from kinds.distilled import Distilled
from kinds.evolution import Evolution
from kinds.group_lasso import PruneWhileTraining
from kinds.morphnet import MorphNet
from kinds.net2net import Net2Net, copies
from kinds.one_shot import OneShot
from kinds.recurrent_only import RecurrentOnly
from tiny_networks import EXAMPLE, Plain, sgd

from nasbench_grow import count_macs
from nasbench_grow.contract import ElasticModel, Recipe
from nasbench_grow.harness import registry
from nasbench_grow.harness.reproduce import run_one
from nasbench_grow.harness.store import Store

KINDS = {
    PruneWhileTraining: 60,
    Responsive: 80,
    Distilled: 60,
    Net2Net: 80,
    MorphNet: 80,
    Evolution: 80,
    OneShot: 100,
    RecurrentOnly: 60,
}
"""A method of each kind, and the lines that its file may have."""


@pytest.fixture(autouse=True)
def methods(monkeypatch):
    known = {**METHODS, **{cls.name: cls for cls in KINDS}}
    monkeypatch.setattr(registry, "methods", lambda: known)
    registry.method.cache_clear()
    yield
    registry.method.cache_clear()


def cell_of(cls, **changes):
    return small_cell(**{"method": cls.name, "budget": 0.5, "epochs": 3, "backbone": "tiny_residual", **changes})


@pytest.mark.parametrize("cls", KINDS, ids=lambda cls: cls.name)
def test_a_method_of_this_kind_fits_into_one_short_file(cls):
    path = Path(inspect.getfile(cls))
    assert len(path.read_text().splitlines()) <= KINDS[cls]
    assert "nasbench_grow.harness" not in path.read_text()


@pytest.mark.parametrize("cls", [cls for cls in KINDS if cls is not RecurrentOnly], ids=lambda cls: cls.name)
def test_it_meets_its_budget_and_goes_on_to_the_same_bits_wherever_it_was_killed(tmp_path, cls):
    whole, pieces = run_whole_and_in_pieces(cell_of(cls), tmp_path)
    assert whole["status"] == "ok", whole["error"]
    assert whole["macs"] <= 0.5 * whole["dense_macs"]
    assert outcome(pieces) == outcome(whole)


def test_statistics_passes_are_billed(tmp_path):
    record = run_one(cell_of(Responsive), Store(tmp_path))
    assert record["calibration_macs"] == 48 * record["dense_macs"]
    assert record["search_macs"] == record["source_macs"] == 0


def test_what_another_cell_trained_is_billed_with_its_seconds(tmp_path):
    store, cell = Store(tmp_path), cell_of(Distilled)
    record = run_one(cell, store)
    dense = store.record(cell.source().run_key())
    samples = 3 * 64
    assert record["source_macs"] == dense["train_macs"]
    own = record["train_macs"] - record["source_macs"]
    assert own == 3 * record["macs"] * samples + record["dense_macs"] * samples, (
        "asking the teacher is one forward pass"
    )
    assert record["wall_s"] > dense["wall_s"]


def test_a_network_may_be_wider_than_the_dense_one(tmp_path):
    store, cell = Store(tmp_path), cell_of(MorphNet)
    assert run_one(cell, store)["status"] == "ok"
    shapes = json.loads(store.architecture(cell.run_key()))["shapes"]
    dense = registry.build_backbone(cell.backbone, registry.task(cell.task)()).state_dict()
    assert any(shape[0] > dense[name].shape[0] for name, shape in shapes.items() if shape), "a group has more filters"


def test_a_step_on_a_path_is_billed_for_the_path(tmp_path):
    record = run_one(cell_of(OneShot), Store(tmp_path))
    steps, batch = 2, 32  # of the one whole batch that the search split leaves, in two epochs
    judged = 3 * 6  # three candidates on a tenth of 64 samples
    assert record["search_macs"] <= (3 * steps * batch + judged) * 0.5 * record["dense_macs"]
    assert record["calibration_macs"] > 0


def test_every_trial_is_billed_as_search(tmp_path):
    record = run_one(cell_of(Evolution, train_samples=320), Store(tmp_path))
    judged, trained = 32, 9 * 32  # a tenth of the samples judges; of the others whole batches are trained on
    trials = 4
    assert record["search_macs"] == pytest.approx(trials * (3 * trained + judged) * record["macs"], rel=0.1)
    assert record["train_macs"] == record["search_macs"] + 3 * 3 * 320 * record["macs"]
    assert 0 < record["search_s"] < record["wall_s"]


def test_a_search_never_trains_on_what_it_is_judged_on(tmp_path, monkeypatch):
    from nasbench_grow.contract.job import Job

    seen = []
    split = Job.search_splits.func

    def noted(job):
        rest, judged = split(job)
        seen.append((len(job.train), len(rest), len(judged)))
        return rest, judged

    monkeypatch.setattr(Job, "search_splits", property(noted))
    run_one(cell_of(Evolution), Store(tmp_path))
    whole, rest, judged = seen[0]
    assert rest + judged == whole
    assert judged > 0


def test_a_method_that_cannot_run_here_says_why(tmp_path):
    record = run_one(cell_of(RecurrentOnly), Store(tmp_path))
    assert (record["status"], record["error"]) == ("skipped", "the backbone has no recurrent layer")


def test_copies_leave_the_function_as_it_was():
    network = registry.build_backbone("cifar_resnet20", registry.task("digits")()).eval()
    with torch.no_grad():
        for tensor in network.parameters():
            tensor.uniform_(-0.5, 0.5)
    example = torch.randn(4, 1, 8, 8)
    model = ElasticModel(network, example[:1], Recipe().optimizer)
    small = model.space.full()
    for group in model.space.groups:
        small[group.start + group.size // 2 : group.start + group.size] = False
    model.resize(small)
    before = model.network.eval()(example)
    model.resize(model.space.full(), newborn=copies)
    assert count_macs(model.network, example[:1]) == model.space.macs(model.space.full())
    torch.testing.assert_close(model.network.eval()(example), before, rtol=1e-4, atol=1e-4)


def test_sums_of_a_filter_count_what_creates_takes_in_scales_and_shifts_it():
    model = ElasticModel(Plain(4), EXAMPLE, sgd)
    of = {role: model.filter_sums(torch.ones_like, of=(role,)) for role in ("creating", "consuming", "scale", "shift")}
    first, last = 0, 8
    assert [of[role][first].item() for role in of] == [9, 9 * 4, 1, 1]
    assert [of[role][last].item() for role in of] == [9 * 4, 10, 1, 1]
    assert torch.equal(model.filter_sums(torch.ones_like, of=("scale", "shift")), of["scale"] + of["shift"])
