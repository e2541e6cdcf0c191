"""Sizes that a module's code writes down as numbers, as in ``x.view(-1, 16 * 5 * 5)``.

No attribute holds them, so that none can be set where the channels that they count have become fewer. A module that was
cut reads them anew while its ``forward`` runs: for the number in the code, at its place in the shape, what is left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

ATTRIBUTE = "written_sizes"
"""Where a module keeps what it reads: ``{"1:400": 225}``, in place of 400 as the length of dimension 1."""
SMALL = 4
"""Numbers in code up to this count queries, keys and values, halves or sides, and no channels."""
_SHAPED = (Tensor.view, Tensor.reshape, torch.reshape, Tensor.expand)
_DIVIDED = (Tensor.unflatten, torch.unflatten)


def place(dim: int, length: int) -> str:
    """The name of a size in a module's code: which dimension it is of, and how long that is in the dense network."""
    return f"{dim}:{length}"


def numbers_in(module: nn.Module) -> set[int]:
    """The numbers that stand in the code of a module's ``forward``, products of them as one number."""
    code = getattr(type(module).forward, "__code__", None)
    held = () if code is None else code.co_consts
    found = [each for constant in held for each in (constant if type(constant) is tuple else (constant,))]
    return {each for each in found if type(each) is int and each > SMALL}


def read_anew(module: nn.Module, sizes: Mapping[str, int]) -> None:
    """Lets the module's own ``forward`` take other sizes than are written in it, by their :func:`place`."""
    setattr(module, ATTRIBUTE, {**getattr(module, ATTRIBUTE, {}), **sizes})
    if not isinstance(vars(module).get("forward"), _Reading):
        module.forward = _Reading(module, vars(module).get("forward"))


class _Reading:
    """A module's ``forward`` with other sizes; a copy of the module gets a copy that is its own."""

    def __init__(self, module: nn.Module, own: Callable[..., Any] | None) -> None:
        self.module, self.own = module, own

    @property
    def __code__(self) -> CodeType:
        """Of the module's own: torch.export reads the names of the inputs there."""
        return type(self.module).forward.__code__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with _Sizes(getattr(self.module, ATTRIBUTE)):
            if self.own is not None:
                return self.own(*args, **kwargs)
            return type(self.module).forward(self.module, *args, **kwargs)


class _Sizes(TorchFunctionMode):
    """Changes the shapes that tensors are told to take. As many samples as there are stay that many."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        super().__init__()
        self.sizes = sizes

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _SHAPED and not kwargs and len(args) > 1:
            several = isinstance(args[1], (list, tuple))
            args = (args[0], self._read(args[0], args[1] if several else args[1:], 0))
        elif func in _DIVIDED and not kwargs and len(args) == 3 and isinstance(args[2], (list, tuple)):
            args = (args[0], args[1], self._read(args[0], args[2], args[1] % args[0].ndim))
        return func(*args, **kwargs)

    def _read(self, tensor: Tensor, shape: Any, first: int) -> Any:
        if isinstance(shape[0], torch.dtype):
            return shape[0]
        return tuple(self._size(tensor, dim, size) for dim, size in enumerate(shape, start=first))

    def _size(self, tensor: Tensor, dim: int, size: Any) -> Any:
        if not isinstance(size, (int, Tensor)):
            return size
        length = int(size)  # tracing hands numbers out as tensors
        return size if dim == 0 and length == len(tensor) else self.sizes.get(place(dim, length), size)
