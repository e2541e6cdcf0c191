"""The NNI sweeps, run for real: nnictl, its server, our tuner, a trial, and the results that both sides keep."""

from __future__ import annotations

import json
import os
import runpy
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from nasbench_grow import results
from nasbench_grow.presets import PRESETS

SWEEPS = Path(__file__).resolve().parent.parent / "sweeps"
TIMEOUT_S = 240
ATTEMPTS = 5
TOO_BUSY = ("Create experiment failed", "Connect call failed")
"""What NNI prints where its server took more than about 3 seconds to start, or the tuner's imports more than 10."""


def run_experiment(config: Mapping[str, Any], folder: Path) -> Path:
    """Run an experiment to its end and return the folder of what NNI kept of it; nothing outlives the call."""
    for attempt in range(ATTEMPTS):
        kept = folder / f"nni-{attempt}"
        file = folder / "experiment.yml"
        file.write_text(yaml.safe_dump({**config, "experimentWorkingDirectory": str(kept)}))
        printed = nnictl_create(file, home=folder)
        if "to: DONE" in printed:
            return kept / os.readlink(kept / "_latest")
        if not any(message in printed for message in TOO_BUSY):
            pytest.fail(f"the experiment did not end well:\n{printed}")
    pytest.skip(f"this machine is too busy for NNI: {ATTEMPTS} times it missed NNI's own time limits at the start")


def nnictl_create(file: Path, home: Path) -> str:
    """What ``nnictl create --foreground`` printed until the experiment was over, or TIMEOUT_S had passed."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    bin_folder = Path(sys.executable).parent
    process = subprocess.Popen(
        [bin_folder / "nnictl", "create", "--config", file, "--port", str(port), "--foreground"],
        env={**os.environ, "HOME": str(home), "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        return process.communicate(timeout=TIMEOUT_S)[0]
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)  # on Ctrl-C nnictl stops its server and the trials
        return process.communicate(timeout=30)[0]


def stored(experiment: Path, query: str) -> list[tuple[Any, ...]]:
    """What NNI's own database answers."""
    with sqlite3.connect(experiment / "db" / "nni.sqlite") as connection:
        return connection.execute(query).fetchall()


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
