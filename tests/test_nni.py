"""The NNI sweeps, run for real: nnictl, its server, our tuner, a trial, and the results that both sides keep."""

from __future__ import annotations

import json
import re
import runpy
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import nni
import pytest
import yaml
from cells import small_cell, use_methods
from nni_experiments import SWEEPS, run_experiment, stored

from nasbench_grow import results
from nasbench_grow.cost.macs import count_macs
from nasbench_grow.harness import registry
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


def named(settings: dict[str, Any]) -> str:
    """The one spelling of ``grow`` with these settings."""
    return str(registry.method(f"grow[{','.join(f'{name}={value}' for name, value in settings.items())}]"))


def test_growing_sweep_searches_settings_of_grow_and_its_trial_runs_the_cell_that_they_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search_space = yaml.safe_load((SWEEPS / "growing.yml").read_text())["searchSpace"]
    lowest, highest = ({name: range_["_value"][end] for name, range_ in search_space.items()} for end in (0, -1))
    assert named(lowest) != named(highest)

    intermediate: list[float] = []
    final: list[float] = []
    monkeypatch.setattr(nni, "get_next_parameter", lambda: lowest)
    monkeypatch.setattr(nni, "report_intermediate_result", intermediate.append)
    monkeypatch.setattr(nni, "report_final_result", final.append)
    arguments = ["--backbone", "tiny_network", "--epochs", "2", "--train-samples", "640", "--seed", "3"]
    monkeypatch.setattr(sys, "argv", ["growing_trial.py", *arguments, "--results", str(tmp_path)])
    main = runpy.run_path(str(SWEEPS / "growing_trial.py"))["main"]

    assert main() == 0
    frame = results.load(tmp_path)
    assert list(zip(frame["method"], frame["seed"], frame["epochs"], frame["train_samples"], strict=True)) == [
        (named(lowest), 3, 2, 640)
    ]
    assert (len(intermediate), final) == (2, [frame["val_metric"][0]])
    assert main() == 0  # of the same settings: the record is there
    assert (len(intermediate), final) == (2, [frame["val_metric"][0]] * 2)


def test_a_growing_trial_whose_cell_fails_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(nni, "get_next_parameter", lambda: {"growth": 0.25})
    monkeypatch.setattr(sys, "argv", ["growing_trial.py", "--backbone", "no_such", "--results", str(tmp_path)])
    assert runpy.run_path(str(SWEEPS / "growing_trial.py"))["main"]() == 1
    assert "unknown backbone 'no_such'" in capsys.readouterr().err


def test_what_the_page_shows_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # NNI keeps its experiments there
    page = (SWEEPS.parent / "docs" / "nni.md").read_text(encoding="utf-8")
    shown: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", page, re.S)
    assert len(blocks) == 6
    for block in blocks:
        exec(block, shown)
    dense = count_macs(shown["space"].dense, shown["space"].example)
    for network in (shown[name] for name in ("drawn", "grown", "scaled", "searched", "learnt")):
        assert 0.48 <= count_macs(network, shown["space"].example) / dense <= 0.5
    assert 0 <= shown["accuracy"](shown["grown"]) <= 1
