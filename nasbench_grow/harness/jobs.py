"""Runs several cells at once, each in a process of its own that is used again for the next one.

The processes share the machine's threads, or the one GPU. One that dies costs the cell that it was running, and no
other.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from types import TracebackType

import torch

from nasbench_grow.base.errors import UserError
from nasbench_grow.harness.cell import Cell
from nasbench_grow.harness.errors import DeviceError
from nasbench_grow.harness.progress import JobsBar
from nasbench_grow.harness.record import Record
from nasbench_grow.harness.reproduce import stocktaking, with_sources
from nasbench_grow.harness.runner import record_failure
from nasbench_grow.harness.store import Store
from nasbench_grow.harness.worker import GRACE_S, Began, Broken, Ended, Epoch, Message, Task, work

_SPAWN = multiprocessing.get_context("spawn")  # a forked process could not use CUDA, nor PyTorch's threads


def reproduce(cells: Iterable[Cell], store: Store, jobs: int, *, profile: str | None = None) -> Counter[str]:
    """Run every unfinished cell once, ``jobs`` at a time; returns how many of all cells ended with each status.

    Like :func:`nasbench_grow.harness.reproduce.reproduce`; a cell waits for the one that it begins with. A cell whose
    process was ended from outside, or whose device failed, becomes a record of status "failed"; its checkpoint stays.

    Raises:
        StoreError, DeviceError: the results folder or the device cannot be used: nothing more can be done.
    """
    before, todo, outcome = stocktaking(cells, store)
    agenda = _Agenda(todo, before)
    count = min(jobs, len(todo))
    with JobsBar(len(todo), count) as bar, _Crew(count, store, profile) as crew:
        while agenda.left:
            for worker, task in zip(crew.idle(), iter(agenda.next, None), strict=False):
                if task.wait:
                    bar.say(f"waiting for {task.cell}, which another process is running")
                worker.take(task)
            for worker, message in crew.messages():
                if isinstance(message, Began):
                    bar.began(worker.place, message.cell)
                elif isinstance(message, Epoch):
                    bar.epoch(worker.place, message.entry)
                else:
                    bar.left(worker.place)
                    cell = worker.task.cell
                    ended = message.record if isinstance(message, Ended) else _failed(worker, message, store, profile)
                    worker.rest()
                    agenda.done(cell, busy=ended is None)
                    if ended is not None:
                        outcome[ended["status"]] += 1
                        bar.ended(cell, ended)
    return outcome


def share_of_threads(jobs: int) -> int:
    """The threads of each of several processes: together no more than the machine has cores, and at least one each."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(torch.get_num_threads(), cores // jobs))


class _Agenda:
    """Which cell is next: the first that does not begin with one that is still to end."""

    def __init__(self, cells: Iterable[Cell], before: Mapping[Cell, Record | None]) -> None:
        self.left = dict.fromkeys(cells)
        """Those that have not ended."""
        self._before = before
        self._waiting = list(self.left)
        self._busy: list[Cell] = []

    def next(self) -> Task | None:
        """What can be done now; a cell that was busy only where there is nothing else, and then by waiting for it."""
        for cell in self._waiting:
            if not any(source in self.left for source in with_sources([cell])[:-1]):
                self._waiting.remove(cell)
                return self._task(cell, wait=False)
        return self._task(self._busy.pop(0), wait=True) if self._busy else None

    def done(self, cell: Cell, *, busy: bool) -> None:
        """A cell has ended, so that what was busy before may be free by now; or it is busy itself."""
        if busy:
            self._busy.append(cell)
        else:
            del self.left[cell]
            self._waiting[:0] = self._busy
            self._busy = []

    def _task(self, cell: Cell, *, wait: bool) -> Task:
        return Task(cell, {each: self._before[each] for each in with_sources([cell])}, wait)


def _failed(worker: _Worker, message: Broken | None, store: Store, profile: str | None) -> Record | None:
    """The record of a cell whose process is dead or broken; None where its task is to be tried again: another process
    has the cell by now, or what failed is the one that the task begins with.

    Raises:
        StoreError, DeviceError: another process would fare no better.
    """
    if message and (worker.first or not isinstance(message.error, DeviceError)):
        raise message.error
    cell = worker.running or worker.task.cell
    why = str(message.error) if message else f"its process {worker.end()}; the same command goes on where it stopped"
    worker.discard()
    with store.lock(cell.run_key(), wait=False) as held:
        record = record_failure(cell, store, UserError(why), profile=profile) if held else None
    return record if cell == worker.task.cell else None


