"""What takes seconds to find is found once in a test run, by whichever of its processes needs it first."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from filelock import FileLock

Found = TypeVar("Found")

folder: Path | None = None
"""Of all processes of the test run; set as it begins (conftest.py)."""


def once(name: str, find: Callable[[], Found]) -> Found:
    """What ``find`` gives, or gave to another process that asked for that name; files in between keep it."""
    if folder is None:
        return find()
    file = folder / f"{name}.pickle"
    with FileLock(f"{file}.lock"):
        if not file.exists():
            found = find()
            file.write_bytes(pickle.dumps(found))
            return found
        return pickle.loads(file.read_bytes())
