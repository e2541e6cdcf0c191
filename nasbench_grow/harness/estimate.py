"""What cells will cost, before they run: training multiply-accumulates and time, and how sure that is."""

from __future__ import annotations

import math
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
from nasbench_grow.harness.runner import CURVE_SAMPLES
from nasbench_grow.harness.store import Store


@dataclass(frozen=True)
class Pace:
    """Seconds that a device takes for each part of a cell."""

    mac: float
    step: float
    """What a training step takes however small the network is."""
    cell: float
    """Loading and measuring."""


PACES = {"cpu": Pace(mac=4.5e-11, step=0.01, cell=5.0), "cuda": Pace(mac=5e-14, step=0.008, cell=20.0)}
"""By device: of two cores, and of an H200. What the finished cells of a folder took is told relative to it."""

ENOUGH = 3
"""So many finished cells of one task and backbone say what another one takes."""
LEAST_FACTOR, FACTOR_OF_OTHERS, FACTOR_OF_NONE = 1.2, 2.0, 4.0
"""Within what factor an estimate is believed that comes from such cells, from fewer or from others, from none."""


@dataclass(frozen=True)
class Estimate:
    """Expected cost of one cell."""

    train_macs: float
    seconds: float
    factor: float
    """The time is thought to lie between ``seconds / factor`` and ``seconds * factor``."""
    learnt_from: int
    """Finished cells that the time was learnt from."""
    beside: bool
    """Whether these ran beside others, so that ``seconds`` is what the cell takes beside others."""


def estimate(cells: Sequence[Cell], records: Sequence[Record], jobs: int = 1) -> list[Estimate]:
    """The expected cost of each cell.

    Training costs the dense network's MACs x 3 x samples, times the share that finished cells of the same method and
    budget needed, or (1 + budget) / 2 where there are none. The time is that of :data:`PACES` for the MACs, the steps
    and the cell itself, times the median of what finished cells of this machine and set-up took over that: those of
    the same task and backbone where there are some, and among them those that ran beside others if this one will.
    What a cell begins with is a cell of its own and not counted here.

    Args:
        cells: what is to be run.
        records: the finished cells, and others, which do not count.
        jobs: how many cells are going to run at once.
    """
    finished = [record for record in records if record["status"] == "ok" and _own_macs(record)]
    here = _machine(measure.hardware())
    timed = [_timed(record) for record in finished if _machine(record["hardware"] or {}) == here]
    known = [one for one in timed if one is not None]
    return [_estimate(cell, finished, known, jobs) for cell in cells]


@dataclass(frozen=True)
class _Timed:
    """A finished cell of this machine."""

    record: Record
    over_pace: float
    """What it took over what its device's pace says."""

    @property
    def beside(self) -> bool:
        return bool(self.record["beside"])


def _estimate(cell: Cell, finished: Sequence[Record], known: Sequence[_Timed], jobs: int) -> Estimate:
    same = [record for record in finished if (record["method"], record["budget"]) == (cell.method, cell.budget)]
    like = [record for record in same if (record["task"], record["backbone"]) == (cell.task, cell.backbone)]
    shares = [_own_macs(record) / record["dense_train_macs"] for record in like or same]
    share = median(shares) if shares else (1 + cell.budget) / 2
    samples = _train_samples(cell.task, cell.train_samples)
    whole = dense.macs(cell.backbone, cell.task)
    macs = 3 * whole * samples * cell.epochs * share
    seconds = _by_pace(cell.setup, cell.task, cell.train_samples, samples, cell.epochs, macs, whole * share)

    here = [one for one in known if one.record["setup"] == cell.setup]
    alike = [one for one in here if (one.record["task"], one.record["backbone"]) == (cell.task, cell.backbone)]
    group = alike or here
    group = [one for one in group if one.beside == (jobs > 1)] or group
    if not group:
        return Estimate(macs, seconds, FACTOR_OF_NONE, 0, False)
    middle = median(one.over_pace for one in group)
    off = sorted(max(one.over_pace / middle, middle / one.over_pace) for one in group)
    least = LEAST_FACTOR if alike and len(group) >= ENOUGH else FACTOR_OF_OTHERS
    factor = max(least, off[math.ceil(0.8 * len(off)) - 1])  # four of five lie within it
    return Estimate(macs, seconds * middle, factor, len(group), all(one.beside for one in group))


