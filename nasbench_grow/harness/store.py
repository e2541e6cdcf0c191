"""The results folder: records, histories, architectures, checkpoints, traces, logs and locks.

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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from nasbench_grow.base.errors import UserError
from nasbench_grow.base.files import write_whole

Record = dict[str, Any]

RECORD_FIELDS = (
    *("run_key", "method", "task", "backbone", "setup", "budget", "seed", "epochs", "train_samples", "profile"),
    *("status", "error", "metric", "val_metric", "soft_val_metric", "test_metric"),
    *("params", "dense_params", "macs", "dense_macs", "train_macs", "dense_train_macs"),
    *("wall_s", "total_s", "peak_memory_bytes", "latency_ms_batch1", "latency_ms_batch64", "weights_sha256"),
    *("hardware", "versions", "code_version", "started_at"),
)
STATUSES = ("ok", "failed", "diverged")

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
            record = json.loads(path.read_text(encoding="utf-8"))
            _check_record(record, key)
            self._check_history(key)
        except FileNotFoundError:
            return None
        except ValueError as error:
            self._set_aside(path, str(error))
            return None
        except OSError as error:
            raise _store_error("read", path, error) from error
        return dict(record)

    def records(self) -> list[Record]:
        """Every readable record, in the order of their run keys."""
        keys = sorted(path.stem for path in (self.root / "records").glob("*.json"))
        return [record for key in keys if (record := self.record(key)) is not None]

    def write_record(self, record: Record) -> None:
        """Keep the final record of a cell, in place of any older one."""
        _check_record(record, record["run_key"])
        data = json.dumps(_finite(record), indent=1, allow_nan=False) + "\n"
        self._write(self._path("records", record["run_key"]), data.encode())

    def write_history(self, key: str, epochs: list[dict[str, Any]]) -> None:
        """Keep what happened in every epoch so far."""
        lines = ",\n".join(json.dumps(_finite(epoch), allow_nan=False) for epoch in epochs)
        self._write(self._path("histories", key), _HISTORY.format(key=key, lines=lines).encode())

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
        self._write(self._path("architectures", key), text.encode())

    def write_log(self, key: str, text: str) -> Path:
        """Keep a traceback; returns the file's path."""
        path = self._path("logs", key)
        self._write(path, text.encode())
        return path

    def write_trace(self, key: str, data: bytes) -> Path:
        """Keep the Chrome trace of a cell's first steps; returns the file's path."""
        path = self._path("profiles", key)
        self._write(path, data)
        return path

    def checkpoint(self, key: str) -> dict[str, Any] | None:
        """The state after the last finished epoch, or None where there is none (or none that can be read)."""
        import torch

        path = self._path("checkpoints", key)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _store_error("read", path, error) from error
        try:
            state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
            if state["run_key"] != key:
                raise ValueError(f"it belongs to cell {state['run_key']}")
        except Exception as error:  # torch.load has no one error for a damaged file
            self._set_aside(path, f"{type(error).__name__}: {error}".splitlines()[0])
            return None
        return dict(state)

    def write_checkpoint(self, key: str, state: dict[str, Any]) -> None:
        """Keep the state after an epoch (tensors, numbers, strings, lists, tuples and dicts), in place of the last."""
        import torch

        # through memory, because torch.save hides the reason when it cannot write a file
        buffer = io.BytesIO()
        torch.save({**state, "run_key": key}, buffer)
        self._write(self._path("checkpoints", key), buffer.getbuffer())

    def drop_checkpoint(self, key: str) -> None:
        """Forget the state of a cell, if there is one."""
        path = self._path("checkpoints", key)
        try:
            path.unlink(missing_ok=True)
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
            self._set_aside(path, "not a whole history")
            raise ValueError(f"its history {path} is damaged")

    def _path(self, kind: str, key: str) -> Path:
        suffix = {"checkpoints": ".pt", "locks": ".lock", "logs": ".txt"}.get(kind, ".json")
        return self.root / kind / f"{key}{suffix}"

    def _write(self, path: Path, data: bytes | memoryview) -> None:
        try:
            write_whole(path, data)
        except OSError as error:
            raise _store_error("write", path, error) from error

    def _set_aside(self, path: Path, reason: str) -> None:
        if not self._repair:
            _log.warning("damaged: %s (%s); its cell counts as not run", path, reason)
            return
        folder = self.root / "damaged" / path.parent.name
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


class ReadOnlyStore(Store):
    """A results folder that another process writes for this one: nothing is changed here."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        super().__init__(root, repair=False)

    def drop_checkpoint(self, key: str) -> None:
        """Left to the other process."""

    def _write(self, path: Path, data: bytes | memoryview) -> None:
        pass


def _check_record(record: Any, key: str) -> None:
    """Raise ValueError unless this is a whole record of cell ``key``."""
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    missing = [field for field in RECORD_FIELDS if field not in record]
    if missing:
        raise ValueError(f"fields missing: {', '.join(missing)}")
    if record["run_key"] != key:
        raise ValueError(f"its run key is {record['run_key']!r}")
    if record["status"] not in STATUSES:
        raise ValueError(f"unknown status {record['status']!r}")


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
