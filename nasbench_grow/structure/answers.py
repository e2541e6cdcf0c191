"""What a network answers to one made-up input: a few numbers, by which it is known again when it is loaded.

Weights of the right shapes load into a network of another function without complaint (another activation, another
epsilon). These numbers tell. The input is drawn from a stream that NumPy keeps as it is, and run in double precision
where the network can, so that other machines and versions give the same.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nasbench_grow.base.calling import call
from nasbench_grow.base.errors import one_line
from nasbench_grow.base.trees import tensors

ENTRIES = 16
"""So many numbers are kept of each tensor of the output."""
_TOLERANCE = {"double": 1e-5, "float32": 1e-3, "float16": 5e-2, "bfloat16": 5e-2}
"""Largest difference, as a share of the largest number of the output."""

Answers = dict[str, Any]


def answers(network: nn.Module, example: Any) -> Answers | None:
    """What to keep beside the weights, as JSON holds it.

    Args:
        network: is not changed, nor are PyTorch's random states.
        example: an input: a tensor, or lists, tuples and dicts of tensors and plain values.

    Returns:
        None for a network that gives no finite number on the CPU, whatever the input.
    """
    words = min((module.num_embeddings for module in network.modules() if isinstance(module, nn.Embedding)), default=0)
    for kind in ("normal", "uniform", "zeros"):
        inputs = _recipe(example, kind, words)
        for precision in ("double", "own"):
            try:
                found = _ask(network, inputs, precision)
            except Exception:  # the network may be of any kind, and refuse in any way
                continue
            if found and all(math.isfinite(number) for part in found for number in part["values"]):
                return {"input": inputs, "precision": precision, "output": found}
    return None


def difference(network: nn.Module, kept: Answers) -> str | None:
    """How a network's answers differ from those that :func:`answers` gave, in a few words; None: they do not."""
    try:
        found = _ask(network, kept["input"], kept["precision"])
    except Exception as error:
        return f"it fails ({one_line(error)})"
    if [part["shape"] for part in found] != [part["shape"] for part in kept["output"]]:
        return f"outputs of shape {[part['shape'] for part in found]}"
    for now, then in zip(found, kept["output"], strict=True):
        tolerance = _TOLERANCE.get(kept["precision"], _TOLERANCE.get(then["type"], 0.0)) * then["largest"]
        for number, expected in zip(now["values"], then["values"], strict=True):
            if not abs(number - expected) <= tolerance:
                return f"{number:.6g} where the saved network gave {expected:.6g}"
    return None


def _ask(network: nn.Module, inputs: Any, precision: str) -> list[dict[str, Any]]:
    """Shape, type and a few numbers of each tensor that the network gives on the CPU."""
    asked = copy.deepcopy(network).cpu().eval()  # a copy: it may carry a state from call to call
    if precision == "double":
        asked = asked.double()
    random = np.random.RandomState(0)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        output = call(asked, _drawn(inputs, random, torch.double if precision == "double" else None))
    return [_summary(tensor.real if tensor.is_complex() else tensor) for tensor in tensors(output)]


def _summary(tensor: Tensor) -> dict[str, Any]:
    numbers = tensor.detach().double().flatten()
    places = np.unique(np.linspace(0, max(0, len(numbers) - 1), min(ENTRIES, len(numbers))).round().astype(int))
    return {
        "shape": list(tensor.shape),
        "type": str(tensor.dtype).removeprefix("torch."),
        "largest": float(numbers.abs().max()) if len(numbers) else 0.0,
        "values": numbers[torch.from_numpy(places)].tolist(),
    }


def _recipe(example: Any, kind: str, words: int) -> Any:
    """How to draw an input like the example, as JSON holds it."""
    if isinstance(example, Tensor):
        recipe: dict[str, Any] = {
            "shape": list(example.shape),
            "type": str(example.dtype).removeprefix("torch."),
            "draw": kind,
        }
        if not example.is_floating_point():
            most = int(example.max()) + 1 if example.numel() and not example.is_complex() else 1
            recipe["below"] = max(1, words if kind == "normal" and words else most)
        return {"tensor": recipe}
    if isinstance(example, dict):
        return {"dict": {key: _recipe(value, kind, words) for key, value in example.items()}}
    if isinstance(example, list | tuple):
        name = "tuple" if isinstance(example, tuple) else "list"
        return {name: [_recipe(value, kind, words) for value in example]}
    return {"value": example}


def _drawn(recipe: Any, random: np.random.RandomState, precision: torch.dtype | None) -> Any:
    """The input that a recipe describes."""
    ((kind, what),) = recipe.items()
    if kind == "tensor":
        dtype = getattr(torch, what["type"])
        if "below" in what:
            return torch.from_numpy(random.randint(what["below"], size=what["shape"], dtype=np.int64)).to(dtype)
        draws: dict[str, Any] = {"normal": random.standard_normal, "uniform": random.random_sample, "zeros": np.zeros}
        return torch.as_tensor(draws[what["draw"]](tuple(what["shape"]))).to(precision or dtype)
    if kind == "dict":
        return {key: _drawn(value, random, precision) for key, value in what.items()}
    if kind in ("tuple", "list"):
        made = [_drawn(value, random, precision) for value in what]
        return tuple(made) if kind == "tuple" else made
    return what
