"""Runs the examinations, each model in a process of its own, and keeps a record of each.

So one crash, hang or model that is too large becomes a row with its reason, and the rest go on. A record is kept as
long as what it depends on is the same: the model, the libraries, and our code that an examination runs.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from nasbench_grow.dev.bench.record import Record, bar, write_json
from nasbench_grow.harness import measure

CODE = (
    "cost/macs.py",
    *(f"structure/{name}.py" for name in ("dependencies", "discovery", "exactness", "attention", "layers")),
    *(f"structure/{name}.py" for name in ("recurrent", "space", "subnetwork")),
    *("dev/model_table/examine.py", "dev/model_table/kinds.py"),
)
"""Our files that an examination runs."""
_ROOT = Path(__file__).resolve().parents[2]
_MEMORY_SHARE = 0.8
"""Of the machine's memory, what the examinations may use together."""


def run(
    entries: dict[str, dict[str, Any]], folder: Path, *, processes: int, seconds: float, again: bool = False
) -> None:
    """Examines the models whose record is missing or out of date and writes ``FOLDER/records/FAMILY.json``.

    Args:
        entries: the model of each family.
        folder: where the records are.
        processes: how many models are examined at once; they share the machine's cores and memory.
        seconds: time limit of each examination.
        again: examine those with a good record too.
    """
    wanted = [family for family in entries if again or not _current(_path(folder, family), entries[family]["model"])]
    with ThreadPoolExecutor(processes) as pool, bar("families", len(wanted)) as progress:
        pending = {
            pool.submit(examine, family, entries[family], processes, seconds): _path(folder, family)
            for family in wanted
        }
        try:
            for done in as_completed(pending):
                record = done.result()
                write_json(pending[done], record)
                progress.update()
                progress.write(
                    f"{record['family']}: {record['reason'] or 'done'}, {record['seconds']:.0f} s", sys.stderr
                )
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def load(folder: Path, families: Iterable[str]) -> list[Record]:
    """The records of those families that have one, in the given order."""
    paths = [_path(folder, family) for family in families]
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]


def examine(family: str, entry: dict[str, Any], processes: int, seconds: float) -> Record:
    """The record of one family, examined in a process of its own; ``reason`` says what ended it early, if anything."""
    started_at, start = datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter()
    memory = int(_MEMORY_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / processes)
    threads = max(1, (os.cpu_count() or 1) // processes)
    command = [sys.executable, "-m", "nasbench_grow.dev.model_table.examine", entry["model"], str(memory)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    try:
        ended = subprocess.run(command, env=environment, capture_output=True, timeout=seconds)
        output, reason = ended.stdout, _reason(ended)
    except subprocess.TimeoutExpired as late:
        output, reason = late.stdout or b"", f"takes longer than {seconds:.0f} s"
    found: dict[str, Any] = {"reason": reason}
    for line in output.decode().splitlines():
        found |= json.loads(line)
    return {
        "family": family,
        **entry,
        **found,
        "seconds": round(time.perf_counter() - start, 1),
        "started_at": started_at,
        "hardware": {**measure.hardware(), "threads": threads},
        "versions": measure.versions(),
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


def _reason(ended: subprocess.CompletedProcess[bytes]) -> str | None:
    """Why a process ended early, as far as it could not say so itself; None if it did not."""
    if ended.returncode < 0:
        return f"ended by {signal.Signals(-ended.returncode).name}"
    return "".join(ended.stderr.decode().splitlines()[-1:]) or "failed" if ended.returncode else None


def _path(folder: Path, family: str) -> Path:
    return folder / "records" / f"{family}.json"


def _current(path: Path, model: str) -> bool:
    """Whether a record is there and examining the model again could not give another one."""
    if not path.exists():
        return False
    record = json.loads(path.read_text(encoding="utf-8"))
    now = {"model": model, "versions": measure.versions(), "code": code()}
    return bool({key: record[key] for key in now} == now)
