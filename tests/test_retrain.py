"""Training the architecture of another cell: what is handed over, who runs the other cell, and when it cannot be."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter

import pytest
import torch
from cells import METHODS, finished_record, run_in_two_processes, small_cell
from torch import nn

from nasbench_grow import cli
from nasbench_grow.base.errors import UserError
from nasbench_grow.baselines.dense import Dense
from nasbench_grow.baselines.grow import Grow
from nasbench_grow.baselines.retrain import Retrain
from nasbench_grow.harness import registry, reproduce
from nasbench_grow.harness.profiles import Grid, Profile
from nasbench_grow.harness.runner import run_cell
from nasbench_grow.harness.store import Store
from nasbench_grow.structure.architecture import rebuild

CELL = small_cell(method="retrain", budget=0.5)
GIVER = small_cell(method="grow", budget=0.5)


class RetrainFailing(Retrain):
    name = "retrain-failing"
    architecture_from = "failing"


class Foreign(Dense):
    """Returns a network that is no part of the backbone."""

    name = "foreign"

    def finish(self) -> nn.Module:
        return nn.Sequential(*self.chosen, nn.ReLU())


@pytest.fixture
def ran(monkeypatch):
    """Replace training by writing a record at once; gives the methods of the cells that were run."""
    methods = []

    def run_now(cell, store, *, profile=None, progress=None):
        methods.append(cell.method)
        record = finished_record(cell, started_at=time.time_ns())
        store.write_record(record)
        return record

    monkeypatch.setattr(reproduce, "run_cell", run_now)
    return methods


def test_the_command_line_runs_the_giver_first_and_trains_what_it_found(tmp_path, capsys):
    words = ["--task", "digits", "--backbone", "tiny_network", "--budget", "0.5", "--seed", "0", "--epochs", "2"]
    words += ["--train-samples", "64", "--results", str(tmp_path), "--json"]
    assert cli.main(["run", "--method", "retrain", *words]) == 0
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    store = Store(tmp_path)
    given = store.record(GIVER.run_key())
    assert given["status"] == record["status"] == "ok"
    assert store.architecture(GIVER.run_key()) == store.architecture(CELL.run_key())
    assert (record["macs"], record["params"]) == (given["macs"], given["params"])
    assert record["weights_sha256"] != given["weights_sha256"]
    assert record["train_macs"] == 3 * record["macs"] * 2 * 64, "small from the first step"
    ends = [json.loads((tmp_path / "histories" / f"{c.run_key()}.json").read_text())["epochs"] for c in (GIVER, CELL)]
    assert ends[0][-1]["widths"] == ends[1][0]["widths"] == ends[1][-1]["widths"]


def test_a_cell_and_its_giver_differ_in_the_method_alone():
    assert CELL.giver() == GIVER
    assert GIVER.giver() is None
    assert small_cell(method="retrain[settle=1.0,growth=.3]", budget=0.5).giver() == small_cell(
        method="grow[growth=0.3,settle=1]", budget=0.5
    )


def test_a_new_version_of_the_giver_makes_new_cells(monkeypatch):
    monkeypatch.setattr(Grow, "version", 1)
    first = CELL.run_key()
    monkeypatch.setattr(Grow, "version", 2)
    assert CELL.run_key() != first


@pytest.mark.parametrize("setup", ["cpu", "cpu-channels-last"])
def test_the_weights_are_fresh_and_laid_out_as_the_set_up_says(tmp_path, monkeypatch, setup):
    seen = {}

    class Curious(Retrain):
        def choose(self, job):
            chosen = super().choose(job)
            dense = job.build().state_dict()
            seen["cut"] = all(
                torch.equal(tensor, dense[name][tuple(slice(length) for length in tensor.shape)])
                for name, tensor in chosen.state_dict().items()
            )
            seen["layout"] = all(
                weight.is_contiguous(memory_format=torch.channels_last)
                for weight in chosen.parameters()
                if weight.ndim == 4 and setup == "cpu-channels-last"
            )
            return chosen

    monkeypatch.setitem(registry.methods(), "retrain", Curious)
    cell = small_cell(method="retrain", budget=0.5, epochs=1, setup=setup)
    assert reproduce.run_one(cell, Store(tmp_path))["status"] == "ok"
    assert seen == {"cut": True, "layout": True}


def test_a_finished_giver_is_not_run_again(tmp_path, ran):
    store = Store(tmp_path)
    store.write_record(finished_record(GIVER))
    reproduce.run_one(CELL, store)
    assert ran == ["retrain"]


def test_a_profile_lists_the_giver_before_even_where_it_was_not_asked_for(tmp_path, ran):
    grid = Grid(
        methods=("grow", "retrain"),
        tasks=("digits",),
        backbones=("tiny_network",),
        budgets=(0.5,),
        seeds=(0, 1),
        epochs=2,
        train_samples=64,
    )
    cells = reproduce.cells_of(Profile("tiny", "for tests", (grid,)), methods=["retrain"])
    assert [(cell.method, cell.seed) for cell in cells] == [("grow", 0), ("retrain", 0), ("grow", 1), ("retrain", 1)]
    assert reproduce.reproduce(cells, Store(tmp_path)) == {"ok": 4}
    assert ran == [cell.method for cell in cells]


def test_what_a_failed_giver_leaves_behind_is_a_failed_cell(tmp_path, monkeypatch):
    runs = []

    def run_and_note(cell, store, **options):
        runs.append(cell.method)
        return run_cell(cell, store, **options)

    monkeypatch.setattr(registry, "methods", lambda: {**METHODS, RetrainFailing.name: RetrainFailing})
    monkeypatch.setattr(reproduce, "run_cell", run_and_note)
    cell = small_cell(method="retrain-failing")
    record = reproduce.run_one(cell, Store(tmp_path / "one"))
    assert record["status"] == "failed"
    assert record["error"].startswith("no architecture to train, because failing failed: ValueError: first line")
    assert "\n" not in record["error"]
    runs.clear()
    assert reproduce.reproduce([cell.giver(), cell], Store(tmp_path / "many")) == Counter(failed=2)
    assert runs == ["failing", "retrain-failing"], "what has failed is not tried again at once"


def test_a_giver_that_was_finished_before_architectures_were_kept_is_named_with_the_fix(tmp_path):
    store = Store(tmp_path)
    store.write_record(finished_record(GIVER))
    with pytest.raises(UserError, match="was not kept; delete") as caught:
        reproduce.run_one(CELL, store)
    (path,) = (word for word in str(caught.value).split() if word.endswith(".json"))
    assert path == str(tmp_path / "records" / f"{GIVER.run_key()}.json")
    assert store.record(CELL.run_key()) is None
    (tmp_path / "records" / f"{GIVER.run_key()}.json").unlink()
    assert reproduce.run_one(CELL, store)["status"] == "ok"


def test_a_giver_that_another_process_runs_is_awaited(tmp_path, ran):
    held, release = threading.Event(), threading.Event()

    def other():
        with Store(tmp_path).lock(GIVER.run_key(), wait=True):
            held.set()
            release.wait(timeout=30)
            Store(tmp_path).write_record(finished_record(GIVER))

    thread = threading.Thread(target=other)
    thread.start()
    held.wait(timeout=30)
    threading.Timer(0.3, release.set).start()
    free = small_cell(seed=1)
    assert reproduce.reproduce([CELL, free], Store(tmp_path)) == {"ok": 2}
    thread.join()
    assert ran == ["dense", "retrain"], "other cells first; the giver by the other process alone"


def test_two_processes_run_the_giver_once(tmp_path, monkeypatch):
    def run_slowly(cell, store, *, profile=None, progress=None):
        with open(tmp_path / "ran", "a") as file:
            file.write(f"{cell.method}\n")
        time.sleep(0.2)
        record = finished_record(cell)
        store.write_record(record)
        return record

    monkeypatch.setattr(reproduce, "run_cell", run_slowly)
    run_in_two_processes(reproduce.run_one, CELL, Store(tmp_path / "results"))
    assert (tmp_path / "ran").read_text().split() == ["grow", "retrain"]


def test_every_finished_cell_leaves_its_architecture_if_it_is_one_of_the_backbone(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "methods", lambda: {**METHODS, Foreign.name: Foreign})
    store = Store(tmp_path)
    dense, foreign = small_cell(epochs=1), small_cell(method="foreign", epochs=1)
    assert run_cell(dense, store)["status"] == run_cell(foreign, store)["status"] == "ok"
    full = registry.build_backbone("tiny_network", registry.task("digits")())
    found = rebuild(store.architecture(dense.run_key()), full)
    assert [p.shape for p in found.parameters()] == [p.shape for p in full.parameters()]
    assert store.architecture(foreign.run_key()) is None
