"""What single operations do to the entries of their tensors: rules for :class:`nasbench_grow.structure.flow.Flow`.

Most need none of their own. Those that move entries are run on the entries' numbers; those that meet entry by entry
are known by PyTorch's own tag. An operation without a rule fixes all that it takes.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from nasbench_grow.structure import flow_choosing, flow_transforms

Flow = Any
"""A :class:`nasbench_grow.structure.flow.Flow`, which imports this file."""
Vector = np.ndarray
Labels = list[Vector | None]

_MOVES = frozenset(
    [
        "view",
        "_unsafe_view",
        "reshape",
        "_reshape_alias",
        "permute",
        "transpose",
        "t",
        "squeeze",
        "unsqueeze",
        "expand",
        "slice",
        "select",
        "split",
        "split_with_sizes",
        "unsafe_split",
        "unsafe_split_with_sizes",
        "unbind",
        "flip",
        "roll",
        "repeat",
        "index",
        "index_select",
        "constant_pad_nd",
        "pixel_shuffle",
        "pixel_unshuffle",
        "unfold",
        "diagonal",
        "as_strided",
        "narrow_copy",
        "rot90",
        "alias",
        "detach",
        "lift_fresh",
        "view_copy",
        "swapaxes",
        "movedim",
    ]
)
_SHAPED = ("view", "_unsafe_view", "reshape", "_reshape_alias", "view_copy", "expand")
_ALIKE = frozenset(
    [
        "clone",
        "contiguous",
        "_to_copy",
        "to",
        "copy",
        "_softmax",
        "_log_softmax",
        "cumsum",
        "cumprod",
        "native_dropout",
        "zeros_like",
        "ones_like",
        "empty_like",
        "full_like",
        "rand_like",
        "randn_like",
        "tril",
        "triu",
        "masked_fill",
        "dropout",
        "bernoulli",
        "_conj",
        "log_softmax",
        "softmax",
        "_prelu_kernel",
        "nan_to_num",
        "hardswish",
        "rsub",
    ]
)
_REDUCES = frozenset(
    [
        "mean",
        "sum",
        "amax",
        "amin",
        "max",
        "min",
        "var",
        "std",
        "var_mean",
        "std_mean",
        "linalg_vector_norm",
        "norm",
        "argmax",
        "argmin",
        "logsumexp",
        "any",
        "all",
        "prod",
        "aminmax",
        "nansum",
        "median",
    ]
)
_SPATIAL = re.compile(
    r"_?(adaptive_)?(avg|max)_pool([123])d(_with_indices)?|_?upsample_.*([123])d(_aa)?|"
    r"(reflection|replication)_pad([123])d|grid_sampler_([23])d"
)
_WITHOUT = frozenset(["new_zeros", "new_ones", "new_empty", "new_full", "scalar_tensor", "_local_scalar_dense", "item"])
"""Operations whose result holds no entry of what they take."""


def apply(flow: Flow, func: Any, args: Any, kwargs: Any, output: Any, tensors: list[Tensor]) -> None:
    """Labels the result of an operation."""
    name = func._schema.name.partition("::")[2]
    name = name[:-1] if name.endswith("_") and not name.startswith("__") else name
    for tensor in tensors:
        flow.use_chosen(tensor)
    rule = _RULES.get(name)
    if rule is not None:
        rule(flow, args, kwargs, output)
    elif name in _MOVES:
        _move(flow, name, func, args, kwargs, output, tensors)
    elif _SPATIAL.fullmatch(name):
        _pool(flow, tensors[0], output, int(next(filter(None, re.findall(r"([123])d", name)))))
    elif name in _REDUCES and len(tensors) == 1:
        _reduce(flow, func, args, kwargs, output)
    elif name in _ALIKE or torch.Tag.pointwise in func.tags:
        _pointwise(flow, tensors, output)
        if name in ("add", "sub"):
            _added(flow, tensors)
    elif all(flow.weight(tensor) for tensor in tensors):  # computed from weights alone
        for result in tree_flatten(output)[0]:
            if isinstance(result, Tensor):
                flow.give(result, [None] * result.ndim, tensors)
    elif name not in _WITHOUT:
        for tensor in tensors:
            if any(flow.can_leave(vector) for vector in flow.of(tensor)):
                flow.fix(tensor, f"it goes through {name}, which discovery does not follow")


def _pointwise(flow: Flow, tensors: list[Tensor], output: Any) -> None:
    """Entries that meet leave together; a dimension of length 1 goes with any."""
    for result in tree_flatten(output)[0]:
        if not isinstance(result, Tensor):
            continue
        labels: Labels = []
        for dim in range(-result.ndim, 0):
            meeting = [tensor for tensor in tensors if tensor.ndim >= -dim and tensor.shape[dim] > 1]
            if all(tensor.shape[dim] == result.shape[dim] for tensor in meeting):
                labels.append(flow.joined(flow.of(tensor)[dim] for tensor in meeting))
            else:
                labels.append(None)
        flow.give(result, labels, tensors)


def _added(flow: Flow, tensors: list[Tensor]) -> None:
    """Notes parameters of one dimension that meet what is computed: biases."""
    if any(flow.weight(tensor) is None for tensor in tensors):
        for tensor in tensors:
            name = flow.weight(tensor)
            if name is not None and sum(length > 1 for length in tensor.shape) == 1:
                vectors = [vector for vector in flow.of(tensor) if vector is not None]
                flow.added |= {
                    flow.origin[int(each)]: None
                    for vector in vectors
                    for each in vector[:1]
                    if int(each) in flow.origin
                }


def _move(flow: Flow, name: str, func: Any, args: Any, kwargs: Any, output: Any, tensors: list[Tensor]) -> None:
    """Runs the operation on the numbers of each dimension."""
    source = tensors[0]
    for index in tensors[1:]:
        flow.fix(index, "it chooses entries of another tensor")
    results = [each for each in tree_flatten(output)[0] if isinstance(each, Tensor)]
    labels: list[Labels] = [[None] * result.ndim for result in results]
    for dim, vector in enumerate(flow.of(source)):
        if vector is None:
            continue
        shape = [-1 if axis == dim else 1 for axis in range(source.ndim)]
        numbers = torch.from_numpy(vector).view(shape).expand(source.shape)
        plain = [0 if isinstance(each, float) else each for each in args]  # what is padded with always stays
        if name in ("index", "index_select"):
            plain = [flow_choosing.of_some(each) for each in plain]
        with torch.utils._python_dispatch._disable_current_modes():
            if func._schema.name.endswith("view"):
                moved: Any = numbers.reshape(args[1])
            else:
                moved = func(numbers, *plain[1:], **kwargs)
            pieces = [each for each in tree_flatten(moved)[0] if isinstance(each, Tensor)]
        for place, piece in enumerate(pieces):
            found = flow.moved(piece, len(vector))
            if found is None:
                if source.shape[dim] > 1 and piece.numel():
                    flow.picked.append(piece.flatten()[:1].numpy())
                continue
            to, made = found
            before = labels[place][to]
            if before is not None:
                made, other = flow.prefer(before, made)
                flow.stay(other, "its channels share a dimension with others")
            labels[place][to] = made
    sizes = {each for each in tree_flatten((args[1:], kwargs))[0] if type(each) is int}
    for result, made_of_it in zip(results, labels, strict=True):
        flow.give(result, made_of_it, [source])
        for dim, vector in enumerate(made_of_it):
            if vector is None and result.shape[dim] in sizes:
                flow.stack[-1].others.add(result.shape[dim])
            if vector is not None:
                flow.stack[-1].written += [(dim, vector)] if name in _SHAPED else []
                new = not any(np.array_equal(vector, old) for old in flow.of(source) if old is not None)
                if result.shape[dim] in sizes:
                    flow.note(result.shape[dim], vector, new)
                if new:
                    flow.tie(vector)


def _pool(flow: Flow, source: Tensor, output: Any, spatial: int) -> None:
    """What is done to the last dimensions keeps the channels before them."""
    labels = flow.of(source)
    for vector in labels[-spatial:]:
        flow.stay(vector, "it is pooled or resized along its channels")
    for result in tree_flatten(output)[0]:
        flow.give(result, [*labels[:-spatial], *[None] * spatial])


def _reduce(flow: Flow, func: Any, args: Any, kwargs: Any, output: Any) -> None:
    """The dimensions that are summed over end. What is chosen from them, by its number, must stay once that is used."""
    name = func._schema.name.partition("::")[2]
    named = dict(zip((each.name for each in func._schema.arguments), args, strict=False)) | kwargs
    source = args[0]
    dims = named.get("dim")
    dims = range(source.ndim) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    gone = {dim % max(source.ndim, 1) for dim in dims}
    labels = [None if dim in gone else vector for dim, vector in enumerate(flow.of(source))]
    for result in tree_flatten(output)[0]:
        if isinstance(result, Tensor):
            kept = (
                labels if result.ndim == source.ndim else [each for dim, each in enumerate(labels) if dim not in gone]
            )
            flow.give(result, kept, [source])
            if not result.is_floating_point() and source.is_floating_point() and name not in ("any", "all"):
                flow.chosen[result] = [flow.of(source)[dim] for dim in gone]


def _cat(flow: Flow, args: Any, kwargs: Any, output: Tensor) -> None:
    tensors = [tensor for tensor in args[0] if tensor.ndim == output.ndim]
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % output.ndim
    labels = [
        flow.joined(flow.of(tensor)[axis] for tensor in tensors) if axis != dim else None for axis in range(output.ndim)
    ]
    if any(flow.of(tensor)[dim] is not None for tensor in tensors):
        labels[dim] = np.concatenate([_or_fixed(flow.of(tensor)[dim], tensor.shape[dim]) for tensor in tensors])
    flow.give(output, labels, tensors)


def _or_fixed(vector: Vector | None, length: int) -> Vector:
    return np.zeros(length, np.int64) if vector is None else vector


def _stack(flow: Flow, args: Any, kwargs: Any, output: Tensor) -> None:
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % output.ndim
    labels = [flow.joined(flow.of(tensor)[axis] for tensor in args[0]) for axis in range(output.ndim - 1)]
    flow.give(output, [*labels[:dim], None, *labels[dim:]], args[0])


def _copy(flow: Flow, args: Any, kwargs: Any, output: Tensor) -> None:
    """Values written into a tensor that was made before: it shrinks only if it is known to."""
    into, source = args[:2]
    for dim in range(-source.ndim, 0):
        if into.ndim >= -dim and source.shape[dim] > 1:
            vector = flow.of(source)[dim]
            if flow.of(into)[dim] is None:
                flow.stay(vector, "it is written into a tensor of fixed size")
            else:
                flow.joined([flow.of(into)[dim], vector])


def _matmul(flow: Flow, left: Tensor, right: Tensor, output: Tensor) -> None:
    """(..., n, k) times (..., k, m)."""
    one, other = flow.of(left), flow.of(right)
    flow.contract(one[-1], other[-2] if right.ndim > 1 else other[0], (left, right))
    flow.made(one[-2] if left.ndim > 1 else None, left, right)
    flow.made(other[-1] if right.ndim > 1 else None, right, left)
    batch = [flow.joined(pair) for pair in zip(one[:-2], other[:-2], strict=False)]
    ends = [*([one[-2]] if left.ndim > 1 else []), *([other[-1]] if right.ndim > 1 else [])]
    flow.give(output, [*batch, *ends], [left, right])
    flow.multiplied(
        output.numel() * left.shape[-1],
        [*batch, *ends, one[-1] if one[-1] is not None else other[-2 if right.ndim > 1 else 0]],
    )


def _addmm(flow: Flow, args: Any, kwargs: Any, output: Tensor) -> None:
    _matmul(flow, args[1], args[2], output)
    _pointwise(flow, [args[0], output], output)
    _added(flow, [args[0], output])


def _convolution(flow: Flow, args: Any, kwargs: Any, output: Tensor) -> None:
    source, weight, bias = args[:3]
    transposed, groups = args[6], args[8]
    given, along = flow.of(source), flow.of(weight)
    channel = 0 if source.ndim == weight.ndim - 1 else 1
    for vector in (*along[2:], *given[channel + 1 :]):
        flow.stay(vector, "it runs over the positions of a convolution")
    taken, made = (0, 1) if transposed else (1, 0)
    if groups == 1:
        flow.contract(given[channel], along[taken], (source, weight))
        flow.made(along[made], weight, source)
        vector = along[made]
    else:
        vector = _grouped(flow, given[channel], along, source, weight, groups, transposed)
    if bias is not None:
        vector = flow.joined([vector, flow.of(bias)[0]])
        _added(flow, [bias, output])
    flow.give(output, [*[None] * channel, vector, *[None] * (output.ndim - channel - 1)], [source, weight])
    positions = (source if transposed else output).shape[channel + 1 :].numel()
    flow.multiplied(
        weight.numel() * positions * source.shape[:channel].numel(),
        [vector, *([given[channel]] if groups == 1 else [])],
    )


def _grouped(
    flow: Flow, given: Vector | None, along: Labels, source: Tensor, weight: Tensor, groups: int, transposed: bool
) -> Vector | None:
    """The channels of a group are one filter."""
    flow.stay(along[1], "it runs over the channels of one group")
    flow.made(along[0], weight, source)
    if along[0] is None:
        flow.stay(given, "its channels are those of one group")
        return None
    leaders = along[0][:: len(along[0]) // groups]
    flow.join(along[0], np.repeat(leaders, len(along[0]) // groups))
    if given is not None:
        flow.join(given, np.repeat(leaders, len(given) // groups))
    return np.repeat(leaders, weight.shape[1]) if transposed else along[0]


def _batch_norm(flow: Flow, args: Any, kwargs: Any, output: Any) -> None:
    source = args[0]
    labels = list(flow.of(source))
    own = [each for each in args[1:5] if isinstance(each, Tensor) and each.ndim == 1]
    labels[1] = flow.joined([labels[1], *(flow.of(each)[0] for each in own)])
    flow.give(output if isinstance(output, Tensor) else output[0], labels)


def _layer_norm(flow: Flow, args: Any, kwargs: Any, output: Any) -> None:
    source, shape = args[:2]
    labels = list(flow.of(source))
    for dim in range(-len(shape), 0):
        own = [each for each in args[2:4] if isinstance(each, Tensor)]
        labels[dim] = flow.joined([labels[dim], *(flow.of(each)[dim] for each in own)])
        flow.note(shape[dim], labels[dim])
    flow.give(output if isinstance(output, Tensor) else output[0], labels)


def _group_norm(flow: Flow, args: Any, kwargs: Any, output: Any) -> None:
    source, groups = args[0], args[6]
    labels = list(flow.of(source))
    own = [each for each in args[1:3] if isinstance(each, Tensor)]
    vector = labels[1] = flow.joined([labels[1], *(flow.of(each)[0] for each in own)])
    if vector is not None:
        flow.note(len(vector), vector)
        if groups > 1:
            leaders = vector[:: len(vector) // groups]
            flow.join(vector, np.repeat(leaders, len(vector) // groups))
            flow.note(groups, leaders)
    flow.give(output[0], labels)


def _embedding(flow: Flow, args: Any, kwargs: Any, output: Tensor) -> None:
    weight, index = args[:2]
    rows, vector = flow.of(weight)
    flow.stay(rows, "it is a table's row")
    flow.fix(index, "it chooses rows of a table")
    flow.made(vector, weight, index)
    flow.give(output, [*[None] * (output.ndim - 1), vector])


def _embedding_bag(flow: Flow, args: Any, kwargs: Any, output: Any) -> None:
    _embedding(flow, args, kwargs, output[0])


def _trilinear(flow: Flow, args: Any, kwargs: Any, output: Tensor) -> None:
    """The product of a bilinear layer: two inputs, and a weight (outputs, first, second) between them."""
    first, weight, second = (args[place] for place in (0, 1, 2))
    made, one, other = flow.of(weight)[-3:]
    flow.contract(flow.of(first)[-1], one, (first, weight))
    flow.contract(flow.of(second)[-1], other, (second, weight))
    flow.made(made, weight, first)
    flow.give(output, [*[None] * (output.ndim - 1), made])


def _channel_shuffle(flow: Flow, args: Any, kwargs: Any, output: Tensor) -> None:
    """The channels at one place of every group are one filter."""
    source, groups = args
    labels = list(flow.of(source))
    vector = labels[1]
    if vector is not None:
        places = len(vector) // groups
        flow.join(vector, np.tile(vector[:places], groups))
        labels[1] = np.repeat(vector[:places], groups)
    flow.give(output, labels)


def _glu(flow: Flow, args: Any, kwargs: Any, output: Tensor) -> None:
    source = args[0]
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", -1)) % source.ndim
    labels = list(flow.of(source))
    vector = labels[dim]
    if vector is not None:
        half = len(vector) // 2
        flow.join(vector[:half], vector[half:])
        labels[dim] = vector[:half]
    flow.give(output, labels)


def _attention(flow: Flow, args: Any, kwargs: Any, output: Any) -> None:
    query, key, value = args[:3]
    labels = [flow.of(each) for each in (query, key, value)]
    batch = [flow.joined(triple) for triple in zip(*(each[:-2] for each in labels), strict=True)]
    inner = flow.joined([labels[0][-1], labels[1][-1]])
    flow.give(output if isinstance(output, Tensor) else output[0], [*batch, labels[0][-2], labels[2][-1]])
    pairs = query.shape[:-1].numel() * key.shape[-2]
    flow.multiplied(pairs * query.shape[-1], [*batch, inner])
    flow.multiplied(pairs * value.shape[-1], [*batch, labels[2][-1]])


def _weight_norm(flow: Flow, args: Any, kwargs: Any, output: Any) -> None:
    direction, scale = args[:2]
    labels = (
        [flow.joined(pair) for pair in zip(flow.of(direction), flow.of(scale), strict=True)]
        if scale.ndim == direction.ndim
        else flow.of(direction)
    )
    flow.give(output if isinstance(output, Tensor) else output[0], labels, [direction])


def _where(flow: Flow, args: Any, kwargs: Any, output: Tensor) -> None:
    _pointwise(flow, [each for each in args if isinstance(each, Tensor)], output)


_Rule = Callable[[Flow, Any, Any, Any], None]
_RULES: dict[str, _Rule] = {
    **flow_choosing.RULES | flow_transforms.RULES,
    "cat": _cat,
    "stack": _stack,
    "copy": _copy,
    "mm": lambda flow, args, kwargs, output: _matmul(flow, args[0], args[1], output),
    "bmm": lambda flow, args, kwargs, output: _matmul(flow, args[0], args[1], output),
    "mv": lambda flow, args, kwargs, output: _matmul(flow, args[0], args[1], output),
    "vdot": lambda flow, args, kwargs, output: _matmul(flow, args[0], args[1], output),
    "dot": lambda flow, args, kwargs, output: _matmul(flow, args[0], args[1], output),
    "addmm": _addmm,
    "baddbmm": _addmm,
    "addmv": _addmm,
    "convolution": _convolution,
    "native_batch_norm": _batch_norm,
    "_native_batch_norm_legit": _batch_norm,
    "_native_batch_norm_legit_no_training": _batch_norm,
    "cudnn_batch_norm": _batch_norm,
    "native_layer_norm": _layer_norm,
    "_fused_rms_norm": _layer_norm,
    "native_group_norm": _group_norm,
    "embedding": _embedding,
    "_embedding_bag": _embedding_bag,
    "_embedding_bag_forward_only": _embedding_bag,
    "glu": _glu,
    "_trilinear": _trilinear,
    "channel_shuffle": _channel_shuffle,
    "native_channel_shuffle": _channel_shuffle,
    "_weight_norm_interface": _weight_norm,
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    "_scaled_dot_product_flash_attention": _attention,
    "_scaled_dot_product_efficient_attention": _attention,
    "_scaled_dot_product_attention_math": _attention,
    "where": _where,
}
