"""What a cell finds of the one that it begins with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import nn

from nasbench_grow.contract.source import Source
from nasbench_grow.harness import registry
from nasbench_grow.harness.cell import Cell
from nasbench_grow.harness.clocked_meter import ClockedMeter
from nasbench_grow.harness.errors import SkippedError, SourceError
from nasbench_grow.harness.record import Record
from nasbench_grow.harness.store import Store


def kept(store: Store, record: Record, takes: str) -> bool:
    """Whether the folder holds of a cell that is settled what another one takes of it (``Method.takes``)."""
    key = record["run_key"]
    if record["status"] != "ok" or takes == "record":
        return True
    return store.architecture(key) is not None and (takes == "architecture" or store.weights(key) is not None)


def check(cell: Cell, store: Store) -> Record | None:
    """The record of the cell that this one begins with; None: it begins with none.

    Raises:
        SkippedError: that cell was skipped.
        SourceError: it did not end well, or did not leave what is taken of it.
    """
    source = cell.source()
    if source is None:
        return None
    record = store.record(source.run_key())
    if record is not None and record["status"] == "skipped":
        raise SkippedError(f"it begins with {source.method}, which is skipped: {record['error']}")
    if record is None or record["status"] != "ok":
        reason = "is not finished" if record is None else f"{record['status']}: {record['error']}"
        raise SourceError(f"{cell.method} has nothing to begin with, because {source.method} {reason}")
    if not kept(store, record, registry.method(cell.method).takes):
        raise SourceError(
            f"{cell.method} has nothing to begin with, because the network that {source.method} returned is none that "
            "can be cut from the backbone; begin with another method"
        )
    return record


def source_of(cell: Cell, store: Store, meter: ClockedMeter, load: Callable[[Path], nn.Module]) -> Source | None:
    """What the cell that this one begins with arrived at; None: it begins with none.

    Args:
        cell: of which the source is wanted.
        store: where both are kept.
        meter: of ``cell``; whoever takes of the source is billed there.
        load: gives the network that a file of weights holds, on the device of the run.

    Raises:
        SkippedError, SourceError: as :func:`check` does.
    """
    record = check(cell, store)
    if record is None:
        return None
    key = record["run_key"]

    def network() -> nn.Module:
        path = store.weights(key)
        if path is None:
            raise SourceError(f"{cell.method} takes the network of its source, but does not say so: set its `takes`")
        return load(path)

    return Source(record, store.architecture(key) or "", network, meter, meter.watches["source"].add)
