"""Operations that choose entries by their numbers, or write to chosen places: rules for
:class:`nasbench_grow.structure.flow.Flow`.

The dimension that is chosen from stays whole, or the numbers would mean other entries. Along all others, entries pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_flatten

Flow = Any
"""A :class:`nasbench_grow.structure.flow.Flow`, which imports this file."""
_CHOSEN = "it is chosen from by number"


def of_some(index: Any) -> Any:
    """An index, of one entry where it chooses none: what entries there would be shows by that."""
    if isinstance(index, (list, tuple)):
        return [of_some(each) for each in index]
    return index.new_zeros(1) if isinstance(index, Tensor) and index.shape == (0,) else index


def _add_rows(flow: Flow, args: Any, kwargs: Any, output: Tensor) -> None:
    """``index_add``, ``index_copy``: whole slices of one tensor go to chosen places of another."""
    into, dim, index, source = args[:4]
    _write(flow, into, dim, index, source, output)


def _scatter(flow: Flow, args: Any, kwargs: Any, output: Tensor) -> None:
    """``scatter`` and its like: each entry goes to a place of its own along one dimension."""
    into, dim, index = args[:3]
    source = args[3] if len(args) > 3 else next(iter(kwargs.values()))
    _write(flow, into, dim, index, source if isinstance(source, Tensor) else index, output)


def _write(flow: Flow, into: Tensor, dim: int, index: Tensor, source: Tensor, output: Tensor) -> None:
    dim %= max(into.ndim, 1)
    labels: list[Any] = []
    for axis, length in enumerate(into.shape):
        both = [flow.of(into)[axis], *([flow.of(source)[axis]] if source.ndim == into.ndim else [])]
        if index.ndim == into.ndim > 1:
            both.append(flow.of(index)[axis])
        if axis == dim or (source.ndim == into.ndim and source.shape[axis] != length):
            for vector in both:
                flow.stay(vector, _CHOSEN)
            labels.append(None)
        else:
            labels.append(flow.joined(both))
    flow.give(output, labels)


def _gather(flow: Flow, args: Any, kwargs: Any, output: Tensor) -> None:
    source, dim, index = args[:3]
    dim %= max(source.ndim, 1)
    labels: list[Any] = []
    for axis, length in enumerate(source.shape):
        vector = flow.of(source)[axis]
        if axis == dim:
            flow.stay(vector, _CHOSEN)
            labels.append(flow.of(index)[axis])
        elif index.shape[axis] == length:
            labels.append(flow.joined([vector, flow.of(index)[axis]]))
        else:
            flow.stay(vector, _CHOSEN)
            labels.append(None)
    flow.give(output, labels)


def _put(flow: Flow, args: Any, kwargs: Any, output: Tensor) -> None:
    """``index_put``: the dimensions that no index stands for pass; they are the last ones of the values."""
    into, indices, values = args[:3]
    labels = flow.of(into)
    for dim, index in enumerate(indices):
        if index is not None:
            flow.fix(index, _CHOSEN)
            flow.stay(labels[dim], _CHOSEN)
    behind = into.ndim - len(indices)
    if any(index is None for index in indices):
        flow.fix(into, _CHOSEN)
        flow.fix(values, _CHOSEN)
        return
    passing = []
    for place in range(-behind, 0):
        meets = values.ndim >= -place and values.shape[place] > 1
        if meets and labels[place] is None:
            flow.stay(flow.of(values)[place], "it is written into a tensor of fixed size")
        passing.append(flow.joined([labels[place], *([flow.of(values)[place]] if meets else [])]))
    flow.give(output, [*[None] * len(indices), *passing])


def _ordered(flow: Flow, args: Any, kwargs: Any, output: Any) -> None:
    """``sort``, ``topk``: which entry comes first depends on all."""
    source = args[0]
    numbers = [each for each in (*args[1:], *kwargs.values()) if type(each) is int]
    named = kwargs.get("dim", numbers[-1] if numbers else -1)
    dim = named % source.ndim if source.ndim and -source.ndim <= named < source.ndim else source.ndim - 1
    flow.stay(flow.of(source)[dim], "its channels are put in order")
    for result in tree_flatten(output)[0]:
        flow.give(result, [None if axis == dim else vector for axis, vector in enumerate(flow.of(source))])


def _distances(flow: Flow, args: Any, kwargs: Any, output: Tensor) -> None:
    """``cdist``: the features of both sides are summed over."""
    left, right = args[:2]
    one, other = flow.of(left), flow.of(right)
    flow.contract(one[-1], other[-1], (left, right))
    batch = [flow.joined(pair) for pair in zip(one[:-2], other[:-2], strict=False)]
    flow.give(output, [*[None] * (output.ndim - len(batch) - 2), *batch, one[-2], other[-2]])
    flow.multiplied(output.numel() * left.shape[-1], [one[-2], other[-2], one[-1]])


RULES: dict[str, Callable[[Flow, Any, Any, Any], None]] = {
    "index_add": _add_rows,
    "index_copy": _add_rows,
    "scatter": _scatter,
    "scatter_add": _scatter,
    "scatter_reduce": _scatter,
    "gather": _gather,
    "index_put": _put,
    "_index_put_impl": _put,
    "sort": _ordered,
    "topk": _ordered,
    "kthvalue": _ordered,
    "_cdist_forward": _distances,
    "_euclidean_dist": _distances,
}
