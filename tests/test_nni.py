"""The NNI sweeps, run for real: nnictl, its server, our tuner, a trial, and the results that both sides keep."""

from __future__ import annotations

import json
import runpy
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from cells import small_cell, use_methods
from nni_experiments import SWEEPS, run_experiment, stored

from nasbench_grow import results
from nasbench_grow.growing.scaling import ScalingSettings
from nasbench_grow.harness.store import Store


def test_reproduce_sweep_runs_the_unfinished_cells_and_ends(tmp_path: Path) -> None:
    config = yaml.safe_load((SWEEPS / "reproduce.yml").read_text())
    config["trialCodeDirectory"] = str(SWEEPS.parent)
    config["tuner"]["codeDirectory"] = str(SWEEPS)
    folder = tmp_path / "results"
    only = {"methods": ["dense"], "tasks": ["digits"]}
    config["tuner"]["classArgs"] = {"profile": "smoke", "results": str(folder), **only}

    experiment = run_experiment(config, tmp_path)

    frame = results.load(folder)
    assert list(zip(frame["method"], frame["status"], frame["profile"], strict=True)) == [("dense", "ok", "smoke")]
    (final,) = stored(experiment, "select data from MetricData where type = 'FINAL'")
    metric = json.loads(json.loads(final[0]))
    assert metric["default"] == pytest.approx(frame["val_metric"][0])
    assert metric["test"] == pytest.approx(frame["test_metric"][0])
    assert stored(experiment, "select count(*) from MetricData where type = 'PERIODICAL'") == [(frame["epochs"][0],)]
    assert stored(experiment, "select count(*) from TrialJobEvent where event = 'SUCCEEDED'") == [(1,)]


def test_a_trial_runs_first_the_cell_that_its_own_begins_with(tmp_path: Path) -> None:
    trial = runpy.run_path(str(SWEEPS / "reproduce_trial.py"))
    store, cell = Store(tmp_path), small_cell(method="retrain", budget=0.5)
    assert trial["run"](cell, store, "tiny")["status"] == "ok"
    source = cell.source()
    assert source is not None and store.record(source.run_key()) is not None


@pytest.mark.parametrize(("method", "code", "said"), [("skipping", 0, "needs attention"), ("failing", 1, "first line")])
def test_a_trial_that_has_no_result_says_why(tmp_path, monkeypatch, capsys, method, code, said) -> None:
    use_methods(monkeypatch)
    trial = runpy.run_path(str(SWEEPS / "reproduce_trial.py"))
    given = {"cell": asdict(small_cell(method=method)), "results": str(tmp_path), "profile": "tiny"}
    monkeypatch.setattr("nni.get_next_parameter", lambda: given)
    monkeypatch.setattr("nni.report_final_result", pytest.fail)
    monkeypatch.setattr("nni.report_intermediate_result", pytest.fail)
    assert trial["main"]() == code
    assert said in capsys.readouterr().err


def test_growing_sweep_searches_settings_of_grow_and_its_trial_is_a_cell(tmp_path: Path) -> None:
    search_space = yaml.safe_load((SWEEPS / "growing.yml").read_text())["searchSpace"]
    lowest, highest = ({name: range_["_value"][end] for name, range_ in search_space.items()} for end in (0, -1))
    assert ScalingSettings(**lowest) != ScalingSettings(**highest)
    trial = runpy.run_path(str(SWEEPS / "growing_trial.py"))
    where = {"task": "digits", "backbone": "tiny_network", "budget": 0.5, "epochs": 1, "train_samples": 64, "seed": 0}
    record = trial["grow"](lowest, results=str(tmp_path), **where)
    assert record["status"] == "ok" and 0 <= record["val_metric"] <= 1
    assert record["settings"] == asdict(ScalingSettings(**lowest))
    assert Store(tmp_path).record(record["run_key"]) == record
