"""One of the processes that run cells side by side (:mod:`nasbench_grow.harness.jobs`): one cell after another.

It ends when it is told to, by SIGTERM, or when the process that started it is gone, however that ended.
"""

from __future__ import annotations

import os
import queue
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch

from nasbench_grow.harness.cell import Cell
from nasbench_grow.harness.errors import DeviceError
from nasbench_grow.harness.record import Record
from nasbench_grow.harness.reproduce import settle
from nasbench_grow.harness.runner import Progress
from nasbench_grow.harness.store import Store, StoreError

GRACE_S = 20.0
"""So long may it take to end a cell under way; what is not done by then is cut off."""


@dataclass(frozen=True)
class Task:
    """What a worker is told to do."""

    cell: Cell
    before: Mapping[Cell, Record | None]
    """What was recorded of the cell, and of those that it begins with, when the command began."""
    wait: bool
    """Wait for a cell that another process runs, instead of saying that it is busy."""


@dataclass(frozen=True)
class Began:
    """The cell, or one that it begins with, is being run."""

    cell: Cell


@dataclass(frozen=True)
class Epoch:
    """An epoch of it has ended: an entry of its history."""

    entry: dict[str, Any]


@dataclass(frozen=True)
class Ended:
    """The cell has ended; no record: another process runs it."""

    record: Record | None


@dataclass(frozen=True)
class Broken:
    """Nothing more can be run: in this process (the device), or at all (the results folder)."""

    error: DeviceError | StoreError


Message = Began | Epoch | Ended | Broken


def work(connection: Connection, results: str, profile: str | None, threads: int) -> None:
    """Runs the cells that come through the connection.

    Args:
        connection: gives each :class:`Task`, takes every :data:`Message`.
        results: the results folder.
        profile: what the cells are run for, for their records.
        threads: this process's share of the machine's, for PyTorch.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the process that started this one decides
    signal.signal(signal.SIGTERM, _interrupt)
    torch.set_num_threads(threads)
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(threads))  # or torch.compile starts one a core, in each
    store = Store(results)
    tasks: queue.SimpleQueue[Task] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(connection, tasks), daemon=True).start()

    @contextmanager
    def watch(cell: Cell) -> Iterator[Progress]:
        connection.send(Began(cell))
        yield lambda entry: connection.send(Epoch({name: entry[name] for name in ("epoch", "loss", "val_metric")}))

    with suppress(KeyboardInterrupt, BrokenPipeError):
        while True:
            task = tasks.get()
            try:
                record = settle(
                    task.cell,
                    store,
                    task.before,
                    wait=task.wait,
                    profile=profile,
                    watch=watch,
                    record_user_errors=True,
                )
            except (DeviceError, StoreError) as error:
                connection.send(Broken(error))
                return
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()  # the others on the card may need it
            connection.send(Ended(record))


def _receive(connection: Connection, tasks: queue.SimpleQueue[Task]) -> None:
    """Passes on what comes; ends this process once nobody is at the other end any more."""
    try:
        while True:
            tasks.put(connection.recv())
    except (EOFError, OSError):
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
        time.sleep(GRACE_S)
        os._exit(1)


def _interrupt(number: int, frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: what ends a cell shall not be interrupted itself
    raise KeyboardInterrupt
