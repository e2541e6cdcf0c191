"""Runs that are killed and taken up again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nasbench_grow.harness.cell import Cell
from nasbench_grow.harness.record import Record
from nasbench_grow.harness.reproduce import run_one
from nasbench_grow.harness.store import Store

MEASURED = {"beside", "wall_s", "cpu_s", "search_s", "total_s", "peak_memory_bytes", "started_at"}
"""Fields that no two runs agree in, and the latencies."""


class Killed(BaseException):
    """Ends a run as a signal does: nothing in it expects this."""


def outcome(record: Record) -> Record:
    """What must not depend on when, where and in how many pieces a cell was run."""
    return {
        field: value for field, value in record.items() if field not in MEASURED and not field.startswith("latency")
    }


def killing(epoch: int) -> Callable[[dict[str, Any]], None]:
    """A listener that ends the run when it hears of an epoch."""

    def tell(entry: dict[str, Any]) -> None:
        if entry["epoch"] == epoch:
            raise Killed

    return tell


def run_whole_and_in_pieces(cell: Cell, folder: Path) -> tuple[Record, Record]:
    """The record of a cell run at once, and of the same one killed in every epoch and taken up again each time."""
    heard: list[dict[str, Any]] = []
    whole = run_one(cell, Store(folder / "whole"), progress=heard.append)
    pieces = Store(folder / "pieces")
    for epoch in range(1, len(heard) + 1):
        with pytest.raises(Killed):
            run_one(cell, pieces, progress=killing(epoch))
    return whole, run_one(cell, pieces)