def _timed(record: Record) -> _Timed | None:
    """What a finished cell took over what its device's pace says; None where it or its task is no longer known."""
    if record["setup"] not in registry.setups() or record["task"] not in registry.tasks():
        return None
    if not (record["total_s"] and record["dense_macs"] and record["epochs"] and record["dense_train_macs"]):
        return None
    samples = record["dense_train_macs"] / (3 * record["dense_macs"] * record["epochs"])
    own = _own_macs(record)
    evaluated = record["dense_macs"] * own / record["dense_train_macs"]
    kept = record["train_samples"]
    told = _by_pace(record["setup"], record["task"], kept, samples, record["epochs"], own, evaluated)
    return _Timed(record, record["total_s"] / told)


def _by_pace(
    setup: str, task: str, kept: int | None, samples: float, epochs: int, train_macs: float, macs: float
) -> float:
    """Seconds of a cell by its device's pace: MACs of training and of evaluating a network of ``macs`` after each
    epoch, steps of the batch size that the task has for ``kept`` samples, and the rest."""
    pace = PACES[registry.setup(setup).device]
    batch_size = registry.task(task)().recipe.for_samples(kept).batch_size
    steps = epochs * math.ceil(samples / batch_size)
    return pace.mac * (train_macs + epochs * CURVE_SAMPLES * macs) + pace.step * steps + pace.cell


def _own_macs(record: Record) -> int:
    """What a cell trained with itself, its source's training apart (as is that one's time in ``total_s``)."""
    return int((record["train_macs"] or 0) - (record["source_macs"] or 0))


def _machine(hardware: Mapping[str, Any]) -> tuple[Any, ...]:
    """What of a record's ``hardware`` tells one machine from another."""
    return tuple(hardware.get(part) for part in ("cpu", "vectors", "cores", "gpu"))


def plan(cells: Sequence[Cell], store: Store, jobs: int = 1) -> str:
    """A table of the cells, which of them are finished, and what the others will cost, ``jobs`` at a time."""
    records = {cell: store.record(cell.run_key()) for cell in cells}
    todo = [cell for cell in cells if not is_settled(records[cell])]
    costs = dict(zip(todo, estimate(todo, store.records(), jobs), strict=True))
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
    lines.append(
        f"{len(cells)} cells, {len(cells) - len(todo)} done, {len(todo)} to do: {macs:.2e} training MACs"
        f"{_time_of_all(list(costs.values()), jobs)}"
    )
    return "\n".join(lines)


def _time_of_all(costs: Sequence[Estimate], jobs: int) -> str:
    """How long all of it takes, and how sure that is; nothing for no cells."""
    if not costs:
        return ""
    jobs = min(jobs, len(costs))
    lows, highs = [cost.seconds / cost.factor for cost in costs], [cost.seconds * cost.factor for cost in costs]
    low = max(sum(lows) / jobs, max(lows))
    # Cells that ran alone do not say what running side by side gains: nothing at worst.
    high = sum(one if not cost.beside else one / jobs for one, cost in zip(highs, costs, strict=True))
    blind = sum(not cost.learnt_from for cost in costs)
    learnt = [cost.learnt_from for cost in costs if cost.learnt_from]
    source = f"learnt from {min(learnt)} finished cells or more of this machine" if learnt else ""
    if learnt and min(learnt) == max(learnt):
        source = f"learnt from {learnt[0]} finished cell{'s' * (learnt[0] > 1)} of this machine"
    guess = "a guess, as no cell of this machine and set-up is finished" if blind else ""
    if blind and learnt:
        guess = f"{blind} of them a guess"
    together = f", {jobs} at once" if jobs > 1 else ""
    return (
        f", {duration(low)} to {duration(max(high, max(highs)))}{together} ({'; '.join(filter(None, (source, guess)))})"
    )


@cache
def _train_samples(task: str, train_samples: int | None) -> int:
    if train_samples is not None:
        return train_samples
    return len(registry.task(task)().load(torch.device("cpu")).train)
