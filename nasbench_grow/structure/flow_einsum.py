"""Products written as equations, followed as a whole: one operation would merge axes that can leave apart.

``torch.einsum`` flattens several letters into one dimension before it multiplies; of a flattened pair only one can be
followed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

from nasbench_grow.base import einsum

Flow = Any
"""A :class:`nasbench_grow.structure.flow.Flow`, which imports this file."""


class Equations(TorchFunctionMode):
    """Follows ``torch.einsum`` for a flow; everything else is left to it."""

    def __init__(self, flow: Flow) -> None:
        super().__init__()
        self.flow = flow

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not torch.functional.einsum or not isinstance(args[0], str):
            return func(*args, **(kwargs or {}))
        operands = list(args[1]) if isinstance(args[1], (list, tuple)) else list(args[1:])
        with _disable_current_modes():
            output = func(args[0], *operands)
        _label(self.flow, args[0], operands, output)
        return output


def _label(flow: Flow, equation: str, operands: list[Tensor], output: Tensor) -> None:
    """Joins the dimensions of each letter; those of a weight that the result keeps are made, the others taken in."""
    terms, result = einsum.terms(equation, [operand.ndim for operand in operands])
    for operand in operands:
        flow.use_chosen(operand)
    holders = {
        letter: [
            (operand, dim)
            for operand, term in zip(operands, terms, strict=True)
            for dim, each in enumerate(term)
            if each == letter
        ]
        for letter in sorted(set("".join(terms)))
    }
    computed = next((operand for operand in operands if flow.weight(operand) is None), None)
    vectors = {}
    for letter, found in holders.items():
        long = [(operand, flow.of(operand)[dim]) for operand, dim in found if operand.shape[dim] > 1]
        for operand, vector in long if computed is not None else ():
            if letter not in result:
                flow.contract(vector, None, (operand, computed))
            elif len(found) == 1:
                flow.made(vector, operand, computed)
        vectors[letter] = flow.joined(vector for _, vector in long)
    flow.give(output, [vectors[letter] for letter in result], operands)
    sizes = {letter: max(operand.shape[dim] for operand, dim in found) for letter, found in holders.items()}
    for axes in einsum.products(terms, result):
        macs = 1
        for letter in axes:
            macs *= sizes[letter]
        flow.multiplied(macs, [vectors[letter] for letter in axes])
