"""Runs the examinations, each model in a process of its own, and keeps a record of each.

So one crash, hang or model that is too large becomes a row with its reason, and the rest go on. A record is kept as
long as what it depends on is the same: the model, the libraries, and our code that an examination runs.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import torchvision

from nasbench_grow.dev.bench.record import Record, bar, write_json
from nasbench_grow.dev.model_table import examine
from nasbench_grow.dev.model_table.entries import Entry
from nasbench_grow.harness import measure

_ROOT = Path(__file__).resolve().parents[2]
CODE = tuple(
    sorted(
        [
            *(f"structure/{path.name}" for path in (_ROOT / "structure").glob("*.py")),
            *(f"base/{path.name}" for path in (_ROOT / "base").glob("*.py")),
            "cost/macs.py",
            *(
                f"dev/model_table/{name}.py"
                for name in ("examine", "kinds", "handwritten", "timm_models", "torchvision_models")
            ),
        ]
    )
)
"""Our files that an examination runs."""
THREADS = 1
"""Of an examination: several would wait for one another, at full price, while other models are examined."""
_MEMORY_SHARE = 0.8
"""Of the machine's memory, what the examinations may use together."""
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload([examine.__name__, "fvcore.nn.jit_analysis", "torch_pruning"])
"""Libraries are imported once and not for every model, which would take longer than many examinations."""


def run(entries: dict[str, Entry], folder: Path, *, processes: int, seconds: float, again: bool = False) -> None:
    """Examines the models whose record is missing or out of date and writes ``FOLDER/records/SOURCE/MODEL.json``.

    Args:
        entries: the models by their names.
        folder: where the records are.
        processes: how many models are examined at once; they share the machine's cores and memory.
        seconds: limit of the CPU time of each examination.
        again: examine those with a good record too.
    """
    wanted = [name for name in entries if again or not _current(_path(folder, name))]
    with ThreadPoolExecutor(processes) as pool, bar("models", len(wanted)) as progress:
        pending = {
            pool.submit(examined, name, entries[name], processes, seconds): _path(folder, name) for name in wanted
        }
        try:
            for done in as_completed(pending):
                record = done.result()
                pending[done].parent.mkdir(parents=True, exist_ok=True)
                write_json(pending[done], record)
                progress.update()
                progress.write(f"{record['name']}: {record['reason'] or 'done'}, {record['seconds']:.0f} s", sys.stderr)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def load(folder: Path, names: Iterable[str]) -> list[Record]:
    """The records of those models that have one, in the given order."""
    paths = [_path(folder, name) for name in names]
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]


def examined(name: str, entry: Entry, processes: int, seconds: float) -> Record:
    """The record of one model, examined in a process of its own; ``reason`` says what ended it early, if anything."""
    started_at, start = datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter()
    memory = int(_MEMORY_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / processes)
    received, sending = _PROCESSES.Pipe(duplex=False)
    process = _PROCESSES.Process(target=examine.report, args=(name, seconds, memory, THREADS, sending.send))
    process.start()
    sending.close()
    found: dict[str, Any] = {"reason": None}
    try:
        while True:
            found |= received.recv()
    except EOFError:
        process.join()
    return {
        "name": name,
        **entry,
        **found,
        "reason": found["reason"] or _reason(process.exitcode or 0, seconds),
        "seconds": round(time.perf_counter() - start, 1),
        "started_at": started_at,
        "hardware": {**measure.hardware(), "threads": THREADS},
        "versions": _versions(),
        "code_version": measure.code_version(),
        "code": code(),
    }


@cache
def code() -> str:
    """A fingerprint of the files in :data:`CODE`; unlike the commit, it does not change with anything else."""
    digest = hashlib.sha256()
    for name in CODE:
        digest.update((_ROOT / name).read_bytes())
    return digest.hexdigest()[:16]


def _versions() -> dict[str, str | None]:
    """The versions that an examination depends on."""
    return {**measure.versions(), "torchvision": torchvision.__version__}


def _reason(exit_code: int, seconds: float) -> str | None:
    """Why a process ended early, as far as it could not say so itself; None if it did not."""
    if exit_code == -signal.SIGXCPU:
        return f"takes longer than {seconds:g} s of CPU time"
    return f"ended by {signal.Signals(-exit_code).name}" if exit_code < 0 else "failed" if exit_code else None


def _path(folder: Path, name: str) -> Path:
    source, _, model = name.partition(":")
    return folder / "records" / source / f"{model}.json"


def _current(path: Path) -> bool:
    """Whether a record is there and examining the model again could not give another one."""
    if not path.exists():
        return False
    record = json.loads(path.read_text(encoding="utf-8"))
    return bool(record["versions"] == _versions() and record["code"] == code())
