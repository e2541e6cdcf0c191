"""Examines one model: discovery, four sub-networks held against the definition, three steps of training.

The comparison shares nothing with the one inside discovery but :func:`~nasbench_grow.structure.exactness.masked`: other
weights, other inputs, running instead of batch statistics, filters of all groups and layers absent at once, other
shares.
"""

from __future__ import annotations

import copy
import math
import resource
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from nasbench_grow.base.calling import call
from nasbench_grow.base.errors import UserError, one_line
from nasbench_grow.base.trees import map_tensors, tensors
from nasbench_grow.cost.macs import count_macs
from nasbench_grow.dev.model_table.entries import build
from nasbench_grow.dev.model_table.kinds import kind
from nasbench_grow.structure.discovery import discover
from nasbench_grow.structure.exactness import masked
from nasbench_grow.structure.space import Space
from nasbench_grow.structure.subnetwork import extract

SHARES = (0.0, 0.2, 0.5, 0.8)
"""About how much of everything each sub-network has: the first one is the smallest that there is."""
STEPS, BATCH, RATE = 3, 4, 0.01

Found = dict[str, Any]


def stages(name: str) -> Iterator[Found]:
    """What is found about a model of the table, stage by stage: the model, its space, the sub-networks.

    Raises:
        UserError: the model does not run, or cannot be discovered.
    """
    torch.manual_seed(0)
    model, example = build(name)
    yield {
        "input": [list(tensor.shape[1:]) for tensor in tensors(example)],
        "kind": kind(model, example),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    start = time.process_time()
    space = discover(model, example)
    dense = space.macs(space.full())
    yield {
        "discovery_s": round(time.process_time() - start, 2),
        "macs": dense,
        "left": space.macs(space.seed()) / dense,
        "groups": len(space.groups),
        "filters": space.filters,
        "layers": len(space.layers),
        "fixed": space.fixed,
    }
    yield {"networks": [_network(space, model, example, index) for index in range(len(SHARES))]}


def _network(space: Space, model: nn.Module, example: Any, index: int) -> Found:
    """One random sub-network: how far its output is off, its cost, and how it trains."""
    generator = torch.Generator().manual_seed(100 + index)
    present = structure(space, SHARES[index], generator)
    small = extract(space, model, present)
    return {
        "share": SHARES[index],
        "error": deviation(space, model, example, present, generator),
        "macs": space.macs(present),
        "counted_macs": count_macs(small, example),
        **_trained(small, model, example),
    }


def structure(space: Space, share: float, generator: torch.Generator) -> Tensor:
    """Random structures, shape (structures,), bool: about ``share`` of all, and at least one filter of every group."""
    present = torch.rand(len(space), generator=generator) < share
    for group in space.groups:
        present[group.start + int(torch.randint(group.size, (), generator=generator))] = True
    return present


def deviation(
    space: Space, model: nn.Module, example: Any, present: Tensor, generator: torch.Generator
) -> float | None:
    """Largest difference between the sub-network's outputs and the definition, relative to the largest output.

    In double precision, on a batch of random inputs; None where it is no number.
    """
    model = copy.deepcopy(model).double()
    inputs = _batch(example, torch.double, generator)
    _stir(model, inputs, generator)
    with torch.no_grad():
        small, wanted = call(extract(space, model, present), inputs), masked(space, model, present, inputs)
    pairs = list(zip(tensors(small), tensors(wanted), strict=True))
    difference = float(torch.stack([(one - other).abs().max() for one, other in pairs]).max())
    error = difference / max(float(other.abs().max()) for _, other in pairs) if difference else 0.0
    return error if math.isfinite(error) else None


def _batch(example: Any, precision: torch.dtype, generator: torch.Generator | None = None) -> Any:
    """Random inputs like the example, :data:`BATCH` at once."""

    def make(tensor: Tensor) -> Tensor:
        shape = (BATCH, *tensor.shape[1:])
        if tensor.is_floating_point():
            return torch.randn(shape, generator=generator, dtype=precision)
        return torch.randint(int(tensor.max()) + 1, shape, generator=generator)

    return map_tensors(make, example)


def _stir(model: nn.Module, inputs: Any, generator: torch.Generator) -> None:
    """Random values for all that starts constant (or a branch that starts at zero would hide what is wrong in it), and
    running statistics that fit (or signals would vanish or explode)."""
    for parameter in model.parameters():
        values = parameter.detach()
        if values.numel() and (values == values.flatten()[0]).all():
            parameter.data = 0.5 + torch.rand(values.shape, generator=generator, dtype=torch.double)
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train().momentum = 1.0
    with torch.no_grad():
        call(model, inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval().momentum = momentum


def _trained(small: nn.Module, model: nn.Module, example: Any) -> Found:
    """The losses of a few steps, and the parameters that got no gradient though they do in the dense model."""
    losses = _losses(small, example, STEPS)
    silent = _without_gradient(small)
    if silent:
        dense = copy.deepcopy(model)
        _losses(dense, example, 1)
        silent -= _without_gradient(dense)
    return {"losses": losses, "without_gradient": sorted(silent)}


def _losses(network: nn.Module, example: Any, steps: int) -> list[float]:
    """Trains by SGD on random inputs, towards random outputs; the loss of each step."""
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=RATE)
    inputs, targets = _batch(example, torch.float), None
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        outputs = [output for output in tensors(call(network, inputs)) if output.requires_grad]
        targets = targets or [torch.randn_like(output) for output in outputs]
        pairs = zip(outputs, targets, strict=True)
        loss = torch.stack([(output - target).square().mean() for output, target in pairs]).sum()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    return losses


def _without_gradient(network: nn.Module) -> set[str]:
    return {name for name, parameter in network.named_parameters() if parameter.grad is None}


def report(name: str, seconds: float, memory: int, threads: int, send: Callable[[Found], None]) -> None:
    """Sends every stage as soon as it is found, the last one with the reason if a stage fails.

    Args:
        name: a model of the table.
        seconds: of CPU time, after which the process ends.
        memory: bytes that this process may use, so that a model too large for the machine ends alone.
        threads: that it may use.
        send: is given what is found.
    """
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(seconds), resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")
    try:
        for found in stages(name):
            send(found)
    except Exception as error:
        send({"reason": str(error).splitlines()[0] if isinstance(error, UserError) else one_line(error)})
