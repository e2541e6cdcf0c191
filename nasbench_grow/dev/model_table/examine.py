"""Examines one timm model: discovery, three random sub-networks held against the definition, three steps of training.

The comparison shares nothing with the one inside discovery but :func:`~nasbench_grow.structure.exactness.masked`: other
weights, other images, running instead of batch statistics, filters of all groups and layers absent at once, other
shares.

``python -m nasbench_grow.dev.model_table.examine MODEL`` prints what it finds as lines of JSON, one a stage, so that
what was found before a crash or a time limit is not lost.
"""

from __future__ import annotations

import copy
import json
import resource
import sys
import time
import warnings
from collections.abc import Iterator
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasbench_grow.base.errors import UserError
from nasbench_grow.cost.macs import count_macs
from nasbench_grow.dev.model_table.entries import CLASSES
from nasbench_grow.dev.model_table.kinds import kind
from nasbench_grow.structure.discovery import discover
from nasbench_grow.structure.exactness import masked
from nasbench_grow.structure.space import Space
from nasbench_grow.structure.subnetwork import extract

SIZES = (64, 96, 128)
"""Pixels that are tried before the model's own input size."""
SHARES = (0.2, 0.5, 0.8)
"""About how much of everything each random sub-network has."""
STEPS, BATCH, RATE = 3, 4, 0.01

Found = dict[str, Any]


def stages(name: str) -> Iterator[Found]:
    """What is found about a timm model, stage by stage: the model, its space, each sub-network.

    Raises:
        UserError: the model runs at none of the sizes, or cannot be discovered.
    """
    torch.manual_seed(0)
    model, example = fitted(name)
    yield {
        "size": example.shape[-1],
        "kind": kind(model, example),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    start = time.perf_counter()
    space = discover(model, example)
    dense = space.macs(space.full())
    yield {
        "discovery_s": round(time.perf_counter() - start, 2),
        "macs": dense,
        "removable": 1 - space.macs(space.seed()) / dense,
        "groups": len(space.groups),
        "filters": space.filters,
        "layers": len(space.layers),
        "fixed": space.fixed,
    }
    yield {"networks": [_network(space, model, example, index) for index in range(len(SHARES))]}


def fitted(name: str) -> tuple[nn.Module, Tensor]:
    """The model in evaluation mode, and a random image of the smallest size that it accepts, shape (1, 3, S, S).

    Raises:
        UserError: it accepts none.
    """
    own = max((timm.get_pretrained_cfg(name) or timm.models.PretrainedCfg()).input_size)
    for size in (*SIZES, own):
        builds: tuple[Found, Found] = ({}, {"img_size": size})  # some take any image, some what they are built for
        for options in builds:
            try:
                model = timm.create_model(name, num_classes=CLASSES, **options).eval()
                example = torch.randn(1, 3, size, size)
                with torch.no_grad():
                    if model(example).shape == (1, CLASSES):
                        return model, example
            except Exception as error:
                reason = (str(error) or type(error).__name__).splitlines()[0]
            else:
                reason = "its output is not one row of logits"
    raise UserError(f"{name} gives no logits for images of {', '.join(map(str, SIZES))} or {own} pixels: {reason}")


def _network(space: Space, model: nn.Module, example: Tensor, index: int) -> Found:
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
    space: Space, model: nn.Module, example: Tensor, present: Tensor, generator: torch.Generator
) -> float | None:
    """Largest difference between the sub-network's output and the definition, relative to the largest output.

    In double precision, on a batch of random images; None where it is no number.
    """
    model = copy.deepcopy(model).double()
    images = torch.randn(BATCH, *example.shape[1:], generator=generator, dtype=torch.double)
    _stir(model, images, generator)
    with torch.no_grad():
        small, wanted = extract(space, model, present)(images), masked(space, model, present, images)
    error = float((small - wanted).abs().max() / wanted.abs().max())
    return error if error < float("inf") else None


def _stir(model: nn.Module, images: Tensor, generator: torch.Generator) -> None:
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
        model(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval().momentum = momentum


def _trained(small: nn.Module, model: nn.Module, example: Tensor) -> Found:
    """The losses of a few steps, and the parameters that got no gradient though they do in the dense model."""
    losses = _losses(small, example, STEPS)
    silent = _without_gradient(small)
    if silent:
        dense = copy.deepcopy(model)
        _losses(dense, example, 1)
        silent -= _without_gradient(dense)
    return {"losses": losses, "without_gradient": sorted(silent)}


def _losses(network: nn.Module, example: Tensor, steps: int) -> list[float]:
    """Trains by SGD on random images; the loss of each step."""
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=RATE)
    images, targets = torch.randn(BATCH, *example.shape[1:]), torch.randint(CLASSES, (BATCH,))
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(network(images), targets)
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    return losses


def _without_gradient(network: nn.Module) -> set[str]:
    return {name for name, parameter in network.named_parameters() if parameter.grad is None}


def main(name: str, memory: int) -> int:
    """Prints every stage as a line of JSON, the last one with the reason if a stage fails; returns the exit code.

    Args:
        name: a model that timm knows.
        memory: bytes that this process may use, so that a model too large for the machine ends alone.
    """
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    warnings.simplefilter("ignore")
    try:
        for found in stages(name):
            print(json.dumps(found), flush=True)
    except Exception as error:
        first = (str(error) or type(error).__name__).splitlines()[0]
        print(json.dumps({"reason": first if isinstance(error, UserError) else f"{type(error).__name__}: {first}"}))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
