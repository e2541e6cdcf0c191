"""How long a user waits before anything happens: imports, help, and finding that nothing is left to do."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from typing import Any

from nasbench_grow.base.errors import UserError
from nasbench_grow.dev.bench.fresh import printed
from nasbench_grow.dev.bench.record import Record, bar, origin, spread, table, verdict
from nasbench_grow.dev.bench.settings import Settings
from nasbench_grow.harness.cell import Cell
from nasbench_grow.harness.profiles import Grid, Profile
from nasbench_grow.harness.record import FIELDS
from nasbench_grow.harness.reproduce import cells_of, unfinished
from nasbench_grow.harness.store import Store

CPU_ONLY = True
SUMMARY = "seconds to import, to show help, and to find that 1,000 cells are finished"
WAITS = {
    "torch": ("`import torch` (for comparison)", None),
    "import": ("`import nasbench_grow` beyond torch", 1.5),
    "names": ("every public name of `nasbench_grow` beyond torch", 1.5),
    "help": ("`nasbench-grow --help`, the whole command", 1.0),
    "cells": ("finding that {cells} finished cells leave nothing to do, beyond torch", 2.0),
}
"""What is timed, in words, and its target in seconds, in the order of measuring."""

_IMPORTS = """
import time
times = [time.perf_counter()]
import torch
times.append(time.perf_counter())
import nasbench_grow
times.append(time.perf_counter())
for name in nasbench_grow.__all__:
    getattr(nasbench_grow, name)
times.append(time.perf_counter())
print(times[1] - times[0], times[2] - times[1], times[3] - times[1])
"""
_DECIDE = """
import sys, time, torch
start = time.perf_counter()
from nasbench_grow.dev.bench.startup import decide
decide(sys.argv[1], int(sys.argv[2]))
print(time.perf_counter() - start)
"""
_HELP = [sys.executable, "-m", "nasbench_grow.cli", "--help"]


def measure(settings: Settings) -> dict[str, Any]:
    """Seconds of each wait, each time in a fresh process; the first round warms up the disk's cache."""
    rounds = []
    with tempfile.TemporaryDirectory() as folder, bar("start-up", settings.repeats + 1) as progress:
        _fill(folder, settings.cells)
        for _ in range(settings.repeats + 1):
            rounds.append([*_run(_IMPORTS), _help(), *_run(_DECIDE, folder, str(settings.cells))])
            progress.update()
    return {"seconds": {name: [times[index] for times in rounds[1:]] for index, name in enumerate(WAITS)}}


def decide(folder: str, count: int) -> None:
    """What ``nasbench-grow reproduce`` does with a folder in which every cell is finished."""
    left = unfinished(_cells(count), Store(folder))
    if left:
        raise UserError(f"{len(left)} of {count} cells in {folder} are unfinished: this measures finished ones")


def tables(record: Record) -> str:
    """Every wait with its target, as Markdown."""
    rows = []
    for name, (what, limit) in WAITS.items():
        found = spread(record["seconds"][name])
        measured = f"{found.median:.2f} s ({found.low:.2f}\N{EN DASH}{found.high:.2f})"
        text = what.format(cells=record["settings"]["cells"])
        rows.append([text, measured, *(["", ""] if limit is None else [f"{limit} s", verdict(found.median, limit)])])
    repeats = record["settings"]["repeats"]
    notes = f"Medians with quartiles over {repeats} fresh processes, with the files in the disk's cache."
    return "\n\n".join([table(["what", "measured", "target", "result"], rows), notes, origin(record)])


def _cells(count: int) -> list[Cell]:
    grid = Grid(
        methods=("grow",),
        tasks=("digits",),
        backbones=("cifar_resnet20",),
        budgets=(0.5,),
        seeds=tuple(range(count)),
        epochs=160,
    )
    return cells_of(Profile("startup", "cells of one method that differ in their seeds", (grid,)))


def _fill(folder: str, count: int) -> None:
    """Writes the record and the history of every cell as a finished run leaves them."""
    store = Store(folder)
    numbers = dict.fromkeys(("macs", "dense_macs", "train_macs", "dense_train_macs"), 10**9)
    widths = {f"layer{index}.conv": 16 for index in range(20)}
    epochs = [{"epoch": epoch, "loss": 1.0, "val_metric": 0.5, "widths": widths} for epoch in range(1, 161)]
    for cell in _cells(count):
        known = {**vars(cell), **numbers, "run_key": cell.run_key(), "status": "ok", "metric": "accuracy"}
        store.write_record({field: known.get(field) for field in FIELDS})
        store.write_history(cell.run_key(), epochs)


def _run(code: str, *arguments: str) -> list[float]:
    """The seconds that a fresh interpreter prints."""
    return [round(float(word), 6) for word in printed(code, *arguments).split()]


def _help() -> float:
    start = time.perf_counter()
    subprocess.run(_HELP, capture_output=True, check=True)
    return round(time.perf_counter() - start, 6)
