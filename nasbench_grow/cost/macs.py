"""What a network costs: multiply-accumulates (MACs) of a forward pass.

One definition holds everywhere: convolutions, matrix products, attention and recurrent layers cost their
multiply-accumulates; normalisation, pooling, activations, biases and element-wise operations cost nothing. The MACs of
a convolution or linear layer are therefore the size of its weight times the number of positions it is applied to.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from nasbench_grow.base import einsum, randomness
from nasbench_grow.base.calling import batch_length, flattened, shapes
from nasbench_grow.base.devices import DEVICE_ERRORS
from nasbench_grow.base.errors import UserError
from nasbench_grow.base.given import check_example, check_model, unwrapped
from nasbench_grow.base.trees import device_of

if TYPE_CHECKING:
    from fvcore.nn.jit_analysis import JitModelAnalysis

Example = Any
"""What a model takes, as :func:`nasbench_grow.base.calling.call` gives it."""

_MULTIPLIES = re.compile(
    r"(?!aten::)|aten::(?!_*upsample).*("
    r"conv(?!ert)|linear(?!_comb)|mm(_|$)|matmul|addmv|dot|inner|kron|attention|lstm|gru|rnn|fft|linalg_(?!.*norm)|cdist)"
)
"""Operations not to be passed over in silence: every one outside ATen, and those whose name tells of products."""


def count_macs(model: nn.Module, example: Example) -> int:
    """Multiply-accumulates of one forward pass in evaluation mode, for one sample.

    The pass is traced on ``example`` and its count divided by the batch size, the length of the first axis of the
    (first) tensor. Every rule is a closed form: weight size times positions, summed over the calls, for convolutions,
    linear and recurrent layers; L * S * (E + E_v) per head for attention, fused or not, masked or not (L queries of
    E features, S keys, values of E_v features). The model is left as it was.

    Args:
        model: any module that ``torch.jit.trace`` can follow.
        example: one input with a batch axis in front: a tensor, a tuple of what ``forward`` takes, or a dict of it by
            keyword, in any nesting.

    Raises:
        UserError: where the model cannot be traced on ``example``.

    Warns:
        UserWarning: names the operations that have no rule and so counted as zero (see :func:`uncounted_ops`).
    """
    check_model(model := unwrapped(model))
    check_example(example)
    trace = _trace(model, example)
    _warn_uncounted(trace)
    return _per_sample(trace.total(), example)


def macs_by_module(model: nn.Module, example: Example) -> dict[str, int]:
    """The same count, split over the modules that do the multiplying: ``{"conv1": 442368, ...}``.

    A module's own operations count for it and not for its parents, so that the values sum to :func:`count_macs`
    (but for rounding); modules without any are left out. Products outside a leaf module, such as those of attention,
    appear under the module whose ``forward`` writes them (``""`` for the model itself), and a module used at several
    places appears once, under its first name.
    """
    trace = _trace(model, example)
    _warn_uncounted(trace)
    own = dict(trace.by_module())
    for name, total in trace.by_module().items():
        if name:
            own[name.rpartition(".")[0]] -= total
    return {name: _per_sample(macs, example) for name, macs in own.items() if macs}


class Product(NamedTuple):
    """Multiply-accumulates of a traced operation: one for each combination of entries of some axes."""

    module: str
    """The module whose ``forward`` calls the operation."""
    operation: str
    lengths: tuple[int, ...]
    """Of the axes, those of the whole batch."""


def products(model: nn.Module, example: Example) -> list[Product]:
    """What :func:`count_macs` sums, in the order of the trace: networks of one model and other widths differ in the
    lengths alone. Of an operation with several products, as attention, each is by itself."""
    found: list[Product] = []
    _trace(model, example, found)
    return found


def uncounted_ops(model: nn.Module, example: Example) -> dict[str, int]:
    """How often the forward pass calls each operation that seems to multiply, yet has no rule and counts as zero.

    Custom autograd functions and operators of compiled extensions appear here, as do Fourier transforms and matrix
    decompositions. Where the dict is empty, :func:`count_macs` is complete.
    """
    return _uncounted(_trace(model, example))


def _per_sample(macs: int, example: Example) -> int:
    return round(macs / batch_length(example))


def _uncounted(trace: JitModelAnalysis) -> dict[str, int]:
    return {op: calls for op, calls in sorted(trace.unsupported_ops().items()) if _MULTIPLIES.match(op)}


def _warn_uncounted(trace: JitModelAnalysis) -> None:
    if missing := _uncounted(trace):
        warnings.warn(f"no rule to count {', '.join(missing)}: taken as 0 MACs", stacklevel=3)


@contextmanager
def _evaluating(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Evaluation mode without gradients; the attributes of all modules (training flags, hooks, what a recurrent network
    hands from batch to batch) and the random generators are as before afterwards, even after an error."""
    modules, states = list(model.modules()), randomness.states(device)
    attributes = [dict(vars(module)) for module in modules]
    tables = [
        [(table, dict(table)) for table in vars(module).values() if isinstance(table, dict)] for module in modules
    ]
    values = [(buffer, buffer.clone()) for buffer in model.buffers()]
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # it would hide nn.MultiheadAttention's products in one opaque op
    for module in modules:
        module._compiled_call_impl = None  # what Module.compile made cannot be traced
    model.eval()
    randomness.seed_all(0)  # a model may choose its way by chance
    try:
        with torch.no_grad():
            yield
    finally:
        randomness.put_back(states, device)
        torch.backends.mha.set_fastpath_enabled(fastpath)
        for module, held, kept in zip(modules, attributes, tables, strict=True):
            vars(module).clear()
            vars(module).update(held)
            for table, entries in kept:
                table.clear()
                table.update(entries)
        for buffer, value in values:
            if not torch.equal(buffer, value):
                with torch.no_grad():
                    buffer.resize_(value.shape).copy_(value)  # an observer's statistics begin with no entry


