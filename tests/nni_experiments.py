"""Running an NNI experiment to its end, for tests."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

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
