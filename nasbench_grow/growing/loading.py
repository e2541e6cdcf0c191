"""A user's loader: how many batches it gives, and what of a batch goes where."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sized
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from nasbench_grow.base.calling import Stepped, batch_length
from nasbench_grow.base.errors import UserError
from nasbench_grow.base.trees import map_leaves, to_device

Step = Callable[[nn.Module, Any], Tensor]


def arranged(batch: Any, step: Step | None, like: Tensor) -> tuple[Any, Any]:
    """Inputs and targets of a batch as training takes them, on the device of ``like``.

    With a ``step`` the whole batch is its business. NumPy's arrays become tensors, those of its default precision
    tensors of the precision of ``like``.

    Raises:
        UserError: without a ``step``, the batch is no pair.
    """
    moved = to_device(map_leaves(lambda leaf: _as_tensor(leaf, like.dtype), batch), like.device)
    if step is not None:
        return Stepped(step, moved), None
    if not isinstance(moved, (tuple, list)) or len(moved) != 2:
        raise UserError(
            f"the loader gives {_described(batch)}, and no (inputs, targets) pair; say what to do with it: "
            "step=lambda model, batch: ..., which returns the loss"
        )
    return moved[0], moved[1]


def checked(loss: Callable[[Any, Any], Tensor], step: Step | None) -> Callable[[Any, Any], Tensor]:
    """The loss of a batch, of which is made sure that it is one; with a ``step``, what that gave.

    Raises (when it is called):
        UserError: it is no scalar, or does not depend on the network.
    """
    word = "loss(output, target)" if step is None else "step(network, batch)"

    def scalar(output: Any, target: Any) -> Tensor:
        if step is None and loss is F.cross_entropy and not isinstance(output, Tensor):
            raise UserError(
                f"the model gives {_described(output)}, and no tensor; say what of it is to be compared: "
                "loss=lambda output, target: ..."
            )
        found = output if step is not None else loss(output, target)
        if not isinstance(found, Tensor) or found.numel() != 1:
            shape = f" of shape {tuple(found.shape)}" if isinstance(found, Tensor) else ""
            raise UserError(
                f"{word} gives a {type(found).__name__}{shape}; return a scalar tensor, e.g. the mean over the batch"
            )
        if torch.is_grad_enabled() and not found.requires_grad:
            raise UserError(f"{word} does not depend on the network's weights; return it without .item() or .detach()")
        return found.reshape(())

    return scalar


def _as_tensor(leaf: Any, precision: torch.dtype) -> Any:
    if not isinstance(leaf, (np.ndarray, np.generic)) or leaf.dtype.kind not in "biufc":
        return leaf
    tensor = torch.as_tensor(leaf)
    return tensor.to(precision) if tensor.dtype == torch.double and precision.is_floating_point else tensor


def _described(batch: Any) -> str:
    if isinstance(batch, (tuple, list)):
        return f"a {type(batch).__name__} of {len(batch)}"
    keys = f" with {', '.join(map(str, batch))}" if hasattr(batch, "keys") else ""
    return f"a {type(batch).__name__}{keys}"


def count_batches(loader: Iterable[Any]) -> int:
    """Batches in one pass over the loader."""
    can_be_looped_over = hasattr(loader, "__iter__") or hasattr(loader, "__getitem__")
    if not can_be_looped_over or isinstance(loader, (Tensor, np.ndarray, str, dict, type)):
        raise UserError(
            f"the loader is a {type(loader).__name__}; give a DataLoader or a list of (inputs, targets) pairs"
        )
    try:
        count = len(loader)  # type: ignore[arg-type]
    except TypeError as error:  # no length, or a DataLoader over a stream
        if iter(loader) is loader:
            raise UserError(
                f"a {type(loader).__name__} gives its batches only once; give a list or a loader"
            ) from error
        count = sum(1 for _ in loader)
    if count == 0:
        raise UserError("the loader gives no batch; give one with at least one (inputs, targets) pair")
    return count


def first_length(loader: Iterable[Any]) -> int:
    """Samples in the first batch."""
    return batch_length(next(iter(loader)))


def leaves_one(loader: Iterable[Any]) -> bool:
    """Whether one of the batches is known to hold a single sample."""
    if isinstance(loader, DataLoader):
        size, data = loader.batch_size, loader.dataset
        if size is None or loader.drop_last or not isinstance(data, Sized) or not isinstance(loader.sampler, Sized):
            return False
        return len(loader.sampler) % size == 1 or size == 1
    return isinstance(loader, list) and any(batch_length(batch) == 1 for batch in loader)
