"""The results folder: records, histories, architectures, weights, checkpoints, traces, logs and locks.

Every file is written to a neighbour, flushed to the disk and renamed, so that a file is either the old one or the new
one. A file that cannot be read all the same (a half copied folder, a bad disk) is moved to ``damaged/`` and reported.
"""

from __future__ import annotations

import errno
import io
import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from nasbench_grow.base.errors import UserError
from nasbench_grow.base.files import write_whole
from nasbench_grow.harness.record import Record, read

_HISTORY = '{{"run_key": "{key}", "epochs": [\n{lines}\n]}}\n'
"""A history file: JSON, with each epoch on a line of its own."""

_log = logging.getLogger(__name__)


class StoreError(UserError):
    """The results folder cannot be used: no cell can go on, not just the one at hand."""


class Store:
    """A results folder.

    Args:
        root: the folder; it need not exist, and is created by the first write.
        repair: move unreadable files to ``damaged/`` (False: only report them, for look-only commands).
    """

    def __init__(self, root: str | os.PathLike[str], *, repair: bool = True) -> None:
        self.root = Path(root)
        self._repair = repair

    def record(self, key: str) -> Record | None:
        """The record of a cell, or None where there is none, or where it or its history is damaged."""
        path = self._path("records", key)
        try:
            record = read(json.loads(path.read_text(encoding="utf-8")), key)
            self._check_history(key)
        except FileNotFoundError:
            return None
        except ValueError as error:
            self.set_aside(path, str(error))
            return None
        except OSError as error:
            raise _store_error("read", path, error) from error
        return record

    def records(self) -> list[Record]:
        """Every readable record, in the order of their run keys."""
        keys = sorted(path.stem for path in (self.root / "records").glob("*.json"))
        return [record for key in keys if (record := self.record(key)) is not None]

    def write_record(self, record: Record) -> None:
        """Keep the final record of a cell, in place of any older one."""
        read(record, record["run_key"])
        data = json.dumps(_finite(record), indent=1, allow_nan=False) + "\n"
        self.write(self._path("records", record["run_key"]), data.encode())

    def write_history(self, key: str, epochs: list[dict[str, Any]]) -> None:
        """Keep what happened in every epoch so far."""
        lines = ",\n".join(json.dumps(_finite(epoch), allow_nan=False) for epoch in epochs)
        self.write(self._path("histories", key), _HISTORY.format(key=key, lines=lines).encode())

    def history(self, key: str) -> list[dict[str, Any]]:
        """What happened in every epoch of a cell; empty where nothing was kept."""
        path = self._path("histories", key)
        try:
            return list(json.loads(path.read_text(encoding="utf-8"))["epochs"])
        except FileNotFoundError:
            return []
        except OSError as error:
            raise _store_error("read", path, error) from error

    def architecture(self, key: str) -> str | None:
        """What :func:`nasbench_grow.structure.architecture.describe` said of a finished cell's network, or None."""
        path = self._path("architectures", key)
        try:
            return path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _store_error("read", path, error) from error

    def write_architecture(self, key: str, text: str) -> None:
        """Keep the architecture that a cell arrived at."""
        self.write(self._path("architectures", key), text.encode())

    def write_log(self, key: str, text: str) -> Path:
        """Keep a traceback; returns the file's path."""
        path = self._path("logs", key)
        self.write(path, text.encode())
        return path

    def write_trace(self, key: str, data: bytes) -> Path:
        """Keep the Chrome trace of a cell's first steps; returns the file's path."""
        path = self._path("profiles", key)
        self.write(path, data)
        return path

    def weights(self, key: str) -> Path | None:
        """The file with the network that a finished cell returned, or None."""
        path = self._path("weights", key)
        return path if path.exists() else None

    def write_weights(self, key: str, save: Callable[[Path], object]) -> None:
        """Keep the network that a cell returned; ``save`` writes it whole to the path it is given."""
        path = self._path("weights", key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save(path)
        except OSError as error:
            raise _store_error("write", path, error) from error

    def checkpoint(self, key: str) -> Checkpoint:
        """Where a cell under way keeps its journal."""
        return Checkpoint(self, key)

    def drop_checkpoint(self, key: str) -> None:
        """Forget the state of a cell, if there is one."""
        path = self.root / "checkpoints" / key
        try:
            shutil.rmtree(path)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise _store_error("remove", path, error) from error

    @contextmanager
    def lock(self, key: str, *, wait: bool) -> Iterator[bool]:
        """Hold a cell against other processes; gives False, holding nothing, where it is busy and ``wait`` is False."""
        path = self._path("locks", key)
        lock = FileLock(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=-1 if wait else 0)
        except Timeout:
            yield False
            return
        except OSError as error:
            raise _store_error("write", path, error) from error
        try:
            yield True
        finally:
            lock.release()

    def _check_history(self, key: str) -> None:
        """Raise ValueError, after setting it aside, if a history is not whole; a missing one is no fault.

        Only its ends are read, because histories are long and this is asked of every finished cell.
        """
        path = self._path("histories", key)
        head, tail = (part.encode() for part in _HISTORY.format(key=key, lines="|").split("|"))
        try:
            with open(path, "rb") as file:
                whole = file.read(len(head)) == head
                file.seek(-min(len(tail), file.seek(0, os.SEEK_END)), os.SEEK_END)
                whole = whole and file.read() == tail
        except FileNotFoundError:
            return
        if not whole:
            self.set_aside(path, "not a whole history")
            raise ValueError(f"its history {path} is damaged")

    def _path(self, kind: str, key: str) -> Path:
        suffix = {"weights": ".safetensors", "locks": ".lock", "logs": ".txt"}.get(kind, ".json")
        return self.root / kind / f"{key}{suffix}"

    def write(self, path: Path, data: bytes | memoryview) -> None:
        """Write a file of the folder whole."""
        try:
            write_whole(path, data)
        except OSError as error:
            raise _store_error("write", path, error) from error

    def set_aside(self, path: Path, reason: str) -> None:
        """Move a file that cannot be read to ``damaged/``, and say so."""
        if not self._repair:
            _log.warning("damaged: %s (%s); its cell counts as not run", path, reason)
            return
        folder = self.root / "damaged" / path.parent.relative_to(self.root)
        target = folder / path.name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            number = 1
            while target.exists():
                number += 1
                target = folder / f"{path.stem}-{number}{path.suffix}"
            shutil.move(path, target)
        except FileNotFoundError:
            return  # another process has just set it aside
        except OSError as error:
            raise _store_error("move", path, error) from error
        _log.warning("damaged: %s (%s); moved to %s, its cell will be run again", path, reason, target)


class Checkpoint:
    """The journal of a cell under way: a file for each of its steps (:class:`nasbench_grow.contract.journal.Storage`).

    States are tensors, numbers, strings, lists, tuples and dicts.
    """

    def __init__(self, store: Store, key: str) -> None:
        self._store, self._key = store, key
        self._folder = store.root / "checkpoints" / key

    def read(self, name: str) -> dict[str, Any] | None:
        """The state called ``name``, or None where there is none (or none that can be read)."""
        import torch

        path = self._folder / f"{name}.pt"
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _store_error("read", path, error) from error
        try:
            state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
            if state["run_key"] != self._key:
                raise ValueError(f"it belongs to cell {state['run_key']}")
        except Exception as error:  # torch.load has no one error for a damaged file
            self._store.set_aside(path, f"{type(error).__name__}: {error}".splitlines()[0])
            self.forget(f"{name}.")  # steps inside it belong to the epoch that it had come to
            return None
        return dict(state)

    def write(self, name: str, state: dict[str, Any]) -> None:
        """Keep a state in place of any older one of its name."""
        import torch

        # through memory, because torch.save hides the reason when it cannot write a file
        buffer = io.BytesIO()
        torch.save({**state, "run_key": self._key}, buffer)
        self._store.write(self._folder / f"{name}.pt", buffer.getbuffer())

    def forget(self, prefix: str) -> None:
        """Drop every state whose name begins so."""
        for path in self._folder.glob(f"{prefix}*.pt"):
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise _store_error("remove", path, error) from error


class ReadOnlyStore(Store):
    """A results folder that another process writes for this one: nothing is changed here."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        super().__init__(root, repair=False)

    def write_weights(self, key: str, save: Callable[[Path], object]) -> None:
        """Left to the other process."""

    def drop_checkpoint(self, key: str) -> None:
        """Left to the other process."""

    def checkpoint(self, key: str) -> Checkpoint:
        """What the other process keeps, to be read only."""
        return _ReadOnlyCheckpoint(self, key)

    def write(self, path: Path, data: bytes | memoryview) -> None:
        """Left to the other process."""


class _ReadOnlyCheckpoint(Checkpoint):
    def forget(self, prefix: str) -> None:
        """Left to the other process."""


def _finite(value: Any) -> Any:
    """``value`` with null for every number that JSON has no spelling for (NaN, infinity)."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _store_error(verb: str, path: Path, error: OSError) -> StoreError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        fix = "free some space and give the same command again: what was written before is intact"
        return StoreError(f"the disk is full: cannot {verb} {path}; {fix}")
    reason = error.strerror or str(error)
    return StoreError(f"cannot {verb} {path}: {reason}; give a folder that you may write with --results")
