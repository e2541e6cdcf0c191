"""Cells that begin with another one: what is handed over, what is billed, and when it cannot be had."""

from __future__ import annotations

import json

import pytest
import torch
from cells import Failing, Skipping, finished_record, small_cell, use_methods
from setups_here import IN_BOTH_LAYOUTS
from torch import nn

from nasbench_grow import cli
from nasbench_grow.baselines.dense import Dense
from nasbench_grow.baselines.dense_short import DenseShort
from nasbench_grow.baselines.grow import Grow
from nasbench_grow.baselines.retrain import Retrain
from nasbench_grow.contract import Method
from nasbench_grow.harness import registry
from nasbench_grow.harness.errors import SourceError
from nasbench_grow.harness.reproduce import reproduce, run_one
from nasbench_grow.harness.runner import run_cell
from nasbench_grow.harness.store import Store
from nasbench_grow.structure.architecture import rebuild

RETRAIN, SHORT, GROW = (small_cell(method=name, budget=0.5) for name in ("retrain", "dense_short", "grow"))
STEP = 32
"""Samples of a batch of the small cells, which have two an epoch."""


class Foreign(Dense):
    """Returns a network that is no part of the backbone."""

    name = "foreign"

    def run(self, job):
        network = yield from super().run(job)
        return nn.Sequential(*network, nn.ReLU())


class Continued(Method):
    """Trains the network of a source on; looks at it twice."""

    name, summary, family = "continued", "for tests", "control"
    takes = "network"
    aims_at_budget = False

    @property
    def source(self):
        return "grow"

    def run(self, job):
        first, second = job.source.network(), job.source.network()
        assert first is not second and equal(first, second)
        assert not equal(first, rebuild(job.source.architecture, job.build())), "trained"
        model = job.model(first)
        yield from job.fit(model, epochs=1, span=(0.5, 1.0))
        return model.network


def equal(one, other):
    mine, others = one.state_dict(), other.state_dict()
    return mine.keys() == others.keys() and all(torch.equal(tensor, others[name]) for name, tensor in mine.items())


def beginning_with(method, *, taking="architecture"):
    """A control that trains the architecture of another method's cell."""

    class Beginning(Retrain):
        name = f"beginning-with-{method}"
        source = method
        takes = taking

    return Beginning


def epochs_of(store, cell):
    return json.loads((store.root / "histories" / f"{cell.run_key()}.json").read_text())["epochs"]


def test_a_cell_and_its_source_differ_in_the_method_alone():
    assert RETRAIN.source() == SHORT.source() == GROW
    assert GROW.source() is None
    nested = small_cell(method="retrain[of=grow[periods=6,growth=.25]]", budget=0.5)
    assert nested.source() == small_cell(method="grow[growth=0.25,periods=6]", budget=0.5)


