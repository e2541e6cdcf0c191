"""Does training memory follow the sub-network? Bytes that a step needs, counted and as the system sees them."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasbench_grow.contract.task import Recipe
from nasbench_grow.dev.bench.fresh import printed
from nasbench_grow.dev.bench.networks import DENSE, Variant, backbone, batch, structures, sub_network
from nasbench_grow.dev.bench.record import Record, bar, origin, table, verdict
from nasbench_grow.dev.bench.settings import Settings
from nasbench_grow.harness.measure import PeakMemory, saved_bytes

CPU_ONLY = True
SUMMARY = "training memory of the dense network, of sub-networks and of the seed"
TOLERANCE = 0.05
"""Activations grow with the width, MACs with its square: memory may be this much above the root of the MACs' share."""

_CHILD = "import sys; from nasbench_grow.dev.bench.memory import child; child(sys.argv[1])"


def measure(settings: Settings) -> dict[str, Any]:
    """Bytes of one training step of each network, each in a process of its own."""
    setup = settings.setup
    networks = []
    with bar("memory", 4 * len(settings.backbones)) as progress:
        for name in settings.backbones:
            model, space = backbone(name, settings)
            uniform = {share: Variant("uniform", share, setup.granularity) for share in (0.5, 0.25)}
            chosen = {
                "dense": structures(space, DENSE),
                "half": structures(space, uniform[0.5]),
                "quarter": structures(space, uniform[0.25]),
                "seed": space.seed(),
            }
            for label, present in chosen.items():
                network = sub_network(space, model, present, setup)
                cost = {"macs": space.macs(present), "dense_macs": space.macs(space.full())}
                found = _in_own_process(network, *batch(settings, setup))
                networks.append({"backbone": name, "network": label, **cost, **found})
                progress.update()
    return {"networks": networks}


def step_bytes(network: nn.Module, inputs: Tensor, targets: Tensor) -> dict[str, int]:
    """Bytes that a training step holds at once: what backward needs, and weights with gradients and momentum.

    Tensors that share memory count once; the batch counts as an activation.
    """
    optimizer = Recipe().optimizer(network)
    loss, activations = saved_bytes(network, lambda: F.cross_entropy(network(inputs), targets))
    loss.backward()
    optimizer.step()
    state = [tensor for values in optimizer.state.values() for tensor in values.values() if isinstance(tensor, Tensor)]
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    held = [*network.parameters(), *network.buffers(), *gradients, *state]
    return {"activations": activations, "weights": sum(tensor.nbytes for tensor in held)}


def child(path: str) -> None:
    """Runs in a fresh process: prints the bytes of a step of what a file holds, and the process's peak."""
    network, inputs, targets = torch.load(path, weights_only=False)  # written by this run, never from elsewhere
    idle = PeakMemory(torch.device("cpu")).bytes()
    peak = PeakMemory(torch.device("cpu"))
    found = step_bytes(network, inputs, targets)
    print(json.dumps({**found, "idle_rss": idle, "peak_rss": peak.bytes()}))


def tables(record: Record) -> str:
    """Every network's memory, as Markdown."""
    dense = {each["backbone"]: each for each in record["networks"] if each["network"] == "dense"}
    rows = []
    for network in record["networks"]:
        base = dense[network["backbone"]]
        macs = network["macs"] / network["dense_macs"]
        share = _total(network) / _total(base)
        limit = min(1.0, macs**0.5 + TOLERANCE)
        rows.append(
            [
                network["backbone"],
                network["network"],
                f"{macs:.4f}",
                _mib(network["activations"]),
                _mib(network["weights"]),
                f"{share:.3f}",
                f"{limit:.3f}",
                verdict(share, limit),
                _mib(network["peak_rss"]),
                f"{_step_rss(network) / _step_rss(base):.3f}",
            ]
        )
    header = ["backbone", "network", "MACs", "activations, MiB", "weights, MiB", "of dense", "target", "result"]
    notes = (
        "*Activations*: tensors kept for the backward pass. *Weights*: parameters, buffers, gradients and momentum. "
        f"*Target*: the square root of the MACs' share plus {TOLERANCE}, because activations grow with the width and "
        "MACs with its square. *Process*: peak resident memory of a fresh process that runs one step; *its step*: what "
        "the step added to it, relative to the dense network's. MACs are shares of the dense network's."
    )
    return "\n\n".join([table([*header, "process, MiB", "its step, of dense"], rows), notes, origin(record)])


def _in_own_process(network: nn.Module, inputs: Tensor, targets: Tensor) -> dict[str, int]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.pt"
        torch.save((network, inputs, targets), path)
        found = json.loads(printed(_CHILD, str(path)))
    return {key: int(value) for key, value in found.items()}


def _total(network: dict[str, Any]) -> int:
    return int(network["activations"] + network["weights"])


def _step_rss(network: dict[str, Any]) -> int:
    return int(network["peak_rss"] - network["idle_rss"])


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f}"
