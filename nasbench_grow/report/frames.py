"""Finished cells as pandas frames: ``load`` (a row a cell), ``histories`` (a row an epoch), ``widths`` (a row a layer),
``structures`` (a row a layer of each network that trained).

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
from nasbench_grow.harness import record

_FLATTENED = ("hardware", "versions")
_DTYPES = {"text": "object", "object": "object", "whole": "Int64", "number": "float64", "flag": "boolean"}

COLUMNS: dict[str, str] = {
    **{field: _DTYPES[kind] for field, kind in record.FIELDS.items() if field not in _FLATTENED},
    "macs_share": "float64",
    "train_macs_share": "float64",
}
"""The columns that :func:`load` always gives, with their types: a record's fields and two shares."""

Read = Callable[[Any, str], dict[str, Any]]
"""Makes of a file's content and its stem what is wanted; raises ValueError with what is wrong."""

_EPOCH_COLUMNS = ("run_key", "epoch", "loss", "learning_rate", "val_metric", "macs", "train_macs", "wall_s")
_WIDTH_COLUMNS = ("run_key", "epoch", "layer", "width")
_STRUCTURE_COLUMNS = ("run_key", "begin", "end", "macs", "layer", "width")


def load(folder: str | Path = "results") -> pd.DataFrame:
    """Every recorded cell of a results folder, a row each: finished, failed, diverged and skipped ones.

    Columns are those of :data:`COLUMNS`, then ``hardware_*`` and ``versions_*`` (one for each entry) and whatever
    else a record holds. ``macs_share`` and ``train_macs_share`` are shares of the dense network's MACs.

    A file that cannot be read as a record is left out with a warning that names it.

    Raises:
        UserError: the folder does not exist.
    """
    rows = [_flatten(found) for found in _read_all(folder, "records", record.read)]
    frame = pd.DataFrame(rows)
    # reindex also gives a folder without records its columns.
    extra = sorted(set(frame.columns) - set(COLUMNS))
    frame = frame.reindex(columns=[*COLUMNS, *extra]).astype(COLUMNS)
    frame["started_at"] = pd.to_datetime(frame["started_at"], utc=True, errors="coerce", format="ISO8601")
    frame["macs_share"] = _share(frame["macs"], frame["dense_macs"])
    frame["train_macs_share"] = _share(frame["train_macs"], frame["dense_train_macs"])
    frame["meets_budget"] = frame["meets_budget"].where(frame["schema"] > 1, _met(frame))
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


def structures(folder: str | Path = "results", run_keys: Collection[str] | None = None) -> pd.DataFrame:
    """Which networks trained, and from when to when: a row for each layer of each of them, in every run (of
    ``run_keys``, or of all).

    ``begin`` and ``end`` count epochs, 0 at the start of the run; ``macs`` is the cost of the network. Older histories
    know the network at the end of each epoch alone, which then stands for the whole of it.

    Raises:
        UserError: the folder does not exist.
    """
    rows = []
    last: dict[str, dict[str, Any]] = {}
    for run_key, epoch in _epochs(folder, run_keys):
        whole = {"at": 0.0, "macs": epoch.get("macs"), "widths": epoch.get("widths") or {}}
        changes = epoch.get("restructurings") or [whole]
        if changes[0]["at"] > 0 and run_key in last:  # until the first change what trained before goes on
            changes = [last[run_key], *changes]
        last[run_key] = whole
        begins = [epoch["epoch"] - 1 + change["at"] for change in changes]
        for change, begin, end in zip(changes, begins, [*begins[1:], epoch["epoch"]], strict=True):
            rows += [(run_key, begin, end, change["macs"], *layer) for layer in change["widths"].items()]
    return pd.DataFrame(rows, columns=list(_STRUCTURE_COLUMNS))


def _read_all(folder: str | Path, kind: str, read: Read, run_keys: Collection[str] | None = None) -> Iterator[Any]:
    """What ``read`` makes of the JSON files of ``folder/kind`` (of ``run_keys``, or all); others are warned of."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"no results folder {str(folder)!r}; run `nasbench-grow reproduce --results {folder}` first")
    for path in sorted((folder / kind).glob("*.json")):
        if run_keys is not None and path.stem not in run_keys:
            continue
        try:
            value = read(json.loads(path.read_text(encoding="utf-8")), path.stem)
        except (OSError, ValueError) as error:
            warnings.warn(f"skipped damaged file {path}: {error}", stacklevel=4)
        else:
            yield value


def _history(value: Any, key: str) -> dict[str, Any]:
    """The history of cell ``key`` that a JSON file held.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(value, dict) or not isinstance(value.get("epochs"), list):
        raise ValueError("not a history")
    if value.get("run_key") != key:
        raise ValueError(f"holds the history of {value.get('run_key')!r}")
    if not all(isinstance(epoch, dict) and isinstance(epoch.get("epoch"), int) for epoch in value["epochs"]):
        raise ValueError("an epoch without its number")
    return value


def _epochs(folder: str | Path, run_keys: Collection[str] | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every epoch of every wanted run, with the run's key."""
    for history in _read_all(folder, "histories", _history, run_keys):
        for epoch in history["epochs"]:
            yield history["run_key"], epoch


def _flatten(found: record.Record) -> dict[str, Any]:
    """The record with ``hardware`` and ``versions`` spread over one column an entry."""
    row = {name: value for name, value in found.items() if name not in _FLATTENED}
    for group in _FLATTENED:
        entries = found[group] or {}
        row |= {f"{group}_{name}".replace("-", "_"): value for name, value in entries.items()}
    return row


def _share(part: pd.Series[Any], whole: pd.Series[Any]) -> pd.Series[float]:
    """``part / whole`` as plain floats, NaN where either is missing or the whole is zero."""
    numerator = part.astype("Float64").to_numpy(dtype="float64", na_value=float("nan"))
    denominator = whole.astype("Float64").to_numpy(dtype="float64", na_value=float("nan"))
    return pd.Series(numerator, index=part.index) / pd.Series(denominator, index=whole.index).replace(0, float("nan"))


def _met(frame: pd.DataFrame) -> pd.Series[Any]:
    """Whether the returned networks meet their budgets, for records that do not say: missing where there is no budget
    or where it is not one of MACs."""
    off = (frame["macs_share"] - frame["budget"]).abs()
    judged = off.notna() & (frame["budget"] < 1) & ~frame["method"].str.contains("cost=time", regex=False)
    return (off <= record.BUDGET_LIMIT * (1 + 1e-9)).astype("boolean").where(judged, pd.NA)
