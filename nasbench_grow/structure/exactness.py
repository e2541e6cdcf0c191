"""The definition that every sub-network is held to: the full network with its absent entries at zero.

``masked`` computes that (at full price), so that extraction can be checked against it: by discovery, which trusts no
coupling that it has not seen hold, and by the tests.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from nasbench_grow.base.calling import arguments, call
from nasbench_grow.base.devices import DEVICE_ERRORS
from nasbench_grow.base.trees import tensors
from nasbench_grow.structure.space import ChannelGroup, Space
from nasbench_grow.structure.subnetwork import extract

TOLERANCE = 1e-8
"""Largest accepted difference from the definition, as a share of the largest output, in double precision."""
DRAWS = 3
"""Structures of widths drawn at random."""
LENGTHS = 6
"""To how many common lengths groups are set in turn, at most."""
OUTPUT = "its channels are the model's output"
"""Why what a model gives stays whole."""


def masked(space: Space, model: nn.Module, present: Tensor, example: Any) -> Any:
    """Output of the full ``model`` with every absent entry multiplied by zero (``f(x; w * m)``, section 3.1).

    Normalisations across channels (layer norm, group norm with one group) take their statistics over the channels
    that are present; absent layers return their input.
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
    hooks = []
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


def unfaithful(space: Space, model: nn.Module, example: Any, tolerance: float = TOLERANCE) -> dict[str, str]:
    """The channel groups and layers whose removal changes more than it should, each with what went wrong.

    Compares extraction with the definition for several structures; only where that fails, for groups and layers one by
    one, and where none of them fails alone, for what is left of the failing structure when all that need not be absent
    is back.
    """
    generator = torch.Generator().manual_seed(0)

    def failure(present: Tensor) -> str | None:
        shallow = not bool(present[space.filters :].all())
        return _failure(space, model, example, present, tolerance, backward=shallow)

    failing = next((present for present in _structures(space, generator) if failure(present) is not None), None)
    if failing is None:
        return {}
    alone = [(group.name, _halved(space, [group], generator)) for group in space.groups]
    alone += [(layer.name, _without(space, [index])) for index, layer in enumerate(space.layers)]
    reasons = {name: reason for name, present in alone if (reason := failure(present)) is not None}
    return reasons or _blamed(space, failing, failure)


def _structures(space: Space, generator: torch.Generator) -> Iterator[Tensor]:
    """Structures by which a wrong coupling shows: random halves, with all layers and without the plain ones; widths
    that differ from each other, with a part of the layers; one filter in each group and no layer; any widths; groups as
    wide as each other, or as what is always there, where shapes agree by accident."""
    halved = _halved(space, space.groups, generator)
    yield halved
    plain = [index for index, layer in enumerate(space.layers) if layer.bypass]
    if plain:
        yield halved & _without(space, plain)
    taken: set[int] = set()
    widths = []
    for group in space.groups:
        free = [width for width in range(1, group.size + 1) if width not in taken] or [group.size]
        widths.append(free[int(torch.randint(len(free), (), generator=generator))])
        taken.add(widths[-1])
    absent = [index for index in range(len(space.layers)) if torch.rand((), generator=generator) < 0.5]
    yield _thinned(space, widths, generator) & _without(space, absent)
    yield _thinned(space, [1] * len(space.groups), generator) & _without(space, range(len(space.layers)))
    for _ in range(DRAWS):
        widths = [int(torch.randint(1, group.size + 1, (), generator=generator)) for group in space.groups]
        yield _thinned(space, widths, generator)
    each = _entries(space)
    for length in _common_lengths(space, each):
        yield _thinned(space, [max(1, length // entries) for entries in each], generator)


def _entries(space: Space) -> list[int]:
    """How many entries a filter of each group has on an axis, where it has fewest."""
    fewest = [len(space) for _ in space.groups]
    first = {group.start: index for index, group in enumerate(space.groups)}
    for owner in space.owners.values():
        for number, count in zip(*torch.unique(owner, return_counts=True), strict=True):
            if (index := first.get(int(number))) is not None:
                fewest[index] = min(fewest[index], int(count))
    return fewest


def _common_lengths(space: Space, entries: list[int]) -> list[int]:
    """Lengths that several axes can have at once: one of no meaning, and those of some axes that never shrink."""
    longest = max((each * group.size for each, group in zip(entries, space.groups, strict=True)), default=0)
    fixed = {
        length
        for name, shape in space.shapes.items()
        if len(shape) > 1
        for dim, length in enumerate(shape[:2])
        if (name, dim) not in space.owners
    }
    shared = 2 * max(entries, default=0)
    return sorted(length for length in {shared, *fixed} if 1 < length < longest)[:LENGTHS]


def _thinned(space: Space, widths: list[int], generator: torch.Generator) -> Tensor:
    """Everything present, but of each group as many filters as ``widths`` says, drawn at random."""
    present = space.full()
    for group, width in zip(space.groups, widths, strict=True):
        present[group.start + torch.randperm(group.size, generator=generator)[width:]] = False
    return present


def _without(space: Space, layers: Iterable[int]) -> Tensor:
    """Everything present but some layers."""
    present = space.full()
    present[[space.filters + index for index in layers]] = False
    return present


def _blamed(space: Space, failing: Tensor, failure: Callable[[Tensor], str | None]) -> dict[str, str]:
    """Of the groups and layers that fail together, and not when one of them is whole again, a layer or the largest
    group: that the widths of two agree is ruled out by keeping the larger one whole."""
    guilty: list[ChannelGroup] = []
    for group in sorted(space.groups, key=lambda group: group.size):
        whole = failing.clone()
        whole[group.structures] = True
        if failure(whole) is None:
            guilty.append(group)
        else:
            failing = whole
    for index, layer in enumerate(space.layers):
        whole = failing.clone()
        whole[space.filters + index] = True
        if failure(whole) is None:
            return {layer.name: "what follows it needs it where other layers are absent"}
        failing = whole
    reason = "its filters leave only together with other groups'"
    return {guilty[-1].name: reason} if guilty else {group.name: reason for group in space.groups}


def _halved(space: Space, groups: list[ChannelGroup], generator: torch.Generator) -> Tensor:
    """Everything present, but of the given groups about half of the filters (an odd number)."""
    present = space.full()
    for group in groups:
        leave = torch.randperm(group.size, generator=generator)[: group.size - (group.size // 4 * 2 + 1)]
        present[group.start + leave] = False
    return present


def _failure(
    space: Space, model: nn.Module, example: Any, present: Tensor, tolerance: float, backward: bool = False
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
