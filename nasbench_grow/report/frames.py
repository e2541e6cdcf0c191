"""Finished cells as pandas frames: ``load`` (a row a cell), ``histories`` (a row an epoch), ``widths`` (a row a layer).

Everything is read from the JSON files of a results folder; nothing is written there. ``docs/results.md`` explains
every column with its unit.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from nasbench_grow.base.errors import UserError

COLUMNS: dict[str, str] = {
    "run_key": "object",
    "method": "object",
    "task": "object",
    "backbone": "object",
    "setup": "object",
    "budget": "float64",
    "seed": "Int64",
    "status": "object",
    "error": "object",
    "metric": "object",
    "val_metric": "float64",
    "test_metric": "float64",
    "soft_val_metric": "float64",
    "params": "Int64",
    "dense_params": "Int64",
    "macs": "Int64",
    "dense_macs": "Int64",
    "macs_share": "float64",
    "train_macs": "Int64",
    "dense_train_macs": "Int64",
    "train_macs_share": "float64",
    "wall_s": "float64",
    "total_s": "float64",
    "peak_memory_bytes": "Int64",
    "latency_ms_batch1": "float64",
    "latency_ms_batch64": "float64",
    "epochs": "Int64",
    "train_samples": "Int64",
    "profile": "object",
    "weights_sha256": "object",
    "code_version": "object",
    "started_at": "object",
}
"""The columns that :func:`load` always gives, with their types. Counts may be missing (a failed cell has none)."""

_IDENTITY = ("run_key", "method", "task", "backbone", "setup", "budget", "seed", "status")
_FLATTENED = ("hardware", "versions")

Fault = Callable[[Path, Any], str | None]
"""Says what is wrong with a file's content, or None."""

_EPOCH_COLUMNS = ("run_key", "epoch", "loss", "learning_rate", "val_metric", "macs", "train_macs", "wall_s")
_WIDTH_COLUMNS = ("run_key", "epoch", "layer", "width")


def load(folder: str | Path = "results") -> pd.DataFrame:
    """Every recorded cell of a results folder, a row each: finished, failed and diverged ones.

    Columns are those of :data:`COLUMNS`, then ``hardware_*`` and ``versions_*`` (one for each entry) and whatever
    else a record holds. ``macs_share`` and ``train_macs_share`` are shares of the dense network's MACs.

    A file that cannot be read as a record is left out with a warning that names it.

    Raises:
        UserError: the folder does not exist.
    """
    rows = [_flatten(record) for record in _read_all(folder, "records", _record_fault)]
    frame = pd.DataFrame(rows)
    # reindex also gives a folder without records its columns.
    extra = sorted(set(frame.columns) - set(COLUMNS))
    frame = frame.reindex(columns=[*COLUMNS, *extra]).astype(COLUMNS)
    frame["started_at"] = pd.to_datetime(frame["started_at"], utc=True, errors="coerce", format="ISO8601")
    frame["macs_share"] = _share(frame["macs"], frame["dense_macs"])
    frame["train_macs_share"] = _share(frame["train_macs"], frame["dense_train_macs"])
    order = ["task", "backbone", "setup", "epochs", "budget", "method", "seed", "run_key"]
    return frame.sort_values(order, ignore_index=True)


def histories(folder: str | Path = "results", run_keys: Collection[str] | None = None) -> pd.DataFrame:
    """How training went: a row for each epoch of each run (of ``run_keys``, or of all).

    ``macs`` is the cost of the network at the end of the epoch; ``train_macs`` and ``wall_s`` (seconds) are cumulative.
    What a method logs of its own stands in columns ``log_*``, e.g. ``log_target`` and ``log_cost``.

    Raises:
        UserError: the folder does not exist.
    """
    rows = []
    for run_key, epoch in _epochs(folder, run_keys):
        row = {name: epoch.get(name) for name in _EPOCH_COLUMNS} | {"run_key": run_key}
        row |= {f"log_{name}": value for name, value in (epoch.get("log") or {}).items()}
        rows.append(row)
    frame = pd.DataFrame(rows)
    return frame.reindex(columns=[*_EPOCH_COLUMNS, *sorted(set(frame.columns) - set(_EPOCH_COLUMNS))])


