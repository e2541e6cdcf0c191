import dataclasses
import errno
import os
import threading
import time
from collections import Counter

import pytest
from cells import finished_record, run_in_two_processes, small_cell, use_methods

from nasbench_grow.base.errors import UserError
from nasbench_grow.baselines.dense_short import DenseShort
from nasbench_grow.baselines.grow import Grow
from nasbench_grow.baselines.retrain import Retrain
from nasbench_grow.harness import estimate, measure, reproduce
from nasbench_grow.harness.profiles import PROFILES, Grid, Profile
from nasbench_grow.harness.store import Store, StoreError

GRID = Grid(
    tasks=("digits",),
    backbones=("tiny_network",),
    budgets=(0.25, 0.5),
    seeds=(0, 1),
    epochs=1,
    train_samples=64,
    methods=("dense", "refusing"),
)
MACS = 8 * 8 * (9 * 8 + 9 * 8 * 8) + 8 * 10
"""Of the tiny network, for one digit: two 3 x 3 convolutions over 8 x 8 pixels, one linear layer."""

PROFILE = Profile("tiny", "for tests", (GRID,))


@pytest.fixture(autouse=True)
def methods(monkeypatch):
    use_methods(monkeypatch, DenseShort, Grow, Retrain)


@pytest.fixture
def ran(monkeypatch):
    """Replace training by writing a record at once; gives the list of cells that were run."""
    cells = []

    def run_cell(cell, store, *, profile=None, progress=None):
        cells.append(cell)
        record = finished_record(cell, profile=profile, started_at=str(time.time_ns()))
        store.write_architecture(cell.run_key(), "{}")
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
    cells = [small_cell(seed=seed) for seed in range(5)]
    for cell, status in zip(cells, ("ok", "failed", "diverged", "ok", "skipped"), strict=True):
        store.write_record(finished_record(cell, status=status))
    (tmp_path / "records" / f"{cells[3].run_key()}.json").write_text("{")
    assert reproduce.reproduce(cells, store) == {"ok": 4, "skipped": 1}
    assert ran == cells[1:4]
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


def test_the_plan_lists_every_cell_and_learns_from_finished_ones(tmp_path, monkeypatch):
    store = Store(tmp_path)
    cells = [small_cell(seed=seed) for seed in range(4)]
    blind = estimate.estimate(cells, [])
    assert blind[0].train_macs == 3 * MACS * 2 * 64, "dense training: 3 x MACs x samples x epochs"
    store.write_record(finished_record(cells[0], hardware=measure.hardware(), total_s=60.0))
    store.write_record(finished_record(cells[1], status="failed"))
    store.write_record(finished_record(cells[2], status="skipped", error="no meaning here"))
    learnt = estimate.estimate(cells, store.records())
    assert learnt[0].train_macs == pytest.approx(0.6 * blind[0].train_macs)
    assert learnt[0].seconds > blind[0].seconds, "60 seconds are more than such a cell should take"
    lines = estimate.plan(cells, store).splitlines()
    ends = [line.split("  ")[-1].split(":")[0] for line in lines[:4]]
    assert ends == ["done", "to do again (failed)", "skipped", "to do"]
    assert lines[4].startswith("4 cells, 2 done, 2 to do: ")


def test_an_estimate_leaves_out_what_a_cell_begins_with_because_that_is_a_cell_of_its_own():
    cell = small_cell(method="retrain", budget=0.5)
    record = finished_record(cell, train_macs=600, source_macs=350)
    (found,) = estimate.estimate([cell], [record])
    assert found.train_macs == pytest.approx(3 * MACS * 2 * 64 * 250 / 1000)


# --- cells that begin with another one ---

RETRAIN, SHORT, GROW = (small_cell(method=name, budget=0.5) for name in ("retrain", "dense_short", "grow"))


def keep(store, cell, *, architecture=True):
    """Leave a cell as if it had been run."""
    store.write_record(finished_record(cell))
    if architecture:
        store.write_architecture(cell.run_key(), "{}")


