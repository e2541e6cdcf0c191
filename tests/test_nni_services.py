"""NNI's training services: the configurations that are shipped, and one run for real against an SSH server here."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from nni.experiment.config import ExperimentConfig
from nni_experiments import SWEEPS, run_experiment, stored

from nasbench_grow import results
from nasbench_grow.harness import registry
from nasbench_grow.harness.reproduce import cells_of

ROOT = SWEEPS.parent


def shipped(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((SWEEPS / name).read_text()))


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """A file where a configuration looks for its SSH key."""
    path = tmp_path / "id_ed25519"
    path.write_text("no key")
    return path


@pytest.mark.parametrize("name", ["reproduce.yml", "reproduce-gpus.yml", "reproduce-remote.yml"])
def test_nni_accepts_what_is_shipped_and_its_tuner_finds_the_cells(name: str, key: Path) -> None:
    config = shipped(name)
    for machine in config["trainingService"].get("machineList", []):
        machine["sshKeyFile"] = str(key)
    file = key.parent / name
    config["trialCodeDirectory"], config["tuner"]["codeDirectory"] = str(ROOT), str(SWEEPS)
    file.write_text(yaml.safe_dump(config))

    ExperimentConfig.load(file).canonical_copy()  # refuses fields that it does not know, and wrong values
    arguments = config["tuner"]["classArgs"]
    cells = cells_of(registry.profile(arguments["profile"]), setup=arguments.get("setup"))
    assert cells and {cell.setup for cell in cells} == {arguments.get("setup", "cpu")}


@pytest.fixture
def ssh_server(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """Port and key of an SSH server on the loopback address that lets in nobody but this user with that key."""
    sshd = shutil.which("sshd", path=os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/usr/local/sbin"]))
    keygen = shutil.which("ssh-keygen")
    if sshd is None or keygen is None:
        pytest.skip(f"{'sshd' if sshd is None else 'ssh-keygen'} is not installed: apt install openssh-server")
    for name in ("host", "user"):
        subprocess.run([keygen, "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / name], check=True)
    shutil.copy(tmp_path / "user.pub", tmp_path / "authorized_keys")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {
        **{"ListenAddress": "127.0.0.1", "Port": port, "HostKey": tmp_path / "host", "PidFile": "none"},
        **{"AuthorizedKeysFile": tmp_path / "authorized_keys", "PasswordAuthentication": "no", "UsePAM": "no"},
        **{"StrictModes": "no", "PermitRootLogin": "prohibit-password", "Subsystem": "sftp internal-sftp"},
        "SetEnv": f"PIP_NO_INDEX=1 OMP_NUM_THREADS=1 HOME={tmp_path}",  # NNI upgrades itself where it can
    }
    config = tmp_path / "sshd_config"
    config.write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
    log = tmp_path / "sshd.log"
    server = subprocess.Popen([sshd, "-D", "-f", config, "-E", log])  # sshd must be called by its whole path
    try:
        deadline = time.monotonic() + 10
        while "Server listening" not in (log.read_text() if log.exists() else ""):
            if server.poll() is not None:
                pytest.skip(f"sshd does not start here: {log.read_text().strip().splitlines()[-1:]}")
            assert time.monotonic() < deadline, "sshd does not listen"
            time.sleep(0.05)
        yield port, tmp_path / "user"
    finally:
        server.terminate()
        server.wait()


def test_cells_run_over_ssh_and_leave_their_records(ssh_server: tuple[int, Path], tmp_path: Path) -> None:
    port, key = ssh_server
    config = shipped("reproduce-remote.yml")
    folder = tmp_path / "results"
    python = Path(sys.executable)
    config |= {
        "trialCommand": f"cd {ROOT} && {python} sweeps/reproduce_trial.py",
        "trialCodeDirectory": str(SWEEPS),
        "trialConcurrency": 1,
        "trialGpuNumber": 0,
        "nniManagerIp": "127.0.0.1",
    }
    config["tuner"] |= {
        "codeDirectory": str(SWEEPS),
        "classArgs": {"profile": "smoke", "results": str(folder), "methods": ["dense"], "tasks": ["digits"]},
    }
    machine = {"host": "127.0.0.1", "port": port, "user": getpass.getuser(), "sshKeyFile": str(key)}
    config["trainingService"]["machineList"] = [{**machine, "pythonPath": str(python.parent)}]

    experiment = run_experiment(config, tmp_path)

    frame = results.load(folder)
    assert list(zip(frame["method"], frame["status"], strict=True)) == [("dense", "ok")]
    assert stored(experiment, "select count(*) from TrialJobEvent where event = 'SUCCEEDED'") == [(1,)]
