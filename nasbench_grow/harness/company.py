"""Who else is at work: cells that run on one machine at the same time disturb each other's times."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from nasbench_grow.base import parallel

FOLDER = Path(tempfile.gettempdir()) / f"nasbench-grow-{os.getuid()}-at-work"
"""A locked file for each process that runs a cell now."""


@contextmanager
def at_work() -> Iterator[Callable[[], int]]:
    """While a cell runs; gives the function that counts the others that do on this machine, by the same user."""
    FOLDER.mkdir(exist_ok=True)
    if parallel.processes() > 1:  # the process that launched these is at work for all of them
        yield lambda: max(0, _held(own=None) - 1)
        return
    own = FOLDER / str(os.getpid())
    with FileLock(own):
        yield lambda: _held(own)
    with suppress(OSError):
        own.unlink()


def _held(own: Path | None) -> int:
    """How many files but ``own`` are locked; those of processes that are gone are removed."""
    held = 0
    for file in FOLDER.iterdir():
        if file == own:
            continue
        try:
            with FileLock(file, timeout=0):
                file.unlink()
        except Timeout:
            held += 1
        except OSError:
            continue
    return held