class _Worker:
    """The place of a process; the process is started when there is something to do."""

    def __init__(self, place: int, store: Store, profile: str | None, threads: int) -> None:
        self.place = place
        self.running: Cell | None = None
        """What it runs at the moment: the cell of its task or, before that, one that it begins with."""
        self.first = True
        """Whether the process has not ended a cell yet."""
        self.connection: Connection | None = None
        self._task: Task | None = None
        self._process: SpawnProcess | None = None
        self._arguments = (str(store.root), profile, threads)

    @property
    def task(self) -> Task:
        """What it was told to do last."""
        assert self._task is not None, "an idle worker says nothing"
        return self._task

    @property
    def idle(self) -> bool:
        """Whether it has nothing to do."""
        return self._task is None

    def take(self, task: Task) -> None:
        """Have the process begin with a task."""
        self._task = task
        if self.connection is None:
            self.connection, far = _SPAWN.Pipe()
            self._process = _SPAWN.Process(target=work, args=(far, *self._arguments), name=f"cells-{self.place}")
            with _no_interrupts():
                self._process.start()
            far.close()  # so that the end of the process is the end of the connection
            self.first = True
        with suppress(BrokenPipeError):  # its end is found when it is listened to
            self.connection.send(task)

    def message(self) -> Message | None:
        """What it has to say; None: it is dead."""
        assert self.connection is not None
        try:
            message: Message = self.connection.recv()
        except (EOFError, ConnectionResetError):
            return None
        if isinstance(message, Began):
            self.running = message.cell
        return message

    def rest(self) -> None:
        """The task is over."""
        self._task = self.running = None
        self.first = False

    def end(self) -> str:
        """How the process ended, in words."""
        assert self._process is not None
        self._process.join()
        code = self._process.exitcode or 0
        if code == -signal.SIGKILL:
            return "was ended by SIGKILL (perhaps the machine's memory was full)"
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended by itself with exit code {code}"

    def discard(self) -> None:
        """Forget the process: the next task gets a new one."""
        self.stop()
        self.finish(time.monotonic() + GRACE_S)

    def stop(self) -> None:
        """Ask the process to end, whatever it does."""
        if self._process is not None and self._process.is_alive():
            self._process.terminate()

    def finish(self, deadline: float) -> None:
        """Wait for its end until the deadline, and force it then."""
        if self._process is not None and self.connection is not None:
            self._process.join(max(0.0, deadline - time.monotonic()))
            if self._process.is_alive():
                self._process.kill()
                self._process.join()
            self.connection.close()
        self._process = self.connection = None


@dataclass
class _Crew:
    """The workers; on leaving all of their processes are ended."""

    count: int
    store: Store
    profile: str | None

    def __enter__(self) -> _Crew:
        threads = share_of_threads(max(1, self.count))
        self.workers = [_Worker(place, self.store, self.profile, threads) for place in range(self.count)]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        for worker in self.workers:
            worker.stop()
        deadline = time.monotonic() + GRACE_S
        for worker in self.workers:
            worker.finish(deadline)

    def idle(self) -> list[_Worker]:
        """Those without a task; those with a process first, as starting one takes seconds."""
        idle = [worker for worker in self.workers if worker.idle]
        return sorted(idle, key=lambda worker: worker.connection is None)

    def messages(self) -> Iterator[tuple[_Worker, Message | None]]:
        """What the busy ones say next, once one says something; None: the process is dead."""
        busy = {worker.connection: worker for worker in self.workers if not worker.idle}
        for connection in wait([one for one in busy if one is not None]):
            worker = busy[connection]  # type: ignore[index]
            yield worker, worker.message()


class _no_interrupts:  # noqa: N801
    """Inside, SIGINT is held back, also from processes that are started here, which ignore it once they can."""

    def __enter__(self) -> None:
        self._before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})

    def __exit__(self, *exception: object) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._before)
