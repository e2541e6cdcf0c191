"""What a restructuring of a growing run takes."""

from __future__ import annotations

import time
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from nasbench_grow.backbones import create
from nasbench_grow.contract.task import Recipe
from nasbench_grow.dev.bench.networks import CHANNELS, CLASSES, batch
from nasbench_grow.dev.bench.record import Record, bar, origin, spread, table, verdict
from nasbench_grow.dev.bench.settings import EPOCH_STEPS, Settings
from nasbench_grow.growing.grower import Grower
from nasbench_grow.growing.presets import PRESETS
from nasbench_grow.structure.step_time import synchronise

SUMMARY = "seconds of a restructuring as a share of an epoch"
BUDGET = 0.5
SHARE_LIMIT = 0.01
"""A restructuring may take this share of the epoch that it begins."""
_STEPS = 3
"""Training steps between two restructurings; the last ones are timed, the first warms up."""


class _TimedGrower(Grower):
    """A grower that keeps the seconds of each restructuring and of the steps after it."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.periods: list[dict[str, Any]] = []

    def _restructure(self) -> None:
        start = time.perf_counter()
        super()._restructure()
        synchronise(self.masks.device)
        seconds = round(time.perf_counter() - start, 6)
        self.periods.append({"seconds": seconds, "macs": self.macs, "step_seconds": []})

    def _learn(self, inputs: Tensor, target: Tensor) -> Tensor:
        start = time.perf_counter()
        loss = super()._learn(inputs, target)
        synchronise(self.masks.device)
        if self.periods:
            self.periods[-1]["step_seconds"].append(round(time.perf_counter() - start, 6))
        return loss


def measure(settings: Settings) -> dict[str, Any]:
    """Restructurings from the seed on, for each backbone."""
    return {"growth": [_growth(name, settings) for name in settings.backbones]}


def tables(record: Record) -> str:
    """The restructurings' times, as Markdown."""
    rows = []
    for growth in record["growth"]:
        times = [period["seconds"] for period in growth["periods"]]
        shares = [
            period["seconds"] / (EPOCH_STEPS * spread(period["step_seconds"][1:]).median)
            for period in growth["periods"]
        ]
        costs = [period["macs"] / growth["dense_macs"] for period in growth["periods"]]
        rows.append(
            [
                growth["backbone"],
                len(times),
                f"{min(costs):.2f}\N{EN DASH}{max(costs):.2f}",
                f"{1000 * spread(times).median:.0f} ms",
                f"{1000 * max(times):.0f} ms",
                f"{spread(shares).median:.2%}",
                f"{max(shares):.2%}",
                f"{SHARE_LIMIT:.0%}",
                verdict(max(shares), SHARE_LIMIT),
            ]
        )
    header = ["backbone", "restructurings", "MACs", "median", "longest", "of an epoch, median", "largest", "target"]
    notes = (
        "A restructuring writes the sub-network back, chooses the structures of the next period, extracts their "
        "network, makes its optimizer and carries the optimizer state. Its seconds are compared with an epoch of "
        f"{EPOCH_STEPS} steps of the network that it makes. MACs are shares of the dense network's."
    )
    return "\n\n".join([table([*header, "result"], rows), notes, origin(record)])


def _growth(name: str, settings: Settings) -> dict[str, Any]:
    """Grows from the seed until the budget is reached, restructuring every few steps."""
    setup = settings.setup
    inputs, targets = batch(settings, setup)
    periods = PRESETS["default"].periods
    assert periods is not None
    grower = _TimedGrower(
        setup.place(create(name, CLASSES, CHANNELS)),
        inputs[:1],
        budget=BUDGET,
        epochs=periods,
        steps_per_epoch=_STEPS,
        loss=F.cross_entropy,
        optimizer=Recipe(learning_rate=0.01).optimizer,
        granularity=setup.granularity,
    )
    with bar(f"growing {name}", settings.restructurings + 1) as progress:
        for _ in range(settings.restructurings + 1):
            grower.train([(inputs, targets)] * _STEPS)
            progress.update()
    return {"backbone": name, "dense_macs": grower.dense_macs, "periods": grower.periods}
