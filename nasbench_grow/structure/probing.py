"""What discovery tries a model with: weights and inputs behind which no wrong coupling can hide.

A fresh network often starts branches at zero, and an example is often all zeros; then a part of the network that would
give something else once it has trained gives nothing at all.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nasbench_grow.base.devices import DEVICE_ERRORS

SAMPLES = 4
"""Of the batch: batch normalisations need more than one."""


def randomised(model: nn.Module) -> nn.Module:
    """A copy of the model in double precision, in which no parameter is zero, one, or an identity.

    Without dropout; batch normalisations take the statistics of the batch, so that signals neither vanish nor explode.
    """
    generator = torch.Generator().manual_seed(0)
    probe = copy.deepcopy(model).double().eval().requires_grad_(True)
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
    if not tensor.is_floating_point():
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


def random_batch(model: nn.Module, example: Tensor) -> Tensor:
    """A batch like ``example`` with other values: numbers, or tokens that the model has, none of them its padding.

    What is random is drawn the more like the example, the less the model takes other values: where it runs on none of
    them and gives finite numbers, the example is repeated.
    """
    repeated = example[:1].expand(SAMPLES, *example.shape[1:])
    repeated = (repeated.double() if example.is_floating_point() else repeated).clone()
    for drawn in _draws(model, repeated):
        if _gives_numbers(model, drawn):
            return drawn
    return repeated


def _draws(model: nn.Module, example: Tensor) -> Iterator[Tensor]:
    """Batches to try, the most random one first."""
    generator = torch.Generator().manual_seed(0)
    tokens = _tokens(model, example)
    if tokens is not None:
        drawn = tokens[torch.randint(len(tokens), example.shape, generator=generator)]
        yield drawn.to(example)
    elif example.is_floating_point():
        yield _normal(example, generator)
        yield _positive(example, generator)  # of which a root or a logarithm can be taken
    else:
        top = 255 if example.dtype == torch.uint8 else max(1, int(example.max()))
        yield torch.randint(top + 1, example.shape, generator=generator).to(example)


def _tokens(model: nn.Module, example: Tensor) -> Tensor | None:
    """The numbers by which the model looks up vectors if its input are such numbers; else None."""
    with _Lookups() as lookups:
        try:
            with torch.no_grad():
                model(example)
        except DEVICE_ERRORS:
            raise
        except Exception:  # what is wrong with the model will be said where it is traced
            return None
    storage = example.untyped_storage().data_ptr()
    found = [look for look in lookups.found if look[0].untyped_storage().data_ptr() == storage]
    same = [look for look in lookups.found if torch.equal(look[0].double().flatten(), example.double().flatten())]
    tables = found or same
    if not tables:
        return None
    numbers = torch.arange(min(rows for _, rows, _ in tables))
    reserved = {0, *(padding % rows for _, rows, padding in tables if padding is not None)}
    kept = numbers[[number not in reserved for number in numbers.tolist()]]
    return kept if len(kept) > 1 else numbers


class _Lookups(TorchFunctionMode):
    """Notes the numbers that vectors are looked up by, how many vectors there are, and which of them is padding."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[Tensor, int, int | None]] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (F.embedding, F.embedding_bag):
            given = dict(zip(("input", "weight"), args, strict=False)) | kwargs
            self.found.append((given["input"], len(given["weight"]), given.get("padding_idx")))
        elif func is Tensor.__getitem__ and isinstance(args[1], Tensor) and _is_lookup(*args):
            self.found.append((args[1], len(args[0]), None))
        elif func is F.one_hot and (classes := kwargs.get("num_classes", (*args, -1)[1])) > 0:
            self.found.append((args[0], classes, None))
        return func(*args, **kwargs)


def _is_lookup(table: Tensor, numbers: Tensor) -> bool:
    return table.is_floating_point() and not numbers.is_floating_point() and numbers.dtype != torch.bool


def _gives_numbers(model: nn.Module, batch: Tensor) -> bool:
    """Whether the model takes a batch, and all that it gives for it are finite numbers."""
    try:
        with torch.no_grad():
            output = model(batch)
    except DEVICE_ERRORS:
        raise
    except Exception:
        return False
    tensors = [output] if isinstance(output, Tensor) else list(output.values() if isinstance(output, dict) else output)
    return all(bool(tensor.isfinite().all()) for tensor in tensors if isinstance(tensor, Tensor))
