"""Equations of ``torch.einsum``, read: a letter for each dimension of each operand."""

from __future__ import annotations

from collections.abc import Sequence

_BROADCAST_AXES = "0123456789"  # names for the axes that an ellipsis stands for, aligned at the right


def terms(equation: str, dimensions: Sequence[int]) -> tuple[list[str], str]:
    """The letters of each operand and those of the result.

    Args:
        equation: as in ``torch.einsum``, with or without an arrow or ellipses.
        dimensions: how many each operand has.
    """
    left, arrow, result = equation.replace(" ", "").partition("->")
    if not arrow:
        result = "..." + "".join(sorted(axis for axis in set(left) if left.count(axis) == 1 and axis.isalpha()))
    found, hidden = [], [0]
    for term, count in zip(left.split(","), dimensions, strict=True):
        if "..." in term:
            hidden.append(count - len(term.replace("...", "")))
        found.append(term.replace("...", _BROADCAST_AXES[len(_BROADCAST_AXES) - hidden[-1] :] if "..." in term else ""))
    return found, result.replace("...", _BROADCAST_AXES[len(_BROADCAST_AXES) - max(hidden) :])


def products(operands: Sequence[str], result: str) -> list[set[str]]:
    """The letters that each product of two operands runs over: they are contracted from left to right, each axis summed
    as soon as nothing to the right needs it."""
    found, kept = list[set[str]](), set(operands[0]) & set("".join(operands[1:]) + result)
    for number, term in enumerate(operands[1:], start=2):
        later = set("".join(operands[number:]) + result)
        joined = kept | (set(term) & (kept | later))
        found.append(joined)
        kept = joined & later
    return found
