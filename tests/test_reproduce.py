import errno
import os
import threading
import time

import pytest
from cells import METHODS, finished_record, run_in_two_processes, small_cell, use_methods

from nasbench_grow.base.errors import UserError
from nasbench_grow.harness import estimate, measure, reproduce
from nasbench_grow.harness.profiles import PROFILES, Grid, Profile
from nasbench_grow.harness.store import Store, StoreError

GRID = Grid(
    methods=tuple(METHODS),
    tasks=("digits",),
    backbones=("tiny_network",),
    budgets=(0.25, 0.5),
    seeds=(0, 1),
    epochs=1,
    train_samples=64,
)
MACS = 8 * 8 * (9 * 8 + 9 * 8 * 8) + 8 * 10
"""Of the tiny network, for one digit: two 3 x 3 convolutions over 8 x 8 pixels, one linear layer."""

PROFILE = Profile("tiny", "for tests", (GRID,))


@pytest.fixture(autouse=True)
def methods(monkeypatch):
    use_methods(monkeypatch)


@pytest.fixture
def ran(monkeypatch):
    """Replace training by writing a record at once; gives the list of cells that were run."""
    cells = []

    def run_cell(cell, store, *, profile=None, progress=None):
        cells.append(cell)
        record = finished_record(cell, profile=profile, started_at=time.time_ns())
        store.write_record(record)
        return record

    monkeypatch.setattr(reproduce, "run_cell", run_cell)
    return cells


def test_a_profile_is_the_product_of_its_axes_with_budget_free_methods_once():
    cells = reproduce.cells_of(PROFILE)
    assert len(cells) == len(set(cells))
    assert [cell.budget for cell in cells if cell.method == "dense" and cell.seed == 0] == [1.0]
    assert sorted((c.budget, c.seed) for c in cells if c.method == "refusing") == [
        (0.25, 0), (0.25, 1), (0.5, 0), (0.5, 1),
    ]  # fmt: skip
    assert [cell.seed for cell in cells] == sorted(cell.seed for cell in cells), "seed by seed"


def test_methods_and_tasks_can_be_narrowed():
    cells = reproduce.cells_of(PROFILE, methods=["dense"], tasks=["digits"])
    assert {cell.method for cell in cells} == {"dense"}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"methods": ["denze"]}, "unknown method 'denze'; did you mean 'dense'"),
        ({"tasks": ["digitz"]}, "unknown task 'digitz'; did you mean 'digits'"),
        ({"tasks": ["cifar10"]}, "unknown task of profile 'tiny' 'cifar10'"),
        ({"methods": []}, "has no cell"),
    ],
)
def test_narrowing_to_nothing_is_refused(given, words):
    with pytest.raises(UserError, match=words):
        reproduce.cells_of(PROFILE, **given)


@pytest.mark.parametrize("name", PROFILES)
def test_every_shipped_profile_can_be_expanded(name, monkeypatch):
    monkeypatch.undo()  # with the shipped methods
    assert reproduce.cells_of(PROFILES[name])


def test_finished_cells_are_not_run_again(tmp_path, ran):
    store = Store(tmp_path)
    cells = [small_cell(seed=seed) for seed in range(4)]
    for cell in cells[:2]:
        store.write_record(finished_record(cell))
    assert reproduce.unfinished(cells, store) == cells[2:]
    outcome = reproduce.reproduce(cells, store, profile="tiny")
    assert outcome == {"ok": 4}
    assert ran == cells[2:]
    assert reproduce.unfinished(cells, store) == []
    assert reproduce.reproduce(cells, store) == {"ok": 4}
    assert len(ran) == 2


def test_failed_diverged_and_damaged_cells_are_run_again(tmp_path, ran):
    store = Store(tmp_path)
    cells = [small_cell(seed=seed) for seed in range(4)]
    for cell, status in zip(cells, ("ok", "failed", "diverged", "ok"), strict=True):
        store.write_record(finished_record(cell, status=status))
    (tmp_path / "records" / f"{cells[3].run_key()}.json").write_text("{")
    assert reproduce.reproduce(cells, store) == {"ok": 4}
    assert ran == cells[1:]
    assert [path.name for path in (tmp_path / "damaged" / "records").iterdir()] == [f"{cells[3].run_key()}.json"]


