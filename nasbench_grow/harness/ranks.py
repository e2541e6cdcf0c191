"""Has one cell run by several processes that share every batch, one for each device, and hears how they get on.

``torchrun`` starts the processes (*ranks*, :mod:`nasbench_grow.harness.rank`), which print what there is to know, one
JSON object a line.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from typing import IO, Any

import torch

from nasbench_grow.base.errors import UserError
from nasbench_grow.harness import registry
from nasbench_grow.harness.cell import Cell
from nasbench_grow.harness.record import Record
from nasbench_grow.harness.setups import Setup
from nasbench_grow.harness.store import Store

RANK = "nasbench_grow.harness.rank"
"""The module that each process runs."""

_DEATH = re.compile(r"exitcode: (-?\d+)\) local_rank: (\d+)")
"""How ``torchrun`` reports the process that ended the run."""


class RankError(Exception):
    """One of the processes raised an error; ``log`` is what they all wrote to stderr."""

    def __init__(self, message: str, log: str) -> None:
        super().__init__(message)
        self.log = log


class RankDiedError(Exception):
    """One of the processes was ended from outside; the checkpoint is good."""


def launch(cell: Cell, store: Store, profile: str | None, progress: Callable[[dict[str, Any]], None]) -> Record:
    """Runs a cell in as many processes as its set-up says, and returns the record that they kept.

    Raises:
        UserError: the cell asks for something that cannot be had.
        RankError: a process raised an error, after which the others were ended.
        RankDiedError: a process was killed, after which the others were ended.
    """
    setup = registry.usable_setup(cell.setup)
    count = setup.processes()
    work = json.dumps({"cell": asdict(cell), "results": str(store.root), "profile": profile})
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [*command, "-m", RANK, work],
            env=_environment(setup, count),
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        try:
            assert process.stdout is not None
            told = _listen(process.stdout, progress)
            failed = process.wait() != 0
        finally:
            process.terminate()  # on Ctrl-C; torchrun then ends its processes
            process.wait()
        log.seek(0)
        if "refused" in told:
            raise UserError(told["refused"])
        record = store.record(cell.run_key())
        if failed or record is None:
            raise _failure(told, log.read(), count)
        return record


def _environment(setup: Setup, count: int) -> dict[str, str]:
    """The processes share the machine's cores; on CPUs they talk over the loopback device."""
    threads = str(max(1, torch.get_num_threads() // count))
    added = {"OMP_NUM_THREADS": threads, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    if setup.device == "cpu" and sys.platform == "linux":
        added["GLOO_SOCKET_IFNAME"] = "lo"
    return {**os.environ, **added}


def _listen(stdout: IO[str], progress: Callable[[dict[str, Any]], None]) -> dict[str, str]:
    """Passes on the epochs as they end; returns why the processes gave up, if they said so."""
    told: dict[str, str] = {}
    for line in stdout:
        if line.startswith("{"):
            message = json.loads(line)
            if "epoch" in message:
                progress(message["epoch"])
            else:
                told |= message
    return told


def _failure(told: dict[str, str], log: str, count: int) -> Exception:
    """What went wrong, by what the processes said or, if they could not, by how they ended."""
    death = _DEATH.search(log)
    code, number = (int(death[1]), int(death[2])) if death else (1, 0)
    if code < 0:  # first, because the others complain of a lost connection
        how = signal.Signals(-code).name
        return RankDiedError(f"process {number} of {count} was ended by {how}, and the others with it")
    if "full" in told:
        return RankDiedError(told["full"])
    return RankError(told.get("error") or (log.strip().splitlines() or ["torchrun failed"])[-1], log)
