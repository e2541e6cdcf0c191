"""What does it save to keep the memory that a step frees? Steps with the C library's habits and with the harness's."""

from __future__ import annotations

import json
import resource
from dataclasses import asdict
from typing import Any

import torch

from nasbench_grow.dev.bench.fresh import printed
from nasbench_grow.dev.bench.networks import DENSE, backbone, batch, structures, sub_network
from nasbench_grow.dev.bench.record import Record, bar, origin, ratios, spread, table
from nasbench_grow.dev.bench.settings import Settings
from nasbench_grow.dev.bench.steps import seconds, training_step
from nasbench_grow.harness import heap
from nasbench_grow.harness.measure import PeakMemory

CPU_ONLY = True
SUMMARY = "time, page faults and memory of a step where freed memory stays with the process"
_WITH_LARGE_ACTIVATIONS = "cifar_mobilenetv2"
_WAYS = ("returned", "kept")
_WARM_UP = 2
_STEPS = 5
_ROUNDS = 3

_CHILD = "import sys; from nasbench_grow.dev.bench.heap import child; child(*sys.argv[1:])"


def measure(settings: Settings) -> dict[str, Any]:
    """Seconds, page faults and peak memory of dense steps, each way in processes of its own that take turns."""
    names = dict.fromkeys((*settings.backbones, _WITH_LARGE_ACTIVATIONS))
    networks = []
    with bar("heap", len(names) * _ROUNDS * len(_WAYS)) as progress:
        for name in names:
            found: dict[str, list[dict[str, Any]]] = {way: [] for way in _WAYS}
            for _ in range(_ROUNDS):
                for way in _WAYS:
                    found[way].append(_run(name, way, settings))
                    progress.update()
            networks.append({"backbone": name, **found})
    return {"networks": networks}


def tables(record: Record) -> str:
    """Both ways side by side, as Markdown."""
    rows = []
    for network in record["networks"]:
        steps = {way: [run["seconds"] for run in network[way]] for way in _WAYS}
        means = {
            (way, what): sum(run[what] for run in network[way]) / len(network[way])
            for way in _WAYS
            for what in ("page_faults", "peak_bytes")
        }
        rows.append(
            [
                network["backbone"],
                *(f"{1000 * spread(steps[way]).median:.0f}" for way in _WAYS),
                ratios(steps["kept"], steps["returned"]).text(),
                *(f"{means[way, 'page_faults']:,.0f}" for way in _WAYS),
                *(f"{means[way, 'peak_bytes'] / 2**20:,.0f}" for way in _WAYS),
            ]
        )
    header = ["backbone", "step, ms", "kept, ms", "of it", "page faults a step", "kept", "peak, MiB", "kept, MiB"]
    notes = (
        f"Steps of dense networks in {_ROUNDS} pairs of fresh processes; medians, of the ratios with quartiles. "
        "*Kept*: freed memory stays with the process, as on all CPU set-ups; otherwise the C library decides."
    )
    return "\n\n".join([table(header, rows), notes, origin(record)])


def child(name: str, way: str, sizes: str) -> None:
    """Runs in a fresh process: prints the mean seconds and page faults of a step, and the process's peak memory."""
    settings = Settings(**json.loads(sizes))
    if way == "kept":
        heap.keep_freed()
    model, space = backbone(name, settings)
    network = sub_network(space, model, structures(space, DENSE), settings.setup)
    step = training_step(network, *batch(settings, settings.setup))
    peak = PeakMemory(torch.device("cpu"))
    for _ in range(_WARM_UP):
        step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    times = [seconds(step) for _ in range(_STEPS)]
    faults = (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / len(times)
    print(json.dumps({"seconds": sum(times) / len(times), "page_faults": faults, "peak_bytes": peak.bytes()}))


def _run(name: str, way: str, settings: Settings) -> dict[str, Any]:
    return dict(json.loads(printed(_CHILD, name, way, json.dumps(asdict(settings)))))
