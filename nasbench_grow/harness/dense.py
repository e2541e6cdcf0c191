"""What the harness must know of a dense network before any cell is run."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache

import torch
from torch import nn

from nasbench_grow.base.devices import DEVICE_ERRORS
from nasbench_grow.base.errors import UserError, one_line
from nasbench_grow.contract import Task
from nasbench_grow.cost.macs import count_macs
from nasbench_grow.harness import registry


@cache
def macs(backbone: str, task: str) -> int:
    """Forward MACs of the dense network for one input of the task.

    Raises:
        UserError: the backbone cannot be built, or cannot serve the task.
    """
    chosen = registry.task(task)()
    network = registry.build_backbone(backbone, chosen)
    check_forward(network, chosen.example(), backbone, chosen)
    return count_macs(network, chosen.example())


@cache
def fingerprint(backbone: str, task: str) -> str:
    """A digest of the dense network's definition: its modules' classes and what they say of themselves, its tensors'
    shapes, its MACs; empty where it cannot be built or run, as its cells will fail."""
    try:
        cost = macs(backbone, task)
    except UserError:
        return ""
    network = registry.build_backbone(backbone, registry.task(task)())
    parts = [
        *(f"{name} {type(module).__name__}({module.extra_repr()})" for name, module in network.named_modules()),
        *(f"{name} {tuple(tensor.shape)}" for name, tensor in network.state_dict().items()),
        str(cost),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def check_forward(network: nn.Module, example: torch.Tensor, backbone: str, task: Task) -> None:
    """Raise UserError unless the backbone maps inputs of the task's shape to outputs of the task's shape."""
    try:
        with torch.inference_mode():
            output = network.eval()(example)
        wanted, found = task.output_shape(), tuple(getattr(output, "shape", ()))[1:]
        if found == wanted:
            return
        fault = f"gives outputs of shape {_by(found)} instead of {_by(wanted)} for inputs of shape"
        reason = ""
    except DEVICE_ERRORS:
        raise
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        fault, reason = "does not accept inputs of shape", f" ({one_line(error)})"
    raise UserError(
        f"backbone {backbone!r} cannot serve task {task.name!r}: it {fault} {_by(example.shape[1:])}{reason}; choose "
        f"one of {', '.join(registry.backbones_for(task))}"
    )


def _by(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
