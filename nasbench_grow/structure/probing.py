"""What discovery tries a model with: weights and inputs behind which no wrong coupling can hide.

A fresh network often starts branches at zero, and an example is often all zeros; then a part of the network that would
give something else once it has trained gives nothing at all.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nasbench_grow.base.calling import batch_length, call
from nasbench_grow.base.devices import DEVICE_ERRORS
from nasbench_grow.base.precision import cast, cast_model
from nasbench_grow.base.trees import map_tensors, tensors

SAMPLES = 4
"""Of the batch: batch normalisations need more than one."""


def randomised(model: nn.Module, precision: torch.dtype = torch.double) -> nn.Module:
    """A copy of the model in a precision, in which no parameter is zero, one, or an identity.

    Without dropout; batch normalisations take the statistics of the batch, so that signals neither vanish nor explode.
    """
    generator = torch.Generator().manual_seed(0)
    probe = cast_model(copy.deepcopy(model), precision).eval().requires_grad_(True)
    for module in probe.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
    for parameter in probe.parameters():
        parameter.data = _off_its_start(parameter.detach(), generator)
    for buffer in probe.buffers():
        if buffer.is_floating_point() and not buffer.any():  # a shift or a scale that is learnt
            buffer.copy_(_positive(buffer, generator))
    return probe


def _off_its_start(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Random values of about the size of the tensor's own, or what suits a scale or a shift."""
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return tensor
    if tensor.numel() <= max(tensor.shape, default=1):  # a scalar, a vector, a scale made to fit images
        return _positive(tensor, generator)
    size = float(tensor.std())
    if size <= 1e-6 * float(tensor.abs().max()):  # a constant
        return _normal(tensor, generator) / (tensor.numel() / len(tensor)) ** 0.5
    return (tensor + size * _normal(tensor, generator)) / 2**0.5


def _positive(like: Tensor, generator: torch.Generator) -> Tensor:
    return (0.5 + torch.rand(like.shape, generator=generator, dtype=torch.double)).to(like)


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=torch.double).to(like)


def random_batch(model: nn.Module, example: Any, precision: torch.dtype = torch.double) -> Any:
    """Inputs like ``example``, several at once, with other values: numbers of a precision, or tokens that the model
    has, none of them its padding.

    What is random is drawn the more like the example, the less the model takes other values: where it runs on none of
    them and gives finite numbers, the example is repeated. Where it runs on no repeated example (a graph, whose edges
    count its nodes), it is the example as it is.
    """
    repeated = repeat(example, precision)
    alone = map_tensors(lambda tensor: cast(tensor.detach(), precision).clone(), example)
    for inputs in (repeated, alone):
        for drawn in _draws(model, inputs):
            if _gives_numbers(model, drawn):
                return drawn
    return repeated if runs(model, repeated) or not runs(model, alone) else alone


def repeat(example: Any, precision: torch.dtype) -> Any:
    """The first of the inputs in ``example`` several times, in a precision. Tensors without a batch axis stay alone."""
    one = batch_length(example)

    def make(tensor: Tensor) -> Tensor:
        if tensor.ndim and len(tensor) == one:
            tensor = tensor[:1].expand(SAMPLES, *tensor.shape[1:])
        return cast(tensor.detach(), precision).clone()

    return map_tensors(make, example)


def _draws(model: nn.Module, inputs: Any) -> Iterator[Any]:
    """Inputs to try, the most random ones first."""
    generator = torch.Generator().manual_seed(0)
    lookups = _lookups(model, inputs)
    samples = batch_length(inputs)

    def drawn(numbers: Callable[[Tensor, torch.Generator], Tensor], whole: bool) -> Any:
        def make(tensor: Tensor) -> Tensor:
            if not tensor.ndim or len(tensor) != samples or tensor.dtype == torch.bool or tensor.is_complex():
                return tensor
            if tensor.is_floating_point():
                return numbers(tensor, generator)
            return _whole_numbers(tensor, lookups, generator) if whole else tensor

        return map_tensors(make, inputs)

    yield drawn(_normal, True)
    yield drawn(_positive, True)  # of which a root or a logarithm can be taken
    if any(tensor.is_floating_point() for tensor in tensors(inputs)):
        yield drawn(_normal, False)


def _whole_numbers(tensor: Tensor, lookups: list[_Lookup], generator: torch.Generator) -> Tensor:
    """Tokens, where the model looks vectors up by the tensor; else numbers of its size."""
    tokens = _tokens(tensor, lookups)
    if tokens is not None:
        return tokens[torch.randint(len(tokens), tensor.shape, generator=generator)].to(tensor)
    top = 255 if tensor.dtype == torch.uint8 else max(1, int(tensor.max()))
    return torch.randint(top + 1, tensor.shape, generator=generator).to(tensor)


def _tokens(tensor: Tensor, lookups: list[_Lookup]) -> Tensor | None:
    """The numbers by which the model looks up vectors if the tensor holds such numbers; else None."""
    storage = tensor.untyped_storage().data_ptr()
    found = [look for look in lookups if look.numbers.untyped_storage().data_ptr() == storage]
    same = [look for look in lookups if torch.equal(look.numbers.double().flatten(), tensor.double().flatten())]
    tables = found or same
    if not tables:
        return None
    numbers = torch.arange(min(look.rows for look in tables))
    reserved = {0, *(look.padding % look.rows for look in tables if look.padding is not None)}
    kept = numbers[[number not in reserved for number in numbers.tolist()]]
    return kept if len(kept) > 1 else numbers


class _Lookup(NamedTuple):
    """Vectors that are looked up in a table."""

    numbers: Tensor
    rows: int
    padding: int | None


def _lookups(model: nn.Module, inputs: Any) -> list[_Lookup]:
    """What the model looks up; nothing where it does not run: what is wrong with it will be said elsewhere."""
    with _Lookups() as lookups:
        ran = runs(model, inputs)
    return lookups.found if ran else []


class _Lookups(TorchFunctionMode):
    """Notes the numbers that vectors are looked up by, how many vectors there are, and which of them is padding."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[_Lookup] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (F.embedding, F.embedding_bag):
            given = dict(zip(("input", "weight"), args, strict=False)) | kwargs
            self.found.append(_Lookup(given["input"], len(given["weight"]), given.get("padding_idx")))
        elif func is Tensor.__getitem__ and isinstance(args[1], Tensor) and _is_lookup(*args):
            self.found.append(_Lookup(args[1], len(args[0]), None))
        elif func is F.one_hot and (classes := kwargs.get("num_classes", (*args, -1)[1])) > 0:
            self.found.append(_Lookup(args[0], classes, None))
        return func(*args, **kwargs)


def _is_lookup(table: Tensor, numbers: Tensor) -> bool:
    return table.is_floating_point() and not numbers.is_floating_point() and numbers.dtype != torch.bool


def runs(model: nn.Module, inputs: Any) -> bool:
    """Whether the model takes inputs."""
    try:
        with torch.no_grad():
            call(model, inputs)
    except DEVICE_ERRORS:
        raise
    except Exception:
        return False
    return True


def _gives_numbers(model: nn.Module, inputs: Any) -> bool:
    """Whether the model takes inputs, and all that it gives for them are finite numbers."""
    try:
        with torch.no_grad():
            output = call(model, inputs)
    except DEVICE_ERRORS:
        raise
    except Exception:
        return False
    return all(bool(tensor.isfinite().all()) for tensor in tensors(output))
