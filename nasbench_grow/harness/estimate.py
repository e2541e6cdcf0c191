"""What cells will cost, before they run: training multiply-accumulates and time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import median
from typing import Any

import torch

from nasbench_grow.harness import dense, measure, registry
from nasbench_grow.harness.cell import Cell
from nasbench_grow.harness.progress import duration
from nasbench_grow.harness.record import Record, is_settled
from nasbench_grow.harness.store import Store

SECONDS_PER_MAC = 4.5e-11
"""Used where the results folder holds no cell to learn from: what the cells of the ``laptop`` profile took on two
cores, evaluation included, for each MAC of their training."""
LEAST_TRAINING_S = 20.0
"""A cell that trained for less says little: loading and measuring took most of its time."""


@dataclass(frozen=True)
class Estimate:
    """Expected cost of one cell."""

    train_macs: float
    seconds: float


def estimate(cells: Sequence[Cell], records: Sequence[Record]) -> list[Estimate]:
    """The expected cost of each cell.

    Training costs the dense network's MACs x 3 x samples, times the share that finished cells of the same method and
    budget needed, or (1 + budget) / 2 where there are none. A MAC takes as long as :func:`seconds_per_mac` says. What a
    cell begins with is a cell of its own and not counted here.
    """
    finished = [record for record in records if record["status"] == "ok" and _own_macs(record)]
    speeds = {setup: seconds_per_mac(finished, setup) for setup in {cell.setup for cell in cells}}
    estimates = []
    for cell in cells:
        shares = [
            _own_macs(record) / record["dense_train_macs"]
            for record in finished
            if (record["method"], record["budget"]) == (cell.method, cell.budget)
        ]
        share = median(shares) if shares else (1 + cell.budget) / 2
        samples = cell.epochs * _train_samples(cell.task, cell.train_samples)
        macs = 3 * dense.macs(cell.backbone, cell.task) * samples * share
        estimates.append(Estimate(macs, macs * speeds[cell.setup]))
    return estimates


def seconds_per_mac(finished: Sequence[Record], setup: str) -> float:
    """Seconds for each MAC of the training, as finished cells of the set-up took on this machine.

    Half of the time that they took went by in cells that were as fast or faster. Cells that trained for less than
    :data:`LEAST_TRAINING_S` do not count; :data:`SECONDS_PER_MAC` if none is left.
    """
    here = _machine(measure.hardware())
    paces = sorted(
        (record["total_s"] / _own_macs(record), record["total_s"])
        for record in finished
        if record["setup"] == setup
        and (record["wall_s"] or 0) >= LEAST_TRAINING_S
        and _machine(record["hardware"] or {}) == here
    )
    half, passed = sum(seconds for _, seconds in paces) / 2, 0.0
    for pace, seconds in paces:
        passed += seconds
        if passed >= half:
            return pace
    return SECONDS_PER_MAC


def _own_macs(record: Record) -> int:
    """What a cell trained with itself, its source's training apart (as is that one's time in ``total_s``)."""
    return int((record["train_macs"] or 0) - (record["source_macs"] or 0))


def _machine(hardware: Mapping[str, Any]) -> tuple[Any, ...]:
    """What of a record's ``hardware`` tells one machine from another."""
    return tuple(hardware.get(part) for part in ("cpu", "cores", "gpu"))


def plan(cells: Sequence[Cell], store: Store) -> str:
    """A table of the cells, which of them are finished, and what the others will cost."""
    records = {cell: store.record(cell.run_key()) for cell in cells}
    todo = [cell for cell in cells if not is_settled(records[cell])]
    costs = dict(zip(todo, estimate(todo, store.records()), strict=True))
    width = max(len(str(cell)) for cell in cells)
    lines = []
    for cell in cells:
        record = records[cell]
        if cell not in costs:
            assert record is not None
            lines.append(f"{cell!s:<{width}}  {'done' if record['status'] == 'ok' else 'skipped'}")
        else:
            state = "to do" if record is None else f"to do again ({record['status']})"
            cost = costs[cell]
            lines.append(f"{cell!s:<{width}}  {state}: {cost.train_macs:.2e} MACs, about {duration(cost.seconds)}")
    macs = sum(cost.train_macs for cost in costs.values())
    seconds = sum(cost.seconds for cost in costs.values())
    lines.append(
        f"{len(cells)} cells, {len(cells) - len(todo)} done, {len(todo)} to do: "
        f"{macs:.2e} training MACs, about {duration(seconds)}"
    )
    return "\n".join(lines)


@cache
def _train_samples(task: str, train_samples: int | None) -> int:
    if train_samples is not None:
        return train_samples
    return len(registry.task(task)().load(torch.device("cpu")).train)
