"""Cells that run at the same time say so, and their times are left out of the report."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from synthetic_results import record, write

from nasbench_grow.harness import company
from nasbench_grow.report.block import blocks_of
from nasbench_grow.report.frames import load

ANOTHER = (
    "import sys; sys.path[:0] = [{root!r}]\n"
    + """
from pathlib import Path
from nasbench_grow.harness import company
company.FOLDER = Path({folder!r})
with company.at_work() as others:
    print(others(), flush=True)
    sys.stdin.read()
    print(others(), flush=True)
"""
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(company, "FOLDER", tmp_path / "at-work")
    return tmp_path / "at-work"


def another(folder: Path) -> subprocess.Popen[str]:
    code = ANOTHER.format(root=str(Path(__file__).parents[1]), folder=str(folder))
    process = subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True)
    assert process.stdout is not None
    process.first = process.stdout.readline().strip()  # type: ignore[attr-defined]
    return process


def test_each_of_two_at_work_sees_the_other_and_one_that_died_is_forgotten(folder: Path) -> None:
    with company.at_work() as others:
        assert others() == 0
        neighbour = another(folder)
        assert neighbour.first == "1"  # type: ignore[attr-defined]
        assert others() == 1
        neighbour.kill()
        neighbour.wait()
        assert others() == 0
        assert [file.name for file in folder.iterdir()] == [str(os.getpid())]
    assert list(folder.iterdir()) == []


def test_times_of_cells_that_ran_beside_others_are_left_out_of_tables_but_not_of_the_frame(tmp_path: Path) -> None:
    alone, disturbed = record("dense", 1.0, 0, beside=0), record("grow", 0.5, 0, beside=3)
    frame = load(write(tmp_path, [alone, disturbed]))
    (block,) = blocks_of(frame)
    cells = block.cells.set_index("method")
    times = ["wall_s", "cpu_s", "search_s", "total_s", "latency_ms_batch64", "latency_ratio_batch1"]
    assert cells.loc["dense", times].notna().all() and cells.loc["grow", times].isna().all()
    assert cells.loc["grow", ["test_metric", "macs", "train_macs"]].notna().all()
    assert frame.set_index("method").loc["grow", times].notna().all()
