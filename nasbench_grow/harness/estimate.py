"""What cells will cost, before they run: training multiply-accumulates and time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import median

import torch

from nasbench_grow.cost.macs import count_macs
from nasbench_grow.harness import registry
from nasbench_grow.harness.cell import Cell
from nasbench_grow.harness.progress import duration
from nasbench_grow.harness.record import Record
from nasbench_grow.harness.store import Store

SECONDS_PER_MAC = 4.5e-11
"""Used where the results folder holds no finished cell of the set-up: what the cells of the ``laptop`` profile took on
two cores, evaluation included, for each MAC of their training."""


@dataclass(frozen=True)
class Estimate:
    """Expected cost of one cell."""

    train_macs: float
    seconds: float


def estimate(cells: Sequence[Cell], records: Sequence[Record]) -> list[Estimate]:
    """The expected cost of each cell.

    Training costs the dense network's MACs x 3 x samples, times the share that finished cells of the same method and
    budget needed, or (1 + budget) / 2 where there are none. A MAC takes the median time of the finished cells with
    the same set-up, or :data:`SECONDS_PER_MAC`.
    """
    finished = [record for record in records if record["status"] == "ok" and record["train_macs"]]
    estimates = []
    for cell in cells:
        share = _median(
            [r for r in finished if (r["method"], r["budget"]) == (cell.method, cell.budget)],
            lambda record: record["train_macs"] / record["dense_train_macs"],
            otherwise=(1 + cell.budget) / 2,
        )
        seconds_per_mac = _median(
            [r for r in finished if r["setup"] == cell.setup],
            lambda record: record["total_s"] / record["train_macs"],
            otherwise=SECONDS_PER_MAC,
        )
        samples = cell.epochs * _train_samples(cell.task, cell.train_samples)
        macs = 3 * _dense_macs(cell.backbone, cell.task) * samples * share
        estimates.append(Estimate(macs, macs * seconds_per_mac))
    return estimates


def plan(cells: Sequence[Cell], store: Store) -> str:
    """A table of the cells, which of them are finished, and what the others will cost."""
    records = {cell: store.record(cell.run_key()) for cell in cells}
    todo = [cell for cell in cells if not _is_ok(records[cell])]
    costs = dict(zip(todo, estimate(todo, store.records()), strict=True))
    width = max(len(str(cell)) for cell in cells)
    lines = []
    for cell in cells:
        record = records[cell]
        if cell not in costs:
            lines.append(f"{cell!s:<{width}}  done")
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


def _is_ok(record: Record | None) -> bool:
    return record is not None and record["status"] == "ok"


def _median(records: Sequence[Record], value: Callable[[Record], float], otherwise: float) -> float:
    return median(map(value, records)) if records else otherwise


@cache
def _dense_macs(backbone: str, task_name: str) -> int:
    task = registry.task(task_name)()
    return count_macs(registry.build_backbone(backbone, task), task.example())


@cache
def _train_samples(task: str, train_samples: int | None) -> int:
    if train_samples is not None:
        return train_samples
    return len(registry.task(task)().load(torch.device("cpu")).train)
