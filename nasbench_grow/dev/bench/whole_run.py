"""Does a growing run save the time that its MACs promise? A whole run and a dense one, side by side."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import product
from typing import Any

from torch import Tensor

from nasbench_grow.backbones import create
from nasbench_grow.contract import Batch
from nasbench_grow.dev.bench.networks import CHANNELS, CLASSES, batch, job
from nasbench_grow.dev.bench.record import Record, bar, origin, table, verdict
from nasbench_grow.dev.bench.settings import Settings
from nasbench_grow.dev.bench.step_time import cpu_setups
from nasbench_grow.dev.bench.steps import seconds, training_step
from nasbench_grow.harness import registry
from nasbench_grow.harness.adaptive import AdaptiveBatch
from nasbench_grow.harness.runtime import SetupRuntime
from nasbench_grow.harness.setups import ADAPTIVE, SETUPS, Setup

SUMMARY = "time of a whole growing run against the dense run's, and against what its MACs promise"
BUDGET = 0.5
_GROWING = ("grow", "grow[granularity=16]")
"""With the set-up's granularity, and with the one that suits wide layers."""
_CHUNK = {"cpu": 4, "cuda": 64}
"""Steps of one run before the other one's turn."""
_TOO_SMALL = "cifar_resnet20"
"""The backbone that a GPU is not filled by, unless its batch grows."""


def limit(setup: Setup) -> float:
    """The ratio of the times may be this times that of the training MACs."""
    if setup.device == "cpu":
        return 1.15
    return 1.5 if setup.adaptive else 1.25


def measure(settings: Settings) -> dict[str, Any]:
    """Seconds of every run, chunk by chunk, and of what comes before the first step."""
    return {
        "runs": [_run(name, setup, settings) for name in settings.backbones for setup in _setups(name, settings.setup)]
    }


def tables(record: Record) -> str:
    """The ratios of times and training MACs, as Markdown."""
    rows = []
    for run, name in product(record["runs"], _GROWING):
        dense, grow, setup = run["dense"], run[name], SETUPS[run["setup"]]
        time_ratio = _seconds(grow) / _seconds(dense)
        macs_ratio = grow["train_macs"] / dense["train_macs"]
        rows.append(
            [
                run["backbone"],
                setup.name,
                name,
                run["steps"],
                f"{_seconds(dense):.0f}",
                f"{_seconds(grow):.0f}",
                f"{grow['preparation']:.1f}",
                f"{time_ratio:.3f}",
                f"{macs_ratio:.3f}",
                f"{time_ratio / macs_ratio:.2f}",
                f"{limit(setup):.2f}",
                verdict(time_ratio / macs_ratio, limit(setup)),
            ]
        )
    header = ["backbone", "set-up", "method", "steps", "dense, s", "growing, s", "preparation, s", "time"]
    notes = (
        f"Whole runs on a synthetic batch of {record['settings']['batch_size']} images, growing to budget {BUDGET}, "
        "the runs taking turns every few steps. *Time* and *training MACs* are those of the growing run relative to "
        "the dense one's, *quotient* is the one over the other. Its time is everything: preparation (discovery and "
        "what it measures) and restructurings. However long a run is, it is restructured as often, so in a longer "
        "one this weighs less."
    )
    return "\n\n".join([table([*header, "training MACs", "quotient", "target", "result"], rows), notes, origin(record)])


def _setups(backbone: str, setup: Setup) -> list[Setup]:
    """Those that a backbone is run on: on a CPU in both memory layouts, on a GPU so that it can fill it."""
    if setup.device == "cpu":
        return cpu_setups()
    return [SETUPS[setup.name + ADAPTIVE] if backbone == _TOO_SMALL else setup]


class _Started(SetupRuntime):
    """Notes when the first batch is asked for: what came before is preparation."""

    started = 0.0

    def batches(self, *arguments: Any) -> Iterator[Batch]:
        """The set-up's batches."""
        self.started = self.started or time.perf_counter()
        return super().batches(*arguments)


def _run(name: str, setup: Setup, settings: Settings) -> dict[str, Any]:
    """The runs of one backbone on one set-up."""
    data = batch(settings, setup)
    steps = max(settings.min_run_steps, round(settings.run_seconds / _dense_seconds(name, setup, *data)))
    size = min(steps, _CHUNK[setup.device])
    chunks = steps // size
    found: dict[str, Any] = {"backbone": name, "setup": setup.name, "steps": chunks * size}
    runtimes = {method: _runtime(name, setup, data) for method in ("dense", *_GROWING)}
    jobs = {
        method: job(name, setup, data, budget=BUDGET, epochs=chunks, steps=size, runtime=runtime)
        for method, runtime in runtimes.items()
    }
    runs = {method: registry.method(method).run(each) for method, each in jobs.items()}
    with bar(f"whole runs of {name}, {setup.name}", chunks) as progress:
        for _ in range(chunks):
            for method, run in runs.items():
                start = time.perf_counter()
                next(run)
                end = time.perf_counter()
                if method not in found:
                    started = runtimes[method].started
                    found[method] = {"preparation": started - start, "seconds": []}
                    start = started
                found[method]["seconds"].append(end - start)
            progress.update()
    for method, each in jobs.items():
        found[method]["train_macs"] = each.meter.total
    return found


def _runtime(name: str, setup: Setup, data: Batch) -> _Started:
    """Gives the batch, or where the set-up says so as many copies of it as the network has room for."""
    inputs, targets = data
    adaptive = None
    if setup.adaptive:
        adaptive = AdaptiveBatch(setup.place(create(name, CLASSES, CHANNELS)), inputs[:1], len(targets))
    return _Started(setup, len(targets), adaptive)


def _dense_seconds(name: str, setup: Setup, inputs: Tensor, targets: Tensor) -> float:
    """About how long a step of the dense network takes."""
    step = training_step(setup.place(create(name, CLASSES, CHANNELS)), inputs, targets)
    return min(seconds(step) for _ in range(3))


def _seconds(run: dict[str, Any]) -> float:
    return float(run["preparation"] + sum(run["seconds"]))
