"""The generators that a run draws from: seeded, kept and put back."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def seed_all(seed: int) -> None:
    """Seeds the global generators of Python, NumPy and PyTorch."""
    random.seed(seed)
    np.random.seed(seed)
    if torch.cuda.is_available():
        torch.manual_seed(seed)
    else:  # the other notes the whole stack of calls for devices that may come: slower than the pass that is seeded
        torch.default_generator.manual_seed(seed)


def states(device: torch.device) -> dict[str, Any]:
    """The states of the generators that a run on ``device`` uses, in types that ``torch.load(weights_only=True)``
    reads."""
    numpy_state: Any = np.random.get_state(legacy=False)
    numpy_state["state"]["key"] = numpy_state["state"]["key"].tolist()
    found: dict[str, Any] = {"python": random.getstate(), "numpy": numpy_state, "torch": torch.get_rng_state()}
    if device.type == "cuda":
        found["cuda"] = torch.cuda.get_rng_state(device)
    return found


def put_back(found: dict[str, Any], device: torch.device) -> None:
    """Goes on from states that :func:`states` gave."""
    random.setstate(found["python"])
    numpy_state = dict(found["numpy"])
    numpy_state["state"] = {**numpy_state["state"], "key": np.array(numpy_state["state"]["key"], dtype=np.uint32)}
    np.random.set_state(numpy_state)
    torch.set_rng_state(found["torch"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(found["cuda"], device)
