"""Runs many cells into one results folder: skips the finished, resumes the interrupted, goes on after a failure.

Several processes may work on one folder: each cell is run by one of them.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import product

from nasbench_grow.base.errors import UserError, unknown
from nasbench_grow.contract import settings as spelling
from nasbench_grow.harness import registry, sources
from nasbench_grow.harness.cell import Cell, make_cell
from nasbench_grow.harness.errors import DeviceError, SourceError
from nasbench_grow.harness.profiles import Grid, Profile
from nasbench_grow.harness.progress import CellsBar, epoch_bar
from nasbench_grow.harness.record import Record, is_settled
from nasbench_grow.harness.runner import Progress, record_failure, run_cell
from nasbench_grow.harness.store import Store, StoreError

_log = logging.getLogger(__name__)


def cells_of(
    profile: Profile,
    methods: Collection[str] | None = None,
    tasks: Collection[str] | None = None,
    setup: str | None = None,
) -> list[Cell]:
    """The cells of a profile, each once, seed by seed, so that an interrupted run has whole comparisons.

    A cell comes after the one that it begins with, which is added where it is missing.

    Args:
        methods: keep these only (None = all). A variant is run where its method would be.
        tasks: keep these only (None = all).
        setup: run them on this set-up (None = the profile's).

    Raises:
        UserError: an unknown name, a task that the profile does not have, or nothing left.
    """
    if methods is not None:
        methods = [str(registry.method(name)) for name in methods]
    known = {task for grid in profile.grids for task in grid.tasks}
    for name in tasks or ():
        registry.task(name)
        if name not in known:
            raise unknown(f"task of profile {profile.name!r}", name, known)
    grids = [grid if setup is None else replace(grid, setup=setup) for grid in profile.grids]
    cells = [cell for grid in grids for cell in _expand(grid, methods, tasks)]
    if not cells:
        raise UserError(f"profile {profile.name!r} has no cell with these methods and tasks; give others")
    return with_sources(cells)


def unfinished(cells: Iterable[Cell], store: Store) -> list[Cell]:
    """The cells without a record that settles them: never run, interrupted, failed or diverged."""
    return [cell for cell in cells if not is_settled(store.record(cell.run_key()))]


def stocktaking(cells: Iterable[Cell], store: Store) -> tuple[dict[Cell, Record | None], list[Cell], Counter[str]]:
    """What is recorded of the cells and of those that they begin with, the cells that are left to run, and how many of
    the others ended with each status."""
    cells = list(cells)
    before = recorded(cells, store)
    todo = [cell for cell in cells if not is_settled(before[cell])]
    return before, todo, Counter(record["status"] for cell in cells if (record := before[cell]) and is_settled(record))


def reproduce(cells: Iterable[Cell], store: Store, *, profile: str | None = None) -> Counter[str]:
    """Run every unfinished cell once; returns how many of all cells ended with each status.

    A cell that fails becomes a record and the others go on. A cell that another process holds is passed over and
    awaited at the end. Progress goes to stderr.

    Raises:
        StoreError, DeviceError: the results folder or the device cannot be used: nothing more can be done.
    """
    before, todo, outcome = stocktaking(cells, store)
    with CellsBar(len(todo)) as bar:
        for wait in (False, True):
            busy = []
            for cell in todo:
                record = settle(cell, store, before, wait=wait, profile=profile, record_user_errors=True)
                if record is None:
                    busy.append(cell)
                else:
                    outcome[record["status"]] += 1
                    bar.ended(cell, record)
            if busy:
                bar.say(f"waiting for {len(busy)} cells that another process is running")
            todo = busy
    return outcome


def run_one(
    cell: Cell,
    store: Store,
    *,
    profile: str | None = None,
    progress: Progress | None = None,
    record_user_errors: bool = False,
) -> Record:
    """The record of one cell: the finished one, or that of running it now, after the one that it begins with.

    Args:
        cell: to be run, by this process or another one.
        store: the results folder.
        profile: what the cell is run for, for its record.
        progress: told of the cell's epochs; None: a bar shows them.
        record_user_errors: a cell that asks for something that cannot be had becomes a record of status "failed".

    Raises:
        UserError: the cell asks for something that cannot be had, or the results folder or the device cannot be used.
    """
    before = recorded([cell], store)
    finished = before[cell]
    if finished is not None and is_settled(finished):
        return finished
    run = partial(
        settle,
        cell,
        store,
        before,
        profile=profile,
        watch=lambda other: epoch_bar(other) if progress is None or other != cell else nullcontext(progress),
        record_user_errors=record_user_errors,
    )
    record = run(wait=False)
    if record is None:
        _log.warning("another process is running %s: waiting for it", cell)
        record = run(wait=True)
    assert record is not None, "a cell that was waited for is not busy"
    return record


def settle(
    cell: Cell,
    store: Store,
    before: Mapping[Cell, Record | None],
    *,
    wait: bool,
    takes: str = "record",
    profile: str | None = None,
    watch: Callable[[Cell], AbstractContextManager[Progress]] = epoch_bar,
    record_user_errors: bool = False,
) -> Record | None:
    """Run a cell and, first, the one that it begins with; None if another process runs either.

    ``before`` is what was recorded of both when the command began. ``watch`` is entered for each that is run, and what
    it gives is told of the epochs. Left alone is a cell that is settled and of which the folder still holds what is
    wanted (``takes``, as of a method), or whose record is no longer the one ``before``: it has been run already.
    """

    def found() -> Record | None:
        record = store.record(cell.run_key())
        if record is None or record != before[cell]:
            return record
        return record if is_settled(record) and sources.kept(store, record, takes) else None

    done = found()
    if done is not None:
        return done
    source = cell.source()
    if source is not None:
        needed = registry.method(cell.method).takes
        given = settle(
            source,
            store,
            before,
            wait=wait,
            takes=needed,
            profile=profile,
            watch=watch,
            record_user_errors=record_user_errors,
        )
        if given is None:
            return None
    with store.lock(cell.run_key(), wait=wait) as held:
        if not held:
            return None
        done = found()
        if done is not None:
            return done
        try:
            with watch(cell) as tell:
                return run_cell(cell, store, profile=profile, progress=tell)
        except (StoreError, DeviceError):
            raise
        except SourceError as error:
            return record_failure(cell, store, error, profile=profile)
        except UserError as error:
            if not record_user_errors:
                raise
            return record_failure(cell, store, error, profile=profile)


def with_sources(cells: Iterable[Cell]) -> list[Cell]:
    """The cells, each once and after the one that it begins with, which is added where it is missing."""

    def chain(cell: Cell) -> list[Cell]:
        source = cell.source()
        return [cell] if source is None else [*chain(source), cell]

    return list(dict.fromkeys(each for cell in cells for each in chain(cell)))


def recorded(cells: Iterable[Cell], store: Store) -> dict[Cell, Record | None]:
    """What is recorded of the cells and of those that they begin with."""
    return {cell: store.record(cell.run_key()) for cell in with_sources(cells)}


def _expand(grid: Grid, methods: Collection[str] | None, tasks: Collection[str] | None) -> Iterable[Cell]:
    chosen = [task for task in grid.tasks if tasks is None or task in tasks]
    if not chosen:
        return
    names = [str(registry.method(name)) for name in grid.methods]
    if methods is not None:
        asked = [name for name in methods if spelling.split(name)[0] in names]
        names = [name for name in names if name in methods] + [name for name in asked if name not in names]
    for seed, task, backbone, budget, method in product(grid.seeds, chosen, grid.backbones, grid.budgets, names):
        yield make_cell(
            method=method,
            task=task,
            backbone=backbone,
            budget=budget,
            seed=seed,
            epochs=grid.epochs,
            train_samples=grid.train_samples,
            setup=grid.setup,
        )