def test_a_source_comes_first_even_where_it_was_not_asked_for(tmp_path, ran):
    grid = dataclasses.replace(GRID, budgets=(0.5,), epochs=2, methods=("retrain", "dense_short"))
    cells = reproduce.cells_of(Profile("tiny", "for tests", (grid,)), methods=["retrain", "dense_short"])
    assert [(cell.method, cell.seed) for cell in cells] == [
        *((name, 0) for name in ("grow", "retrain", "dense_short")),
        *((name, 1) for name in ("grow", "retrain", "dense_short")),
    ]
    assert reproduce.reproduce(cells, Store(tmp_path)) == {"ok": 6}
    assert ran == cells


def test_a_finished_source_is_not_run_again(tmp_path, ran):
    store = Store(tmp_path)
    keep(store, GROW)
    reproduce.run_one(RETRAIN, store)
    reproduce.run_one(SHORT, store)
    assert ran == [RETRAIN, SHORT]


def test_a_source_whose_architecture_is_gone_is_run_again_for_who_needs_it(tmp_path, ran):
    store = Store(tmp_path)
    keep(store, GROW, architecture=False)
    reproduce.run_one(SHORT, store)
    assert ran == [SHORT], "the record is all that it takes"
    reproduce.run_one(RETRAIN, store)
    assert ran == [SHORT, GROW, RETRAIN]


def test_a_source_whose_weights_are_gone_is_run_again_for_who_needs_them(tmp_path, ran, monkeypatch):
    class Continued(Retrain):
        name = "continued"
        takes = "network"

    use_methods(monkeypatch, Grow, Retrain, Continued)
    store, cell = Store(tmp_path), small_cell(method="continued", budget=0.5)
    keep(store, GROW)
    reproduce.run_one(RETRAIN, store)
    reproduce.run_one(cell, store)
    assert ran == [RETRAIN, GROW, cell]


def test_nothing_is_run_again_for_a_cell_that_is_finished(tmp_path, ran):
    store = Store(tmp_path)
    keep(store, GROW, architecture=False)
    keep(store, RETRAIN, architecture=False)
    assert reproduce.reproduce([GROW, RETRAIN], store) == {"ok": 2}
    assert reproduce.run_one(RETRAIN, store)["status"] == "ok"
    assert ran == []


def test_a_lost_source_is_run_once_for_all_that_need_it(tmp_path, ran):
    store = Store(tmp_path)
    keep(store, GROW, architecture=False)
    cells = [RETRAIN, small_cell(method="retrain[of=retrain]", budget=0.5), SHORT]
    with_other = [small_cell(method="retrain[of=grow[growth=0.25]]", budget=0.5), *cells]
    reproduce.reproduce(with_other, store)
    assert Counter(cell.method for cell in ran) == Counter(
        [str(cell.method) for cell in with_other] + ["grow[growth=0.25]", "grow"]
    )


def test_a_source_that_another_process_runs_is_awaited(tmp_path, ran):
    held, release = threading.Event(), threading.Event()

    def other():
        with Store(tmp_path).lock(GROW.run_key(), wait=True):
            held.set()
            release.wait(timeout=30)
            keep(Store(tmp_path), GROW)

    thread = threading.Thread(target=other)
    thread.start()
    held.wait(timeout=30)
    threading.Timer(0.3, release.set).start()
    free = small_cell(seed=1)
    assert reproduce.reproduce([RETRAIN, free], Store(tmp_path)) == {"ok": 2}
    thread.join()
    assert ran == [free, RETRAIN], "other cells first; the source by the other process alone"


def test_two_processes_run_the_source_once(tmp_path, monkeypatch):
    def run_slowly(cell, store, *, profile=None, progress=None):
        with open(tmp_path / "ran", "a") as file:
            file.write(f"{cell.method}\n")
        time.sleep(0.2)
        keep(store, cell)
        return store.record(cell.run_key())

    monkeypatch.setattr(reproduce, "run_cell", run_slowly)
    run_in_two_processes(reproduce.run_one, RETRAIN, Store(tmp_path / "results"))
    assert (tmp_path / "ran").read_text().split() == ["grow", "retrain"]
