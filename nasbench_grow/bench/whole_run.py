"""Does a growing run save the time that its MACs promise? A whole run and a dense one, side by side."""

from __future__ import annotations

import time
from typing import Any

import torch.nn.functional as F

from nasbench_grow import registry
from nasbench_grow.backbones import create
from nasbench_grow.bench.networks import CHANNELS, CLASSES, batch
from nasbench_grow.bench.record import Record, bar, origin, table, verdict
from nasbench_grow.bench.settings import Settings
from nasbench_grow.contract import Job, Method, Recipe
from nasbench_grow.cost import TrainingMeter
from nasbench_grow.harness.cell import DEFAULT_SETUP
from nasbench_grow.harness.setups import SETUPS

SUMMARY = "time of a whole growing run against the dense run's, and against what its MACs promise"
BUDGET = 0.5
LIMIT = 1.15
"""The ratio of the times may be this times that of the training MACs."""
_METHODS = ("dense", "grow")
_CHUNK = 4
"""Steps of one run before the other one's turn."""


def measure(settings: Settings) -> dict[str, Any]:
    """Seconds of both runs, chunk by chunk, and of what comes before the first step."""
    return {"runs": [_run(name, settings) for name in settings.backbones]}


def tables(record: Record) -> str:
    """The ratios of times and training MACs, as Markdown."""
    rows = []
    for run in record["runs"]:
        dense, grow = run["dense"], run["grow"]
        time_ratio = _seconds(grow) / _seconds(dense)
        macs_ratio = grow["train_macs"] / dense["train_macs"]
        rows.append(
            [
                run["backbone"],
                f"{_seconds(dense):.0f}",
                f"{_seconds(grow):.0f}",
                f"{grow['preparation']:.1f}",
                f"{time_ratio:.3f}",
                f"{macs_ratio:.3f}",
                f"{time_ratio / macs_ratio:.2f}",
                f"{LIMIT:.2f}",
                verdict(time_ratio / macs_ratio, LIMIT),
            ]
        )
    header = ["backbone", "dense, s", "grow, s", "of it preparation, s", "time", "training MACs", "quotient", "target"]
    notes = (
        f"Whole runs of {record['settings']['run_steps']} steps on a synthetic batch of "
        f"{record['settings']['batch_size']} images, `grow` at budget {BUDGET}, the two taking turns every {_CHUNK} "
        "steps. *Time* and *training MACs* are those of `grow` relative to the dense run's, *quotient* is the one over "
        "the other. The time of `grow` is everything: preparation (discovery and what it measures), restructurings, "
        "gates. However long a run is, it is restructured as often, so in a longer one this weighs less."
    )
    return "\n\n".join([table([*header, "result"], rows), notes, origin(record)])


def _run(name: str, settings: Settings) -> dict[str, Any]:
    """Both runs of one backbone."""
    setup = SETUPS[DEFAULT_SETUP]
    inputs, targets = batch(settings, setup)
    chunks = settings.run_steps // _CHUNK
    found: dict[str, Any] = {"backbone": name}
    methods: dict[str, tuple[Method, Job]] = {}
    for method in _METHODS:
        job = Job(
            budget=BUDGET,
            seed=0,
            epochs=chunks,
            steps_per_epoch=_CHUNK,
            granularity=setup.granularity,
            example=inputs[:1],
            recipe=Recipe(learning_rate=0.01),
            loss=F.cross_entropy,
            build=lambda: setup.place(create(name, CLASSES, CHANNELS)),
            meter=TrainingMeter(),
        )
        start = time.perf_counter()
        methods[method] = registry.method(method)(job), job
        found[method] = {"preparation": time.perf_counter() - start, "seconds": []}
    with bar(f"whole runs of {name}", chunks) as progress:
        for _ in range(chunks):
            for method, (run, job) in methods.items():
                start = time.perf_counter()
                run.train_epoch(job.clock.each([(inputs, targets)] * _CHUNK))
                found[method]["seconds"].append(time.perf_counter() - start)
            progress.update()
    for method, (_, job) in methods.items():
        found[method]["train_macs"] = job.meter.total
    return found


def _seconds(run: dict[str, Any]) -> float:
    return float(run["preparation"] + sum(run["seconds"]))
