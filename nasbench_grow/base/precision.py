"""Models and tensors in another precision, complex ones in the one of the same size."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

COMPLEX = {torch.half: torch.complex32, torch.float: torch.cfloat, torch.double: torch.cdouble}
"""The type of complex numbers of a precision."""

Module = TypeVar("Module", bound=nn.Module)


def cast(tensor: Tensor, precision: torch.dtype) -> Tensor:
    """The tensor in a precision; whole numbers and truth values stay what they are."""
    if tensor.is_complex():
        return tensor.to(COMPLEX.get(precision, torch.cfloat))
    return tensor.to(precision) if tensor.is_floating_point() else tensor


def cast_model(model: Module, precision: torch.dtype) -> Module:
    """The model itself, its parameters and buffers in a precision: ``model.to`` would drop imaginary parts."""
    return model._apply(lambda tensor: cast(tensor, precision))
