"""Cells that run side by side: each once, after the one that it begins with, whatever happens to their processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest
import torch

from nasbench_grow import cli
from nasbench_grow.harness import jobs, reproduce
from nasbench_grow.harness.cell import Cell, make_cell
from nasbench_grow.harness.errors import DeviceError
from nasbench_grow.harness.progress import JobsBar
from nasbench_grow.harness.record import Record
from nasbench_grow.harness.store import Store, StoreError
from nasbench_grow.harness.worker import Began, Broken, Task

TIMEOUT_S = 120


def cell(method: str = "dense", seed: int = 0, **changes: Any) -> Cell:
    known = {"task": "digits", "backbone": "cifar_resnet20", "budget": 0.5, "epochs": 1, "train_samples": 32}
    return make_cell(**{**known, "method": method, "seed": seed, **changes})


class Watched:
    """What the bars are told, and what a test does when an epoch of a cell has ended."""

    def __init__(self) -> None:
        self.began: list[Cell] = []
        self.ended: list[Cell] = []
        self.act: Callable[[Cell, int, int], None] = lambda cell, epoch, place: None

    def bar(self, total: int, jobs: int) -> JobsBar:
        watched = self

        class Bar(JobsBar):
            running: ClassVar[dict[int, Cell]] = {}

            def began(self, place: int, cell: Cell) -> None:
                super().began(place, cell)
                watched.began.append(cell)
                self.running[place] = cell

            def epoch(self, place: int, entry: dict[str, Any]) -> None:
                super().epoch(place, entry)
                watched.act(self.running[place], entry["epoch"], place)

            def ended(self, cell: Cell, record: Record) -> None:
                super().ended(cell, record)
                watched.ended.append(cell)

        return Bar(total, jobs)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    found = Watched()
    monkeypatch.setattr(jobs, "JobsBar", found.bar)
    return found


def process_of(place: int) -> Any:
    (process,) = (each for each in multiprocessing.active_children() if each.name == f"cells-{place}")
    return process


def eventually(condition: Callable[[], object]) -> bool:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(condition())


def free(store: Store, run_key: str) -> bool:
    with store.lock(run_key, wait=False) as held:
        return held


def test_each_cell_is_run_once_and_a_process_that_is_killed_costs_one(tmp_path: Path, watched: Watched) -> None:
    store = Store(tmp_path / "results")
    source, second, doomed = cell("grow"), cell("retrain"), cell(epochs=4)

    def kill(running: Cell, epoch: int, place: int) -> None:
        if running == doomed and epoch == 2:
            process_of(place).kill()

    watched.act = kill
    outcome = jobs.reproduce([source, second, doomed], store, 2)

    assert outcome == {"ok": 2, "failed": 1}
    assert Counter(watched.began) == Counter([source, second, doomed])
    assert watched.ended.index(source) < watched.ended.index(second), "what a cell begins with has ended before"
    record = store.record(doomed.run_key())
    assert record is not None and record["error"].startswith("its process was ended by SIGKILL (perhaps the machine's")
    assert list((store.root / "checkpoints" / doomed.run_key()).glob("*.pt")), "and it goes on from there"
    assert not multiprocessing.active_children()

    watched.act = lambda running, epoch, place: None
    assert reproduce.reproduce([source, second, doomed], store) == {"ok": 3}
    whole = reproduce.run_one(doomed, Store(tmp_path / "whole"))
    assert store.record(doomed.run_key())["weights_sha256"] == whole["weights_sha256"]  # type: ignore[index]


PROGRAM = """
import signal
import sys
from nasbench_grow import cli
from nasbench_grow.harness import registry
from nasbench_grow.harness.grids import Grid, Profile
names = {"methods": ("dense",), "tasks": ("digits",), "backbones": ("cifar_resnet20",), "budgets": (0.5,)}
grid = Grid(**names, seeds=(0,), epochs=9999, train_samples=32)
registry.profiles()["endless"] = Profile("endless", "for tests", (grid,))
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background processes ignore it
sys.exit(cli.main(["reproduce", "--profile", "endless", "--jobs", "2", "--results", sys.argv[1]]))
"""


def test_an_interrupt_leaves_no_process_and_says_how_to_go_on(tmp_path: Path) -> None:
    """Ctrl-C is sent by a terminal to all processes at once."""
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        eventually(lambda: list(tmp_path.glob("checkpoints/*/*.pt")) or process.poll() is not None)
        assert process.poll() is None
        children = psutil.Process(process.pid).children(recursive=True)
        assert children
        os.killpg(process.pid, signal.SIGINT)
        complaint = process.communicate(timeout=TIMEOUT_S)[1]
    assert process.returncode == 130
    assert "Traceback" not in complaint and "--jobs 2" in complaint.splitlines()[-1]
    assert eventually(lambda: not any(child.is_running() for child in children))
    store = Store(tmp_path)
    assert store.records() == []
    assert all(free(store, folder.name) for folder in tmp_path.glob("checkpoints/*"))


def test_a_process_ends_when_the_command_that_started_it_is_gone(tmp_path: Path) -> None:
    """However that ended: the connection between them is closed then."""
    store, one = Store(tmp_path), cell(epochs=9999)
    worker = jobs._Worker(0, store, None, 1)
    worker.take(Task(one, {one: None}, False))
    assert worker.message() == Began(one) and not free(store, one.run_key())
    process = worker._process
    assert process is not None and worker.connection is not None
    worker.connection.close()
    process.join(TIMEOUT_S)
    assert process.exitcode == 0
    assert free(store, one.run_key()) and store.records() == []


def test_a_broken_device_costs_its_cell_unless_a_fresh_process_has_it_too(tmp_path: Path) -> None:
    store, one = Store(tmp_path), cell()
    worker = jobs._Worker(0, store, None, 1)
    worker._task = Task(one, {one: None}, False)
    error = DeviceError("the device failed")
    with pytest.raises(DeviceError):
        jobs._failed(worker, Broken(error), store, None)
    worker.first = False
    record = jobs._failed(worker, Broken(error), store, None)
    assert record is not None and (record["status"], record["error"]) == ("failed", "the device failed")
    with pytest.raises(StoreError):
        jobs._failed(worker, Broken(StoreError("the disk is full")), store, None)
    with store.lock(one.run_key(), wait=False):
        assert jobs._failed(worker, Broken(error), Store(tmp_path), None) is None, "another process has it by now"


def test_a_cell_waits_for_its_source_and_a_busy_one_comes_last() -> None:
    source, dependent, other = cell("grow"), cell("retrain"), cell()
    agenda = jobs._Agenda([source, dependent, other], dict.fromkeys([source, dependent, other]))

    def taken() -> list[tuple[Cell, bool]]:
        return [(task.cell, task.wait) for task in iter(agenda.next, None)]

    assert taken() == [(source, False), (other, False)]
    agenda.done(source, busy=True)
    assert taken() == [(source, True)], "the other one is still running: there is time to wait"
    agenda.done(source, busy=True)
    agenda.done(other, busy=False)
    assert taken() == [(source, False)], "it may be free by now"
    agenda.done(source, busy=False)
    assert taken() == [(dependent, False)]
    agenda.done(dependent, busy=False)
    assert not agenda.left


def test_the_processes_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert [jobs.share_of_threads(count) for count in (1, 2, 3, 12)] == [8, 4, 2, 1]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert jobs.share_of_threads(2) == 1, "no more than were asked for"


@pytest.mark.parametrize("given", ["0", "-1", "two", "1.5"])
def test_a_bad_number_of_jobs_is_one_line(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["reproduce", "--jobs", given])
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"invalid number of jobs {given!r}: give a whole number from 1" in line