def _trace(model: nn.Module, example: Example, found: list[Product] | None = None) -> JitModelAnalysis:
    """fvcore's tracer with the rules of this file instead of its own, already run; adds the products to ``found``."""
    handles = {operation: partial(_count, operation, rule, found) for operation, rule in _RULES.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript, which fvcore traces with, warns that it is deprecated
        from fvcore.nn.jit_analysis import JitModelAnalysis

        try:
            with _evaluating(model, device_of(example)), flattened(model, example) as given:
                trace = JitModelAnalysis(model, given).set_op_handle(**handles)
                trace.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
                trace.total()
        except DEVICE_ERRORS:
            raise
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(
                f"cannot count the MACs of {type(model).__name__} on an input of shape {shapes(example)}: {reason}; "
                "give an input that the model accepts and torch.jit.trace can follow"
            ) from error
    return trace


def _count(operation: str, rule: _Rule, found: list[Product] | None, inputs: list[Any], outputs: list[Any]) -> int:
    """The MACs of a traced operation; notes its products."""
    lengths = rule(inputs, outputs)
    if found is not None:
        module = outputs[0].node().scopeName().rpartition("/")[2]
        found += [Product(module, operation, tuple(each)) for each in lengths]
    return sum(map(math.prod, lengths))


# Rules: (inputs, outputs) of a traced operation -> for each of its products the lengths of the axes. The values are
# torch._C.Value, which has no public type.
_Rule = Callable[[list[Any], list[Any]], list[list[int]]]


def _shape(value: Any) -> list[int]:
    return list(value.type().sizes())


def _list(value: Any) -> list[Any]:
    return list(value.node().inputs())


def _product(left: int) -> _Rule:
    """A matrix product: the size of the output times the summed axis, the last of input ``left``."""

    def macs(inputs: list[Any], outputs: list[Any]) -> list[list[int]]:
        return [[*_shape(outputs[0]), _shape(inputs[left])[-1]]]

    return macs


def _tensordot(inputs: list[Any], outputs: list[Any]) -> list[list[int]]:
    left = _shape(inputs[0])
    return [[*_shape(outputs[0]), *(left[dim] for dim in inputs[2].toIValue() or map(_number, _list(inputs[2])))]]


def _number(value: Any) -> int:
    return int(value.toIValue())


def _bilinear(inputs: list[Any], outputs: list[Any]) -> list[list[int]]:
    """Weight size times positions."""
    return [[*_shape(inputs[2]), *_shape(outputs[0])[:-1]]]


def _convolution(inputs: list[Any], outputs: list[Any], transposed: bool = False) -> list[list[int]]:
    """Weight size times positions: those of the output, of the input where transposed."""
    weight = _shape(inputs[1])
    grid = _shape(inputs[0] if transposed else outputs[0])
    spatial = len(weight) - 2
    return [[*weight, *grid[len(grid) - spatial :], *grid[: len(grid) - spatial - 1]]]


def _general_convolution(inputs: list[Any], outputs: list[Any]) -> list[list[int]]:
    return _convolution(inputs, outputs, transposed=bool(inputs[6].toIValue()))


def _attention(inputs: list[Any], outputs: list[Any]) -> list[list[int]]:
    """QKᵀ and AV of softmax attention; a mask saves nothing."""
    query, key, value = (_shape(tensor) for tensor in inputs[:3])
    return [[*query[:-1], key[-2], features[-1]] for features in (query, value)]


def _recurrent(inputs: list[Any], outputs: list[Any]) -> list[list[int]]:
    """Every weight matrix once per time step and sample; a packed sequence holds only the real time steps.

    The weights are the last list among the inputs (the one before it, if any, is the initial state).
    """
    steps = _shape(inputs[0])[:-1]
    weights = [value for value in inputs if value.node().kind() == "prim::ListConstruct"][-1]
    return [[*shape, *steps] for shape in map(_shape, _list(weights)) if len(shape) == 2]


def _recurrent_cell(inputs: list[Any], outputs: list[Any]) -> list[list[int]]:
    return [[*_shape(weight), *_shape(inputs[0])[:-1]] for weight in inputs[2:4]]


def _einsum(inputs: list[Any], outputs: list[Any]) -> list[list[int]]:
    shapes = [_shape(operand) for operand in _list(inputs[1])]
    terms, result = einsum.terms(inputs[0].toIValue(), [len(shape) for shape in shapes])
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, shapes, strict=True):
        for axis, size in zip(term, shape, strict=True):
            sizes[axis] = max(size, sizes.get(axis, 1))
    return [[sizes[axis] for axis in sorted(axes)] for axes in einsum.products(terms, result)]


