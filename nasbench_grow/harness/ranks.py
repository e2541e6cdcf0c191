"""Runs one cell in several processes that share every batch, one for each device: what ``torchrun`` starts and how the
command that asked for it hears of it.

The processes (*ranks*) run the cell as a single one would (:func:`nasbench_grow.harness.runner.run_cell`); only rank 0
writes. It prints what there is to know, one JSON object a line, which the command reads.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import asdict
from typing import IO, Any

import torch
from torch import distributed as dist

from nasbench_grow.base import parallel
from nasbench_grow.base.errors import UserError
from nasbench_grow.harness import registry
from nasbench_grow.harness.cell import Cell
from nasbench_grow.harness.record import Record
from nasbench_grow.harness.setups import Setup
from nasbench_grow.harness.store import ReadOnlyStore, Store

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
            [*command, "-m", __name__, work],
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


def main() -> int:
    """One rank: runs the cell that the first argument describes; returns the exit code."""
    from nasbench_grow.harness.runner import run_cell  # which imports this module

    work = json.loads(sys.argv[1])
    cell = Cell(**work["cell"])
    on_gpu = registry.usable_setup(cell.setup).device == "cuda"
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if on_gpu else "gloo")
    first = parallel.rank() == 0
    store = Store(work["results"]) if first else ReadOnlyStore(work["results"])
    try:
        with parallel.sharing_batches():
            run_cell(cell, store, profile=work["profile"], progress=_tell_epoch if first else None)
    except UserError as error:
        _tell(refused=str(error))
        return 1
    except torch.OutOfMemoryError as error:
        _tell(full=f"{str(error).partition('.')[0]} (in process {parallel.rank()} of {parallel.processes()})")
        return 1
    except Exception as error:
        traceback.print_exc()
        _tell(error=f"{type(error).__name__}: {error} (in process {parallel.rank()} of {parallel.processes()})")
        return 1
    dist.destroy_process_group()
    return 0


def _tell_epoch(entry: dict[str, Any]) -> None:
    _tell(epoch=entry)


def _tell(**message: Any) -> None:
    sys.stdout.write(json.dumps(message) + "\n")  # at once, or the lines of two processes might mix
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
