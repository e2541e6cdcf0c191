"""What users hand over where a space and structures are asked for: checked, in one line."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nasbench_grow.base.errors import UserError
from nasbench_grow.base.given import check_model
from nasbench_grow.structure.space import Space


def check_structures(space: Any, dense: Any, present: Any) -> None:
    """Raise UserError unless ``present`` chooses structures of ``space``, and that is the space of ``dense``."""
    check_space(space, dense)
    check_present(space, present)


def check_present(space: Any, present: Any) -> None:
    """Raise UserError unless ``present`` chooses structures of ``space``."""
    check_is_space(space)
    if not isinstance(present, Tensor) or present.dtype != torch.bool or present.shape != (len(space),):
        found = f"{present.dtype} {tuple(present.shape)}" if isinstance(present, Tensor) else type(present).__name__
        raise UserError(f"present is a {found}; give a bool tensor of shape ({len(space)},), e.g. space.full()")


def check_values(space: Any, values: Any, name: str) -> None:
    """Raise UserError unless ``values``, which the user knows as ``name``, has a number for every structure."""
    check_is_space(space)
    if not isinstance(values, Tensor) or values.shape != (len(space),):
        found = f"tensor of shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise UserError(f"{name} is a {found}; give a tensor of shape ({len(space)},), a number for every structure")


def check_space(space: Any, dense: Any) -> None:
    """Raise UserError unless ``space`` is the space of ``dense``."""
    check_is_space(space)
    check_model(dense)
    tensors = dense.state_dict()
    for name, shape in space.shapes.items():
        if name not in tensors or tuple(tensors[name].shape) != shape:
            found = tuple(tensors[name].shape) if name in tensors else "nothing"
            raise UserError(
                f"this space is of another model: {name} has shape {shape} there, and {found} in this "
                f"{type(dense).__name__}; give the model that was discovered, dense"
            )


def check_is_space(space: Any) -> None:
    """Raise UserError unless ``space`` is one."""
    if not isinstance(space, Space):
        raise UserError(f"the space is a {type(space).__name__}; give what discover(model, example) returned")