_RULES: dict[str, _Rule] = {
    "aten::_convolution": _general_convolution,
    "aten::_convolution_mode": _convolution,
    "aten::conv1d": _convolution,
    "aten::conv2d": _convolution,
    "aten::conv3d": _convolution,
    "aten::conv_transpose1d": lambda inputs, outputs: _convolution(inputs, outputs, transposed=True),
    "aten::conv_transpose2d": lambda inputs, outputs: _convolution(inputs, outputs, transposed=True),
    "aten::conv_transpose3d": lambda inputs, outputs: _convolution(inputs, outputs, transposed=True),
    "aten::linear": _product(0),
    "aten::matmul": _product(0),
    "aten::mm": _product(0),
    "aten::bmm": _product(0),
    "aten::mv": _product(0),
    "aten::addmv": _product(1),
    "aten::dot": _product(0),
    "aten::vdot": _product(0),
    "aten::cdist": _product(0),
    "aten::inner": _product(0),
    "aten::tensordot": _tensordot,
    "aten::bilinear": _bilinear,
    "aten::addmm": _product(1),
    "aten::addbmm": _product(1),
    "aten::baddbmm": _product(1),
    "aten::einsum": _einsum,
    "aten::scaled_dot_product_attention": _attention,
    "aten::lstm": _recurrent,
    "aten::gru": _recurrent,
    "aten::rnn_tanh": _recurrent,
    "aten::rnn_relu": _recurrent,
    "aten::lstm_cell": _recurrent_cell,
    "aten::gru_cell": _recurrent_cell,
    "aten::rnn_tanh_cell": _recurrent_cell,
    "aten::rnn_relu_cell": _recurrent_cell,
}