def widths(folder: str | Path = "results", run_keys: Collection[str] | None = None) -> pd.DataFrame:
    """How wide every layer was: a row for each layer of each epoch of each run (of ``run_keys``, or of all).

    ``width`` counts output channels; a layer that did not exist in an epoch has no row there. Within an epoch, rows
    keep the order of the network's layers.

    Raises:
        UserError: the folder does not exist.
    """
    rows = [
        (run_key, epoch["epoch"], layer, width)
        for run_key, epoch in _epochs(folder, run_keys)
        for layer, width in (epoch.get("widths") or {}).items()
    ]
    return pd.DataFrame(rows, columns=list(_WIDTH_COLUMNS))


def _read_all(folder: str | Path, kind: str, fault: Fault, run_keys: Collection[str] | None = None) -> Iterator[Any]:
    """The sound JSON objects of ``folder/kind`` (of ``run_keys``, or all); ``fault`` judges them."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"no results folder {str(folder)!r}; run `nasbench-grow reproduce --results {folder}` first")
    for path in sorted((folder / kind).glob("*.json")):
        if run_keys is not None and path.stem not in run_keys:
            continue
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
            problem = fault(path, value)
        except (OSError, ValueError) as error:
            problem = str(error)
        if problem:
            warnings.warn(f"skipped damaged file {path}: {problem}", stacklevel=4)
        else:
            yield value


def _record_fault(path: Path, record: Any) -> str | None:
    """What keeps ``record`` from being a row, or None."""
    if not isinstance(record, dict):
        return "not a JSON object"
    missing = [name for name in _IDENTITY if record.get(name) is None]
    if missing:
        return f"no {', '.join(missing)}"
    if record["run_key"] != path.stem:
        return f"holds the record of {record['run_key']!r}"  # a copy would count one run twice
    for name, dtype in COLUMNS.items():
        value = record.get(name)
        if value is not None and not _has_type(value, dtype):
            return f"{name} is {value!r}"
    return None


def _has_type(value: Any, dtype: str) -> bool:
    """Whether a JSON value fits a column of :data:`COLUMNS`."""
    if dtype == "object":
        return isinstance(value, str)
    if dtype == "Int64" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, int | float) and not isinstance(value, bool)


def _history_fault(path: Path, history: Any) -> str | None:
    """What keeps ``history`` from being rows, or None."""
    if not isinstance(history, dict) or not isinstance(history.get("epochs"), list):
        return "not a history"
    if history.get("run_key") != path.stem:
        return f"holds the history of {history.get('run_key')!r}"
    if not all(isinstance(epoch, dict) and isinstance(epoch.get("epoch"), int) for epoch in history["epochs"]):
        return "an epoch without its number"
    return None


def _epochs(folder: str | Path, run_keys: Collection[str] | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every epoch of every wanted run, with the run's key."""
    for history in _read_all(folder, "histories", _history_fault, run_keys):
        for epoch in history["epochs"]:
            yield history["run_key"], epoch


def _flatten(record: dict[str, Any]) -> dict[str, Any]:
    """The record with ``hardware`` and ``versions`` spread over one column an entry."""
    row = {name: value for name, value in record.items() if name not in _FLATTENED}
    for group in _FLATTENED:
        entries = record.get(group)
        if isinstance(entries, dict):
            row |= {f"{group}_{name}".replace("-", "_"): value for name, value in entries.items()}
    return row


def _share(part: pd.Series[Any], whole: pd.Series[Any]) -> pd.Series[float]:
    """``part / whole`` as plain floats, NaN where either is missing or the whole is zero."""
    numerator = part.astype("Float64").to_numpy(dtype="float64", na_value=float("nan"))
    denominator = whole.astype("Float64").to_numpy(dtype="float64", na_value=float("nan"))
    return pd.Series(numerator, index=part.index) / pd.Series(denominator, index=whole.index).replace(0, float("nan"))
