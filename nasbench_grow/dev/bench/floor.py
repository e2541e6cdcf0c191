"""How near is a training step to what the device can do at best, what holds it back, and what does the input take?"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import ProfilerActivity, profile

from nasbench_grow.contract.task import Batch
from nasbench_grow.data.images import Augmentation, ImageTrainSplit, Normalisation
from nasbench_grow.dev.bench.networks import CHANNELS, DENSE, Variant, backbone, batch, structures, sub_network
from nasbench_grow.dev.bench.record import Record, origin, spread, table, verdict
from nasbench_grow.dev.bench.settings import Settings
from nasbench_grow.dev.bench.steps import Step, interleave, training_step
from nasbench_grow.dev.floor import copy_bandwidth, matrix_rate
from nasbench_grow.dev.profile_steps import quieten, slowest_operators
from nasbench_grow.harness.measure import saved_bytes
from nasbench_grow.harness.setups import Setup
from nasbench_grow.structure.step_time import synchronise

SUMMARY = "throughput against the rates of matrix products and copies, and the input pipeline's share of a step"
DATA_LIMIT = 0.02
"""The input pipeline may take this share of a step."""
_IMAGES = 8192
"""In the data set that batches are drawn from."""
_PROFILED = 3
"""Steps that operators are ranked over."""
_NAMED = 3
"""Operators that the table names."""


def measure(settings: Settings) -> dict[str, Any]:
    """The device's rates; of each network MACs, bytes, slowest operators, seconds of a step and of drawing a batch."""
    setup = settings.setup
    inputs, targets = batch(settings, setup)
    drawing = _drawing(settings, setup)
    networks = []
    for name in settings.backbones:
        model, space = backbone(name, settings)
        for variant in (DENSE, Variant("uniform", 0.5, setup.granularity)):
            present = structures(space, variant)
            network = sub_network(space, model, present, setup)
            step = training_step(network, inputs, targets)
            steps = {"step": step, "data": drawing}
            networks.append(
                {
                    "backbone": name,
                    "network": variant.kind,
                    "macs": 3 * space.macs(present) * len(targets),
                    "bytes": _bytes(network, (inputs, targets)),
                    "seconds": interleave(steps, settings.seconds / 3, settings.min_rounds, f"{variant.kind} {name}"),
                    "operators": _operators(step, inputs.device),
                }
            )
    return {
        "matrix_rate": matrix_rate(inputs.device, setup.dtype),
        "copy_bandwidth": copy_bandwidth(inputs.device),
        "networks": networks,
    }


def tables(record: Record) -> str:
    """Every network's step against both rates, what takes longest in it, and the input pipeline, as Markdown."""
    rows = []
    for network in record["networks"]:
        step, data = (spread(network["seconds"][name]).median for name in ("step", "data"))
        operators = network["operators"]
        total = sum(operators.values()) or 1.0  # nothing at all where the profiler has no access to the device's times
        slowest = [f"{name.removeprefix('aten::')} {own / total:.0%}" for name, own in operators.items()][:_NAMED]
        rows.append(
            [
                network["backbone"],
                network["network"],
                f"{1000 * step:.1f}",
                f"{record['settings']['batch_size'] / step:,.0f}",
                f"{network['macs'] / record['matrix_rate'] / step:.0%}",
                f"{network['bytes'] / record['copy_bandwidth'] / step:.0%}",
                ", ".join(slowest),
                f"{data / step:.2%}",
                f"{DATA_LIMIT:.0%}",
                verdict(data / step, DATA_LIMIT),
            ]
        )
    header = ["backbone", "network", "step, ms", "images/s", "products", "memory", "operators that take longest"]
    notes = (
        f"The floor: a large matrix product at {record['matrix_rate'] / 1e9:,.0f} GMAC/s, a large copy at "
        f"{record['copy_bandwidth'] / 1e9:,.1f} GB/s (read and written). *Products*: the time of the step's MACs at "
        "the one rate, as a share of the step; *memory*: the time of writing and reading once whatever the backward "
        "pass keeps, and the weights, gradients and momentum, at the other. What neither explains is lost in operators "
        "that reach neither rate. *Input*: drawing, augmenting and normalising a batch, as a share of the step that it "
        "is for."
    )
    return "\n\n".join([table([*header, "input", "target", "result"], rows), notes, origin(record)])


def _drawing(settings: Settings, setup: Setup) -> Step:
    """Draws the next batch of a data set like CIFAR-10 that lies on the device, epoch after epoch."""
    generator = torch.Generator().manual_seed(0)
    shape = (_IMAGES, CHANNELS, settings.pixels, settings.pixels)
    images = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    labels = torch.zeros(_IMAGES, dtype=torch.uint8)
    normalisation = Normalisation((0.5,) * CHANNELS, (0.25,) * CHANNELS)
    split = ImageTrainSplit(
        images.to(setup.device), labels.to(setup.device), normalisation, Augmentation(padding=4, flip=True)
    )
    endless = (each for epoch in range(2**31) for each in split.epoch(epoch, settings.batch_size, seed=0))

    def draw() -> None:
        inputs, _ = next(endless)
        setup.place(inputs)
        synchronise(inputs.device)

    return draw


def _bytes(network: nn.Module, data: Batch) -> int:
    """Bytes that a step must move: what backward needs is written and read; each weight, its gradient and its momentum
    are read and written by the optimizer."""
    inputs, targets = data
    _, kept = saved_bytes(network, lambda: F.cross_entropy(network(inputs), targets))
    weights = sum(parameter.nbytes for parameter in network.parameters())
    return 2 * (kept + 3 * weights)


def _operators(step: Step, device: torch.device) -> dict[str, float]:
    """Own seconds of the operators of a step, the longest first."""
    quieten()
    activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * (device.type == "cuda")]
    with profile(activities=activities) as profiler:
        for _ in range(_PROFILED):
            step()
    return {each.name: each.seconds for each in slowest_operators(profiler, _PROFILED, device)}
