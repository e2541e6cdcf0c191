"""Operations that make other numbers of all entries along some dimensions, or lay windows out: rules for
:class:`nasbench_grow.structure.flow.Flow`. Other dimensions pass."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

Flow = Any
"""A :class:`nasbench_grow.structure.flow.Flow`, which imports this file."""


def _fourier(flow: Flow, args: Any, kwargs: Any, output: Tensor) -> None:
    source, dims = args[0], {dim % args[0].ndim for dim in args[1]}
    labels = flow.of(source)
    for dim in dims:
        flow.stay(labels[dim], "it is transformed along its channels")
    flow.give(output, [None if dim in dims else vector for dim, vector in enumerate(labels)])


def _unfold(flow: Flow, args: Any, kwargs: Any, output: Tensor) -> None:
    """Channels of an image become each as many as a window has positions."""
    labels = flow.of(args[0])
    vector, window = labels[-3], math.prod(args[1])
    made = None if vector is None else np.repeat(vector, window)
    flow.give(output, [*labels[:-3], made, None])


def _fold(flow: Flow, args: Any, kwargs: Any, output: Tensor) -> None:
    """The other way round: what stands for the positions of a window is one channel."""
    labels = flow.of(args[0])
    vector, window = labels[-2], math.prod(args[2])
    if vector is not None:
        flow.join(vector, np.repeat(vector[::window], window))
        vector = vector[::window]
    flow.give(output, [*labels[:-2], vector, None, None])


def _parts_apart(flow: Flow, args: Any, kwargs: Any, output: Tensor) -> None:
    flow.give(output, [*flow.of(args[0]), None])


def _parts_together(flow: Flow, args: Any, kwargs: Any, output: Tensor) -> None:
    flow.give(output, flow.of(args[0])[:-1])


RULES: dict[str, Callable[[Flow, Any, Any, Any], None]] = {
    "_fft_r2c": _fourier,
    "_fft_c2r": _fourier,
    "_fft_c2c": _fourier,
    "im2col": _unfold,
    "col2im": _fold,
    "view_as_real": _parts_apart,
    "view_as_complex": _parts_together,
}
