"""The NNI sweeps, run for real: nnictl, its server, our tuner, a trial, and the results that both sides keep."""

from __future__ import annotations

import json
import runpy
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from cells import small_cell
from nasbench_grow.growing.presets import PRESETS
from nni_experiments import SWEEPS, run_experiment, stored

from nasbench_grow import results
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


def test_a_trial_runs_first_the_cell_that_its_own_takes_the_architecture_from(tmp_path: Path) -> None:
    trial = runpy.run_path(str(SWEEPS / "reproduce_trial.py"))
    store, cell = Store(tmp_path), small_cell(method="retrain", budget=0.5)
    assert trial["run"](cell, store, "tiny")["status"] == "ok"
    giver = cell.giver()
    assert giver is not None and store.record(giver.run_key()) is not None


def test_growing_sweep_searches_fields_of_the_preset_and_its_trial_runs() -> None:
    search_space = yaml.safe_load((SWEEPS / "growing.yml").read_text())["searchSpace"]
    lowest, highest = (
        replace(PRESETS["default"], **{name: range_["_value"][end] for name, range_ in search_space.items()})
        for end in (0, -1)
    )
    assert lowest != highest
    trial = runpy.run_path(str(SWEEPS / "growing_trial.py"))
    metric = trial["grow"](
        lowest, task="digits", backbone="cifar_resnet20", budget=0.5, epochs=1, train_samples=128, seed=0
    )
    assert 0 <= metric <= 1
