"""What a person sees while cells run: bars on a terminal, one plain line a finished cell elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

from tqdm import tqdm

from nasbench_grow.harness.cell import Cell
from nasbench_grow.harness.record import Record
from nasbench_grow.harness.runner import Progress

_FORMAT = "{desc} {percentage:3.0f}%|{bar:20}| {n_fmt}/{total_fmt} [{elapsed}, {remaining} left{postfix}]"
_BARE = "{desc} {n_fmt}/{total_fmt} {percentage:3.0f}%|{bar:20}|{postfix}"


@contextmanager
def epoch_bar(cell: Cell) -> Iterator[Progress]:
    """A bar over the epochs of one cell (terminals only); gives the function to call with each history entry."""
    with _epochs(cell) as bar:
        yield lambda entry: _advance(bar, entry)


@contextmanager
def epoch_lines(cell: Cell, dense_macs: int, metric: Callable[[float], str]) -> Iterator[Progress]:
    """What one training says of each epoch: on a bar (terminals), or in a line each.

    Args:
        cell: what is run.
        dense_macs: forward MACs of its dense network.
        metric: a recorded validation metric in words.
    """
    with tqdm(
        total=cell.epochs, desc="epochs", unit="epoch", leave=False, disable=None, bar_format=_BARE, file=sys.stderr
    ) as bar:

        def advance(entry: dict[str, Any]) -> None:
            # counted over all of the run, also where it was taken up again
            left = entry["wall_s"] / entry["epoch"] * max(0, cell.epochs - entry["epoch"])
            state = f"loss {entry['loss']:.3f}, {metric(entry['val_metric'])}, MACs {entry['macs'] / dense_macs:.2f}"
            line = f"{state} of dense, about {duration(left)} left"
            bar.set_postfix_str(line, refresh=False)
            bar.update()
            if bar.disable:
                print(f"epoch {entry['epoch']}/{cell.epochs}: {line}", file=sys.stderr)

        yield advance


class CellsBar:
    """A bar over many cells with the time left for all of them, and one line for each that ends."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._began = time.monotonic()
        self._bar = tqdm(
            total=total, desc="cells", unit="cell", leave=False, disable=None, bar_format=_FORMAT, file=sys.stderr
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()

    def ended(self, cell: Cell, record: Record) -> None:
        """A cell has ended, run by this process or by another one."""
        self._done += 1
        self._bar.update()
        left = (time.monotonic() - self._began) / self._done * (self._total - self._done)
        self.say(f"[{self._done}/{self._total}] {cell}: {describe(record)}; {duration(left)} left")

    def say(self, line: str) -> None:
        """Print a line above the bars."""
        tqdm.write(line, file=sys.stderr)


class JobsBar(CellsBar):
    """The same over cells that run side by side, and below it a bar over the epochs of each that is running."""

    def __init__(self, total: int, jobs: int) -> None:
        super().__init__(total)
        self._running: list[tqdm[Any] | None] = [None] * jobs

    def __exit__(self, *exception: object) -> None:
        for place in range(len(self._running)):
            self.left(place)
        super().__exit__(*exception)

    def began(self, place: int, cell: Cell) -> None:
        """The process of this number runs a cell now."""
        self.left(place)
        self._running[place] = _epochs(cell, place + 1)

    def epoch(self, place: int, entry: dict[str, Any]) -> None:
        """An epoch of its cell has ended."""
        bar = self._running[place]
        if bar is not None:
            _advance(bar, entry)

    def left(self, place: int) -> None:
        """It runs nothing any more."""
        bar = self._running[place]
        if bar is not None:
            bar.close()
        self._running[place] = None


def _epochs(cell: Cell, line: int | None = None) -> tqdm[Any]:
    """A bar over the epochs of a cell, so many lines below the first one."""
    return tqdm(
        total=cell.epochs,
        desc=str(cell),
        unit="epoch",
        leave=False,
        disable=None,
        bar_format=_FORMAT,
        file=sys.stderr,
        position=line,
    )


def _advance(bar: tqdm[Any], entry: dict[str, Any]) -> None:
    bar.set_postfix_str(f"loss {entry['loss']:.3f}, val {entry['val_metric']:.3f}", refresh=False)
    bar.update()


def describe(record: Record) -> str:
    """The outcome of a cell in a few words."""
    if record["status"] != "ok":
        return f"{record['status']}: {record['error']}"
    metric = record["test_metric"]  # null for a number that JSON cannot spell: the perplexity of a bad language model
    missed = ", not its budget" if record["meets_budget"] is False else ""
    return ", ".join(
        [
            f"ok: test {record['metric']} {'infinite' if metric is None else f'{metric:.4f}'}",
            f"MACs {record['macs'] / record['dense_macs']:.3f} of dense{missed}",
            f"training MACs {record['train_macs'] / record['dense_train_macs']:.3f} of dense",
            duration(record["total_s"]),
        ]
    )


def duration(seconds: float) -> str:
    """Seconds for a person: ``42 s``, ``12 min``, ``3.5 h``, ``2.1 days``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} days"