def test_the_command_line_runs_the_source_first_and_trains_what_it_found(tmp_path, capsys):
    words = ["--task", "digits", "--backbone", "tiny_network", "--budget", "0.5", "--seed", "0", "--epochs", "2"]
    words += ["--train-samples", "64", "--results", str(tmp_path), "--json"]
    assert cli.main(["run", "--method", "retrain", *words, "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("2 cells, 0 done, 2 to do"), "grow first"
    assert cli.main(["run", "--method", "retrain", *words]) == 0
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    store = Store(tmp_path)
    given = store.record(GROW.run_key())
    assert given["status"] == record["status"] == "ok"
    assert record["source_key"] == GROW.run_key() and given["source_key"] is None
    assert store.architecture(GROW.run_key()) == store.architecture(RETRAIN.run_key())
    assert (record["macs"], record["params"]) == (given["macs"], given["params"])
    assert record["weights_sha256"] != given["weights_sha256"]
    ends = [epochs_of(store, cell) for cell in (GROW, RETRAIN)]
    assert ends[0][-1]["widths"] == ends[1][0]["widths"] == ends[1][-1]["widths"], "small from the first step"


def test_whoever_takes_an_architecture_is_billed_all_that_it_took_to_find(tmp_path):
    store = Store(tmp_path)
    record, given = run_one(RETRAIN, store), run_one(GROW, store)
    assert given["source_macs"] == 0 < given["train_macs"]
    assert record["source_macs"] == given["train_macs"]
    assert record["train_macs"] == 3 * record["macs"] * 2 * 2 * STEP + given["train_macs"]
    for seconds in ("wall_s", "cpu_s"):
        assert record[seconds] > given[seconds] > 0
    assert record["wall_s"] - given["wall_s"] < record["total_s"]


def test_a_source_of_a_source_is_billed_too(tmp_path):
    store, cell = Store(tmp_path), small_cell(method="retrain[of=retrain]", budget=0.5)
    record = run_one(cell, store)
    assert record["source_macs"] == run_one(RETRAIN, store)["train_macs"] > run_one(GROW, store)["train_macs"]


def test_a_network_is_handed_over_with_its_weights_and_billed_once(tmp_path, monkeypatch):
    use_methods(monkeypatch, Grow, Continued)
    store, cell = Store(tmp_path), small_cell(method="continued", budget=0.5)
    record = run_one(cell, store)
    assert record["status"] == "ok", record["error"]
    given = run_one(GROW, store)
    assert record["source_macs"] == given["train_macs"]
    assert record["train_macs"] == given["train_macs"] + 3 * given["macs"] * 2 * STEP


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_killed_run_is_billed_its_source_once(tmp_path, epoch):
    store, whole = Store(tmp_path / "killed"), Store(tmp_path / "whole")

    def kill(entry):
        if entry["epoch"] == epoch:
            raise KeyboardInterrupt

    run_one(GROW, store)
    with pytest.raises(KeyboardInterrupt):
        run_one(RETRAIN, store, progress=kill)
    record, given = run_one(RETRAIN, store), store.record(GROW.run_key())
    assert record["train_macs"] == run_one(RETRAIN, whole)["train_macs"]
    assert record["source_macs"] == given["train_macs"]
    assert given["wall_s"] < record["wall_s"] < given["wall_s"] + record["total_s"]


def test_dense_short_trains_as_long_as_the_macs_of_grow_last_and_is_billed_nothing(tmp_path):
    store = Store(tmp_path)
    cell = small_cell(method="dense_short", budget=0.5, epochs=5)
    record = run_one(cell, store)
    given = run_one(cell.source(), store)
    step = 3 * record["dense_macs"] * STEP
    steps = given["train_macs"] // step
    assert 1 < steps < 10, "grow saves something"
    assert record["train_macs"] == steps * step <= given["train_macs"] < (steps + 1) * step
    assert (record["source_macs"], record["macs"]) == (0, record["dense_macs"])
    assert record["meets_budget"] is None
    epochs = epochs_of(store, cell)
    assert len(epochs) == -(-steps // 2)
    assert epochs[-1]["learning_rate"] == pytest.approx(0, abs=1e-9), "the whole schedule, down to zero"
    recipe = registry.task("digits").recipe.for_samples(64)
    assert epochs[0]["learning_rate"] == pytest.approx(recipe.learning_rate_at(2 / steps))


@pytest.mark.parametrize(("macs", "steps"), [(6_000, 6), (5_999, 5), (1_000, 1), (10_000, 10)])
def test_dense_short_rounds_down_to_whole_steps(tmp_path, monkeypatch, macs, steps):
    """Of ten steps that take 1,000 MACs each."""
    store, cell = Store(tmp_path), small_cell(method="dense_short", budget=0.5, epochs=5)
    store.write_record(finished_record(cell.source(), train_macs=macs, dense_train_macs=10_000))
    record = run_cell(cell, store)
    assert record["train_macs"] == 3 * record["dense_macs"] * STEP * steps


def test_dense_short_without_a_single_step_says_so(tmp_path):
    store = Store(tmp_path)
    store.write_record(finished_record(GROW, train_macs=1, dense_train_macs=10_000))
    assert reproduce([SHORT], store) == {"failed": 1}
    assert "dense_short has not one step" in store.record(SHORT.run_key())["error"]


@IN_BOTH_LAYOUTS
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
    registry.method.cache_clear()
    cell = small_cell(method="retrain", budget=0.5, epochs=1, setup=setup)
    assert run_one(cell, Store(tmp_path))["status"] == "ok"
    assert seen == {"cut": True, "layout": True}


# --- sources that have nothing to give ---


def test_of_a_failed_source_a_failed_record_is_made_with_its_reason(tmp_path, monkeypatch, capsys):
    use_methods(monkeypatch, beginning_with("failing"))
    ran = []
    monkeypatch.setattr(
        "nasbench_grow.harness.reproduce.run_cell",
        lambda cell, store, **options: (ran.append(cell.method), run_cell(cell, store, **options))[1],
    )
    words = ["run", "--method", "beginning-with-failing", "--task", "digits", "--backbone", "tiny_network"]
    words += ["--budget", "1", "--seed", "0", "--epochs", "2", "--train-samples", "64", "--results"]
    assert cli.main([*words, str(tmp_path / "one"), "--json"]) == 1
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert record["status"] == "failed"
    start = "beginning-with-failing has nothing to begin with, because failing failed: ValueError: first line"
    assert record["error"].startswith(start) and "\n" not in record["error"]
    ran.clear()
    cell = small_cell(method="beginning-with-failing")
    assert reproduce([cell.source(), cell], Store(tmp_path / "many")) == {"failed": 2}
    assert ran == ["failing", "beginning-with-failing"], "what has failed is not tried again at once"


def test_several_processes_are_not_started_for_a_cell_that_has_nothing_to_begin_with(tmp_path, monkeypatch):
    monkeypatch.setattr("nasbench_grow.harness.ranks.launch", pytest.fail)
    store, cell = Store(tmp_path), small_cell(method="retrain", budget=0.5, setup="cpu-ddp")
    store.write_record(finished_record(cell.source(), status="failed", error="no luck"))
    with pytest.raises(SourceError, match="retrain has nothing to begin with, because grow failed: no luck"):
        run_cell(cell, store)


def test_what_begins_with_a_skipped_cell_is_skipped(tmp_path, monkeypatch):
    use_methods(monkeypatch, Skipping, Failing, beginning_with("skipping"))
    store, cell = Store(tmp_path), small_cell(method="beginning-with-skipping")
    assert reproduce([cell.source(), cell], store) == {"skipped": 2}
    reason = "it begins with skipping, which is skipped: its idea needs attention, which this network has not"
    assert store.record(cell.run_key())["error"] == reason
    monkeypatch.setattr("nasbench_grow.harness.reproduce.run_cell", pytest.fail)
    assert reproduce([cell.source(), cell], store) == {"skipped": 2}, "for good"


def test_a_source_whose_network_is_none_of_the_backbone_cannot_be_trained_again(tmp_path, monkeypatch):
    use_methods(monkeypatch, Foreign, beginning_with("foreign"))
    store, cell = Store(tmp_path), small_cell(method="beginning-with-foreign", epochs=1)
    record = run_one(cell, store)
    assert record["status"] == "failed"
    assert "the network that foreign returned is none that can be cut from the backbone" in record["error"]


def test_a_method_that_takes_more_than_it_says_is_told_what_to_say(tmp_path, monkeypatch):
    class Silent(Continued):
        name = "silent"
        takes = "record"

    use_methods(monkeypatch, Grow, Silent)
    store = Store(tmp_path)
    store.write_record(finished_record(GROW))
    with pytest.raises(SourceError, match="silent takes the network of its source, but does not say so"):
        run_cell(small_cell(method="silent", budget=0.5), store)


def test_every_finished_cell_leaves_network_and_architecture_if_it_is_one_of_the_backbone(tmp_path, monkeypatch):
    use_methods(monkeypatch, Foreign)
    store = Store(tmp_path)
    dense, foreign = small_cell(epochs=1), small_cell(method="foreign", epochs=1)
    assert run_cell(dense, store)["status"] == run_cell(foreign, store)["status"] == "ok"
    full = registry.build_backbone("tiny_network", registry.task("digits")())
    found = rebuild(store.architecture(dense.run_key()), full)
    assert [p.shape for p in found.parameters()] == [p.shape for p in full.parameters()]
    assert store.weights(dense.run_key()) is not None
    assert store.architecture(foreign.run_key()) is None and store.weights(foreign.run_key()) is None


def test_the_controls_say_what_they_take():
    assert (Retrain.takes, DenseShort.takes) == ("architecture", "record")
