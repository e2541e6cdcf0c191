"""What a restructuring of a growing run takes."""

from __future__ import annotations

import time
from typing import Any

from nasbench_grow.contract import ElasticModel
from nasbench_grow.dev.bench.networks import batch, job
from nasbench_grow.dev.bench.record import Record, bar, origin, spread, table, verdict
from nasbench_grow.dev.bench.settings import EPOCH_STEPS, Settings
from nasbench_grow.growing import scaling
from nasbench_grow.growing.growing import Growing, Masks
from nasbench_grow.growing.scaling import ScalingSettings
from nasbench_grow.structure.step_time import synchronise

SUMMARY = "seconds of a restructuring as a share of an epoch"
BUDGET = 0.5
SHARE_LIMIT = 0.01
"""A restructuring may take this share of the epoch that it begins."""
_STEPS = 3
"""Training steps between two restructurings; the last ones count, the first warms up."""


class _Timed(Growing):
    """Keeps the seconds of each restructuring, and of the steps after it."""

    def __init__(self, model: ElasticModel, masks: Masks, steps: int, periods: int) -> None:
        super().__init__(model, masks, steps, periods)
        self.periods: list[dict[str, Any]] = []
        self._began = 0.0

    def before_step(self, model: ElasticModel, step: int, steps: int) -> None:
        """Times what is due, and the step that has just ended."""
        start = self._end_step(model)
        before = self.restructured_at
        super().before_step(model, step, steps)
        synchronise(model.example.device)
        self._began = time.perf_counter()
        if self.restructured_at != before:
            seconds = round(self._began - start, 6)
            self.periods.append({"seconds": seconds, "macs": model.macs, "step_seconds": []})

    def after_epoch(self, model: ElasticModel) -> None:
        """Times the last step."""
        self._end_step(model)

    def _end_step(self, model: ElasticModel) -> float:
        synchronise(model.example.device)
        now = time.perf_counter()
        if self.periods:
            self.periods[-1]["step_seconds"].append(round(now - self._began, 6))
        return now


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
    """Grows from the seed over the whole run, restructuring every few steps."""
    periods = settings.restructurings + 1
    setup = settings.setup
    running = job(name, setup, batch(settings, setup), budget=BUDGET, epochs=1, steps=periods * _STEPS)
    model, growing = scaling.begin(running, ScalingSettings(growth=1.0, periods=periods))
    timed = _Timed(model, growing.masks, running.total_steps, periods)
    with bar(f"growing {name}", 1) as progress:
        for _ in running.fit(model, timed):
            progress.update()
    return {"backbone": name, "dense_macs": model.space.macs(model.space.full()), "periods": timed.periods}
