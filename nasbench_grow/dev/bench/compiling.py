"""Does torch.compile pay, where the shapes change with every restructuring?"""

from __future__ import annotations

from itertools import product
from typing import Any

import torch

from nasbench_grow.dev.bench.networks import DENSE, Variant, backbone, batch, job, structures, sub_network
from nasbench_grow.dev.bench.record import Record, origin, ratios, spread, table
from nasbench_grow.dev.bench.settings import EPOCH_STEPS, Settings
from nasbench_grow.dev.bench.steps import interleave, seconds, training_step
from nasbench_grow.growing import scaling
from nasbench_grow.growing.scaling import ScalingSettings
from nasbench_grow.harness.cell import DEFAULT_EPOCHS

SUMMARY = "what torch.compile costs for each new shape, and what it gains a step"
BUDGET = 0.5
GRANULARITIES = (8, 16)
MODES = {"cpu": ("default",), "cuda": ("default", "reduce-overhead")}
"""Of torch.compile: the latter replays a step's kernels as a CUDA graph, which saves launching each."""


def measure(settings: Settings) -> dict[str, Any]:
    """Seconds of compiling and of steps, plain and compiled; how many shapes a growing run has and for how long."""
    networks, shapes = [], []
    for name in settings.backbones:
        for variant, mode in product((DENSE, Variant("uniform", BUDGET, 8)), MODES[settings.setup.device]):
            what = {"backbone": name, "network": variant.kind, "mode": mode}
            networks.append({**what, **_compiled(name, variant, mode, settings)})
        shapes += [{"backbone": name, "granularity": each, **_shapes(name, each, settings)} for each in GRANULARITIES]
    return {"networks": networks, "shapes": shapes}


def tables(record: Record) -> str:
    """Cost and gain of compiling, then the shapes of a growing run, as Markdown."""
    rows = []
    for network in record["networks"]:
        what = [network[each] for each in ("backbone", "network", "mode")]
        if "error" in network:
            rows.append([*what, network["error"], "", "", "", ""])
            continue
        plain, compiled = (spread(network[which]).median for which in ("plain", "compiled"))
        after = f"{network['compiling'] / (plain - compiled):.0f}" if plain > compiled else "never"
        relative = ratios(network["compiled"], network["plain"]).text()
        milliseconds = [f"{1000 * each:.1f}" for each in (plain, compiled)]
        cells = [f"{network['compiling']:.0f}", *milliseconds, relative, after]
        rows.append([*what, *cells])
    cost = ["compiling, s", "step, ms", "compiled, ms", "of plain", "pays after, steps"]
    shapes = [
        [each["backbone"], each["granularity"], each["shapes"], each["until"], each["last"]]
        for each in record["shapes"]
    ]
    shape_header = ["backbone", "granularity", "shapes", "steps until the last", "steps with the last"]
    notes = (
        "*Mode*: of torch.compile. *Compiling*: the first step of a shape, with an empty cache. *Shapes*: different "
        f"structures that a growing run at budget {BUDGET} passes through in {DEFAULT_EPOCHS} epochs of {EPOCH_STEPS} "
        "steps; each would be compiled anew."
    )
    networks = table(["backbone", "network", "mode", *cost], rows)
    return "\n\n".join([networks, table(shape_header, shapes), notes, origin(record)])


def _compiled(name: str, variant: Variant, mode: str, settings: Settings) -> dict[str, Any]:
    """Seconds to compile a network's training step, and of the step in every round; or why it cannot be compiled."""
    setup = settings.setup
    inputs, targets = batch(settings, setup)
    model, space = backbone(name, settings)
    present = structures(space, variant)
    network, other = (sub_network(space, model, present, setup) for _ in range(2))
    torch.compiler.reset()
    with torch._inductor.utils.fresh_cache():
        steps = {
            "plain": training_step(network, inputs, targets),
            "compiled": training_step(other, inputs, targets, forward=torch.compile(other, dynamic=False, mode=mode)),
        }
        try:
            first = seconds(steps["compiled"])
            times = interleave(steps, settings.seconds / 2, settings.min_rounds, f"compiled {variant.kind} {name}")
        except Exception as error:  # no compiler, an operator that it does not know, or no graph of the second step
            return {"error": f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"}
    return {"compiling": first, **times}


def _shapes(name: str, granularity: int, settings: Settings) -> dict[str, int]:
    """How many structures a full recipe's run has, and until what step it changes."""
    setup = settings.setup
    data = batch(settings, setup)
    running = job(name, setup, data, budget=BUDGET, epochs=DEFAULT_EPOCHS, steps=EPOCH_STEPS, granularity=granularity)
    _, growing = scaling.begin(running, ScalingSettings())
    masks, total = growing.masks, running.total_steps
    seen, until = {tuple(masks.space.widths(masks.present).values())}, 0
    for step in range(growing.period, total, growing.period):
        before = masks.present
        if not torch.equal(masks.resample(step / total), before):
            seen.add(tuple(masks.space.widths(masks.present).values()))
            until = step
    return {"shapes": len(seen), "until": until, "last": total - until}