def test_a_failing_cell_becomes_a_record_and_the_others_go_on(tmp_path, capsys):
    store = Store(tmp_path)
    cells = [small_cell(method=name, budget=0.5, epochs=1) for name in ("failing", "refusing", "dense")]
    assert reproduce.reproduce(cells, store) == {"ok": 1, "failed": 2}
    errors = [record["error"] for cell in cells if (record := store.record(cell.run_key()))]
    assert errors[0].startswith("ValueError: first line")
    assert errors[1:] == ["budget 0.5 is too small", None]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3, "one line a cell where there is no terminal"
    assert lines[0].startswith("[1/3] failing digits tiny_network budget 1 seed 0: failed: ValueError: first line")
    assert "ok: test accuracy" in lines[2]


def test_a_full_disk_stops_everything(tmp_path, monkeypatch):
    def fill(*arguments):
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "fsync", fill)
    with pytest.raises(StoreError, match="disk is full"):
        reproduce.reproduce([small_cell(seed=seed, epochs=1) for seed in range(2)], Store(tmp_path))
    monkeypatch.undo()
    assert Store(tmp_path).records() == []


def test_a_cell_that_another_process_runs_is_awaited_and_not_run_twice(tmp_path, ran, capsys):
    store = Store(tmp_path)
    cells = [small_cell(seed=seed) for seed in range(3)]
    held, release = threading.Event(), threading.Event()

    def other():
        with Store(tmp_path).lock(cells[0].run_key(), wait=True):
            held.set()
            release.wait(timeout=30)
            store.write_record(finished_record(cells[0], status="failed"))

    thread = threading.Thread(target=other)
    thread.start()
    held.wait(timeout=30)
    threading.Timer(0.3, release.set).start()
    outcome = reproduce.reproduce(cells, store)
    thread.join()
    assert outcome == {"ok": 2, "failed": 1}
    assert ran == cells[1:], "what the other process made of its cell counts, though it failed"
    assert "waiting for 1 cells" in capsys.readouterr().err


def test_two_processes_on_one_folder_run_each_cell_once(tmp_path, monkeypatch):
    cells = [small_cell(seed=seed) for seed in range(12)]

    def run_cell(cell, store, *, profile=None, progress=None):
        with open(tmp_path / "ran", "a") as file:
            file.write(f"{cell.seed}\n")
        time.sleep(0.02)
        record = finished_record(cell)
        store.write_record(record)
        return record

    monkeypatch.setattr(reproduce, "run_cell", run_cell)
    run_in_two_processes(reproduce.reproduce, cells, Store(tmp_path / "results"))
    assert sorted(map(int, (tmp_path / "ran").read_text().split())) == list(range(12))


def test_one_cell_is_run_once_and_then_read(tmp_path, ran):
    store, cell = Store(tmp_path), small_cell()
    assert reproduce.run_one(cell, store) == reproduce.run_one(cell, store)
    assert ran == [cell]


def test_the_plan_lists_every_cell_and_learns_from_finished_ones(tmp_path):
    store = Store(tmp_path)
    cells = [small_cell(seed=seed) for seed in range(3)]
    blind = estimate.estimate(cells, [])
    assert blind[0].train_macs == 3 * MACS * 2 * 64, "dense training: 3 x MACs x samples x epochs"
    store.write_record(finished_record(cells[0], wall_s=25.0, total_s=30.0, hardware=measure.hardware()))
    store.write_record(finished_record(cells[1], status="failed"))
    learnt = estimate.estimate(cells, store.records())
    assert learnt[0].train_macs == pytest.approx(0.6 * blind[0].train_macs)
    assert learnt[0].seconds == pytest.approx(learnt[0].train_macs * 30.0 / 600)
    lines = estimate.plan(cells, store).splitlines()
    assert [line.split("  ")[-1].split(":")[0] for line in lines[:3]] == ["done", "to do again (failed)", "to do"]
    assert lines[3].startswith("3 cells, 1 done, 2 to do: ")
