"""The numbers and functions that :func:`nasbench_grow.grow` is called with: checked, in one line, before all else."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import Any

import torch.nn.functional as F

from nasbench_grow.base.errors import UserError


def check_arguments(
    *,
    epochs: Any,
    seed: Any,
    budget_ms: Any,
    loss: Callable[..., Any],
    step: Any,
    learning_rate_at: Any,
) -> None:
    """Raise UserError unless the arguments are of their kinds and go together."""
    _check_whole("epochs", epochs, "the number of passes over the loader")
    if isinstance(seed, bool) or not isinstance(seed, int) or not -(2**63) <= seed < 2**64:
        raise UserError(f"seed {seed!r} is no whole number of 64 bits; give one, e.g. 0")
    if budget_ms is not None and not (_is_number(budget_ms) and budget_ms > 0):
        raise UserError(f"budget_ms {budget_ms!r} is no time; give the milliseconds of a training step, e.g. 60")
    for name, function, like in (
        ("loss", loss, "loss(output, target)"),
        ("step", step, "step(network, batch)"),
        ("learning_rate_at", learning_rate_at, "learning_rate_at(progress)"),
    ):
        if not callable(function) and not (function is None and name != "loss"):
            raise UserError(f"{name} is a {type(function).__name__}; give a function, called as {like}")
    if step is not None and loss is not F.cross_entropy:
        raise UserError("step makes the loss itself, and loss has no effect beside it; leave one out")


def _check_whole(name: str, value: Any, what: str) -> None:
    if not _is_number(value):
        raise UserError(f"{name} {value!r} is no number; give {what}")
    if value < 1:
        raise UserError(f"{name} {value} is below 1; give {what}")
    if value != int(value):
        raise UserError(f"{name} {value} is no whole number; give {what}")


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
