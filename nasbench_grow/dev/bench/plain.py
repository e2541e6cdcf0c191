"""Is a grown network as fast to train as the same small network written by hand? Steps of both, side by side."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from nasbench_grow.backbones import create
from nasbench_grow.contract import Batch
from nasbench_grow.dev.bench.networks import CHANNELS, CLASSES, Variant, backbone, batch, job, structures
from nasbench_grow.dev.bench.record import Record, origin, ratios, spread, table, verdict
from nasbench_grow.dev.bench.settings import Settings
from nasbench_grow.dev.bench.steps import Step, interleave, training_step
from nasbench_grow.growing import scaling
from nasbench_grow.growing.scaling import ScalingSettings
from nasbench_grow.harness.setups import Setup
from nasbench_grow.structure.architecture import describe, rebuild
from nasbench_grow.structure.step_time import synchronise
from nasbench_grow.structure.subnetwork import extract

SUMMARY = "time of a step of an extracted network against the same widths built directly"
LIMIT = 1.03
"""A step between two restructurings may take this times that of the network built by hand."""
LOOPS = {
    "extracted": "the sub-network, cut from the full one and trained by an ordinary loop",
    "growing": "the sub-network in the loop of the growing run",
}


def measure(settings: Settings) -> dict[str, Any]:
    """Seconds of a step of every network in every loop, in every round."""
    networks = []
    for name in settings.backbones:
        for variant in (Variant(kind, share, 8) for kind in ("uniform", "random") for share in (0.5, 0.25)):
            steps, macs = _steps(name, variant, settings)
            label = f"{variant.kind} {variant.share} of {name}"
            times = interleave(steps, settings.seconds / 2, settings.min_rounds, label)
            networks.append(
                {"backbone": name, "kind": variant.kind, "share": variant.share, "macs": macs, "seconds": times}
            )
    return {"networks": networks}


def tables(record: Record) -> str:
    """Every network's step times relative to the network built by hand, as Markdown."""
    rows = []
    for network in record["networks"]:
        times = network["seconds"]
        found = {loop: ratios(times[loop], times["by hand"]) for loop in LOOPS}
        rows.append(
            [
                network["backbone"],
                f"{network['kind']}, {network['share']} of the MACs",
                f"{1000 * spread(times['by hand']).median:.1f}",
                *(found[loop].text() for loop in LOOPS),
                verdict(max(found["extracted"].median, found["growing"].median), LIMIT),
            ]
        )
    legend = "\n".join(f"- *{loop}*: {text}" for loop, text in LOOPS.items())
    notes = (
        "Times relative to the same widths built directly with fresh weights and trained by an ordinary loop; medians "
        "of the ratios within a round, quartiles in brackets. Target: *extracted* and *growing* at most "
        f"{LIMIT}.\n\n{legend}"
    )
    header = ["backbone", "network", "by hand, ms", *LOOPS, "result"]
    return "\n\n".join([table(header, rows), notes, origin(record)])


def _steps(name: str, variant: Variant, settings: Settings) -> tuple[dict[str, Step], int]:
    """A step of the network built by hand and of the extracted one in each loop; the network's MACs."""
    setup = settings.setup
    inputs, targets = batch(settings, setup)
    model, space = backbone(name, settings)
    present = structures(space, variant)
    network = extract(space, setup.place(model), present).train()
    by_hand = rebuild(describe(network, model), create(name, CLASSES, CHANNELS)).train()
    steps = {
        "by hand": training_step(setup.place(by_hand), inputs, targets),
        "extracted": training_step(network, inputs, targets),
        "growing": _growing_step(name, setup, present, (inputs, targets)),
    }
    return steps, space.macs(present)


def _growing_step(name: str, setup: Setup, present: Tensor, data: Batch) -> Step:
    """A step of a growing run that has arrived at the structures ``present``: no restructuring is due."""
    running = job(name, setup, data, budget=1.0, epochs=1, steps=10**9)
    model, growing = scaling.begin(running, ScalingSettings())
    model.resize(present)
    model.network.train()

    def step() -> None:
        growing.before_step(model, 0, running.total_steps)
        running._step(model, growing, *data, rate=1e-4)  # one of the loop's own, which it gives out by the epoch only
        synchronise(model.example.device)

    return step
