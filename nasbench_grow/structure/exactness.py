"""The definition that every sub-network is held to: the full network with its absent entries at zero.

``masked`` computes that (at full price), so that extraction can be checked against it: by discovery, which trusts no
coupling that it has not seen hold, and by the tests.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from nasbench_grow.base.calling import arguments, call
from nasbench_grow.base.devices import DEVICE_ERRORS
from nasbench_grow.base.trees import tensors
from nasbench_grow.structure.own_norms import over_present
from nasbench_grow.structure.space import Space
from nasbench_grow.structure.subnetwork import extract

TOLERANCE = 1e-8
"""Largest accepted difference from the definition, as a share of the largest output, in double precision."""
OUTPUT = "its channels are the model's output"
"""Why what a model gives stays whole."""


def masked(space: Space, model: nn.Module, present: Tensor, example: Any) -> Any:
    """Output of the full ``model`` with every absent entry multiplied by zero (``f(x; w * m)``, section 3.1).

    Normalisations across channels (layer norm, group norm with one group, a model's own) take their statistics over
    the channels that are present; absent layers return their input.
    """
    kept = space.resolved(present)
    scaled: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        tensor: Tensor = parameter
        for dim in range(tensor.ndim):
            owner = space.owners.get((name, dim))
            if owner is not None and not _has_scale(space, name, dim):
                there = (owner < 0) | kept[owner.clamp(min=0)]
                shape = [-1 if axis == dim else 1 for axis in range(tensor.ndim)]
                tensor = tensor * there.to(tensor).view(shape)
        scaled[name] = tensor
    with _absent_layers(space, model, present), _norms_over_present(space, model, kept), _module_by_module():
        return functional_call(model, scaled, *arguments(example))


def _has_scale(space: Space, name: str, dim: int) -> bool:
    """Whether a tensor is the direction of a normalised weight: it stays away where its scale is zero, and a direction
    of zeros could not be normalised."""
    for direction, scale in (("original1", "original0"), ("weight_v", "weight_g")):
        if name.endswith(f".{direction}"):
            return (name.removesuffix(direction) + scale, dim) in space.owners
    return False


@contextmanager
def _absent_layers(space: Space, model: nn.Module, present: Tensor) -> Iterator[None]:
    """Lets absent layers return their input."""
    given: dict[nn.Module, Tensor] = {}

    def before(block: nn.Module, arguments: tuple[Tensor]) -> tuple[Tensor]:
        given[block] = arguments[0]
        return (arguments[0].clone(),)  # the block may work in place

    def after(block: nn.Module, arguments: tuple[Tensor], output: Tensor) -> Tensor:
        return given.pop(block)

    hooks = []
    for index, layer in enumerate(space.layers):
        if not space.layer_present(present, index):
            for path in layer.paths:
                module = model.get_submodule(path)
                hooks += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _module_by_module() -> Iterator[None]:
    """Lets PyTorch's transformer layers call their norms, which they otherwise skip in evaluation."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def _norms_over_present(space: Space, model: nn.Module, present: Tensor) -> Iterator[None]:
    """Lets normalisations across channels see the present channels only."""
    hooks = list(over_present(space, model, present))
    for name, module in model.named_modules():
        owner = space.owners.get((f"{name}.weight", 0))
        if owner is None:  # one without weights may say how many channels it takes
            sizes = (space.attributes.get((name, *size)) for size in (("normalized_shape", 0), ("num_channels", None)))
            owner = next((size for size in sizes if size is not None), None)
        if len(getattr(module, "normalized_shape", (1,))) > 1:
            continue
        across = isinstance(module, (nn.LayerNorm, nn.RMSNorm)) or (
            isinstance(module, nn.GroupNorm) and module.num_groups == 1
        )
        if owner is not None and across:
            kept = torch.nonzero((owner < 0) | present[owner.clamp(min=0)]).flatten()
            hooks.append(module.register_forward_hook(lambda *call, kept=kept: _over(kept, *call)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _over(kept: Tensor, module: nn.Module, arguments: tuple[Tensor], output: Tensor) -> Tensor:
    """What the norm (with the activation that timm's have inside) gives for the ``kept`` channels; zero elsewhere."""
    given = arguments[0]
    kept = kept.to(given.device)
    first = isinstance(module, nn.GroupNorm) or (given.ndim == 4 and "2d" in type(module).__name__)
    channel = 1 if first else given.ndim - 1
    narrow = copy.copy(module)
    parameters: dict[str, Any] = module._parameters
    narrow._parameters = {key: None if full is None else full[kept] for key, full in parameters.items()}
    if isinstance(narrow, (nn.LayerNorm, nn.RMSNorm)):
        narrow.normalized_shape = (len(kept),)
    elif isinstance(narrow, nn.GroupNorm):
        narrow.num_channels = len(kept)
    seen = narrow.forward(given.index_select(channel, kept))  # not by a call, which would run this hook again
    return torch.zeros_like(output).index_copy(channel, kept, seen)


def failure(
    space: Space,
    model: nn.Module,
    example: Any,
    present: Tensor,
    tolerance: float = TOLERANCE,
    backward: bool = False,
) -> str | None:
    """Why the sub-network of ``present`` does not compute what the masked network does; None if it does.

    With ``backward`` it must have gradients, too: an operation in place that followed an absent layer may overwrite
    what the one before it saved for them.
    """
    with torch.set_grad_enabled(backward):
        try:
            small = tensors(call(extract(space, model, present), example))
            if backward:
                torch.stack([output.sum() for output in small if output.requires_grad]).sum().backward()
        except DEVICE_ERRORS:
            raise
        except Exception as error:
            cause = (str(error) or type(error).__name__).splitlines()[0]
            return f"the network does not run without some of them ({cause})"
    with torch.no_grad():
        wanted = tensors(masked(space, model, present, example))
    if [output.shape for output in small] != [output.shape for output in wanted]:
        return OUTPUT
    if not all(_agree(output.detach(), other, tolerance) for output, other in zip(small, wanted, strict=True)):
        return "a part of the network mixes its channels in a way that removal changes"
    return None


def _agree(one: Tensor, other: Tensor, tolerance: float) -> bool:
    """Whether two outputs are the same up to rounding. Choices (whole numbers, truth values) may turn over by it."""
    if not (one.is_floating_point() or one.is_complex()) or not one.numel():
        return True
    difference = torch.where((one == other) | (one.isnan() & other.isnan()), 0, (one - other).abs())
    finite = other[other.isfinite()]
    scale = float(finite.abs().max()) if len(finite) else 1.0
    within = difference <= tolerance * scale + 1e-12 * tolerance  # not so for what is no number
    return bool(within.all()) and not bool(other.isnan().all())
