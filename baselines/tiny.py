"""TINY: newborn filters in closed form, from what the loss asks of a layer and its weights cannot give.

Verbockhaven, Rudkiewicz, Chevallier, Charpiat, *Growing Tiny Networks: Spotting Expressivity Bottlenecks and Fixing
Them Optimally*, TMLR 2024 (arXiv 2405.19816; library growingnet/gromo). V is the descent direction of a layer's
outputs before their norm, dW the update of its weights that follows V best, by least squares; what is left of V is the
bottleneck. With S the second moments of what the layer before takes in and N their moments with the bottleneck, the
singular vectors of S^(-1/2) N give newborn filters: incoming weights S^(-1/2) u, outgoing ones v, largest singular
values first, at an amplitude that a search on the loss finds. Activations count as linear around 0, as theirs.

It serves filters that one convolution or linear layer makes and one takes in, with a norm and pointwise functions at
most between. Ours: others (residual streams, before pooling) grow at their initial weights; a norm is set to pass a
newborn filter as it is, which leaves the split of its amplitude free; positions under one kernel count as uncorrelated
in S; all groups grow at once, with one amplitude, on the shared schedule, where theirs grows a layer at a time; dW is
left to the optimizer. In their library thresholds on singular values also decide how many filters join. How many
samples their published statistics take could not be verified.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from nasbench_grow import Space, UserError, discover, extract
from nasbench_grow.contract import ElasticModel, Growth, GrowthSettings, Task, Widening

AMPLITUDES = (0.0, *(4.0**power for power in range(-4, 2)))
"""Factors of the newborn filters' outgoing weights that are tried; 0 leaves the network's function as it is."""
SERVED = 1 / 3
"""Share of the groups that must be served, or the method would hardly differ from growing at initial weights."""
SMALLEST = 1e-5
"""Of the largest eigenvalue of S: below it a direction counts as absent from the inputs."""


@dataclass(frozen=True)
class Settings(GrowthSettings):
    """When the network grows, and on how much data the newborn filters depend."""

    steps: int = 5
    """Growth steps; fewer than other methods', as each takes statistics."""
    batches: int = 2
    """Training batches of the recipe's size that statistics and amplitude are taken from at each growth step."""

    def __post_init__(self) -> None:
        """Refuses a setting outside its range with a UserError."""
        super().__post_init__()
        if self.batches < 1:
            raise UserError(f"batches {self.batches} is out of range: give 1 or more")


@dataclass(frozen=True)
class Between:
    """A channel group between two layers, by the names of their modules."""

    number: int
    """Of the group in the space."""
    maker: str
    norm: str | None
    taker: str


@dataclass
class Moments:
    """Sums over samples and positions that one group's newborn filters follow from."""

    inputs: Tensor = field(default_factory=lambda: torch.zeros(()))
    """Of products of what the taker takes in, patch by patch, shape (C k k, C k k)."""
    wanted: Tensor = field(default_factory=lambda: torch.zeros(()))
    """Of their products with V, shape (C k k, out)."""
    before: Tensor = field(default_factory=lambda: torch.zeros(()))
    """S: of products of what the maker takes in, shape (F, F)."""
    mean: Tensor = field(default_factory=lambda: torch.zeros(()))
    """Of what the maker takes in, shape (F,)."""
    missing: Tensor = field(default_factory=lambda: torch.zeros(()))
    """N: of its products with what is missing of V, shape (F, out k k)."""
    count: int = 0
    seen: dict[str, Tensor] = field(default_factory=dict)
    """What the hooks saw of the current batch."""


def between(space: Space, network: nn.Module) -> list[Between]:
    """The groups that are served: one plain layer makes their filters, one of its kind takes them in."""
    modules, takers = dict(network.named_modules()), set(space.consumers)
    found = []
    for number, group in enumerate(space.groups):
        filters = torch.arange(group.start, group.start + group.size)
        owned = (axis for axis, owner in space.owners.items() if bool(torch.isin(owner, filters).any()))
        axes = [axis for axis in owned if axis[0] in space.shapes]
        whole = all(torch.equal(space.owners[axis], filters) for axis in axes)
        roles: dict[str, list[str]] = {"maker": [], "norm": [], "taker": []}
        for name, dim in axes:
            path = name.rpartition(".")[0]
            if (name, dim) in takers:
                roles["taker"].append(path)
            elif len(space.shapes[name]) > 1:
                roles["maker"].append(path)
            elif path not in roles["norm"] + roles["maker"]:
                roles["norm"].append(path)
        norms = [path for path in roles["norm"] if path not in roles["maker"]]
        ends = [modules[path] for path in roles["maker"] + roles["taker"]]
        alike = (
            len(ends) == 2 and len(roles["maker"]) == 1 and (all(map(_is_plain, ends)) or all(map(_is_linear, ends)))
        )
        normed = [modules[path] for path in norms]
        if whole and alike and len(norms) <= 1 and all(isinstance(norm, nn.BatchNorm2d) for norm in normed):
            found.append(Between(number, roles["maker"][0], norms[0] if norms else None, roles["taker"][0]))
    return found


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear)


def _is_plain(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.groups == 1 and not isinstance(module.padding, str)


def geometry(module: nn.Module) -> dict[str, Any]:
    """Stride, padding and dilation of a convolution; a linear layer is one of a single position."""
    if isinstance(module, nn.Conv2d):
        return {"stride": module.stride, "padding": module.padding, "dilation": module.dilation}
    return {}


def as_image(tensor: Tensor) -> Tensor:
    """Features (B, C) as an image of one position; images (B, C, H, W) as they are."""
    return tensor if tensor.ndim == 4 else tensor.reshape(-1, tensor.shape[-1], 1, 1)


def kernel(weight: Any) -> Tensor:
    """The weight of a linear layer as a 1 x 1 kernel; a kernel as it is."""
    return weight if weight.ndim == 4 else weight[:, :, None, None]


def patches(module: nn.Module, inputs: Tensor) -> Tensor:
    """What a layer multiplies its weights with, shape (B, C k k, positions)."""
    return F.unfold(as_image(inputs), kernel(module.weight).shape[2:], **geometry(module))


def best_update(inputs: Tensor, wanted: Tensor) -> Tensor:
    """The dW that minimises the squares of V - x dW, from the moments of x, shape (in, in), and of x and V, shape
    (in, out). Shape (in, out)."""
    found = torch.linalg.pinv(inputs.double(), hermitian=True) @ wanted.double()
    return found.to(wanted.dtype)


def newborn_filters(before: Tensor, missing: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` filters at most whose sum of products follows what is missing best.

    Args:
        before: S, shape (F, F).
        missing: N, shape (F, O).

    Returns:
        incoming weights, shape (filters, F), by which a filter's mean square is 1, and outgoing ones, shape
        (filters, O).
    """
    values, vectors = torch.linalg.eigh(before.double())
    there = values > SMALLEST * values[-1].clamp(min=1e-30)
    root = vectors[:, there] * values[there].rsqrt() @ vectors[:, there].T
    left, strengths, right = torch.linalg.svd(root @ missing.double(), full_matrices=False)
    kept = min(count, int((strengths > SMALLEST * strengths[0].clamp(min=1e-30)).sum()))
    incoming, outgoing = (root @ left[:, :kept]).T, strengths[:kept, None] * right[:kept]
    return incoming.to(missing.dtype), outgoing.to(missing.dtype)


class Expressive(Widening):
    """Gives newborn filters their closed form at each growth step."""

    settings: Settings

    def start(self, model: ElasticModel, before: Tensor, after: Tensor) -> None:
        """Two passes of statistics on the network as it is, the newborn weights, the search for their amplitude."""
        space, born = model.space, after & ~before
        groups = [
            group
            for group in between(space, model.dense)
            if born[space.groups[group.number].structures].any()
            and space.layer_present(before, space.groups[group.number].layer)
        ]
        outgoing: list[tuple[nn.Parameter, tuple[Tensor, ...], Tensor]] = []
        for group, moments in self.statistics(model, groups):
            outgoing += place(space, model.dense, group, moments, before, after)
        if outgoing:
            self.scale(model, after, outgoing)

    def statistics(self, model: ElasticModel, groups: list[Between]) -> list[tuple[Between, Moments]]:
        """The moments of each group whose two layers meet position by position."""
        network = copy.deepcopy(model.network).train()  # batch statistics, and none are kept
        found = [(group, Moments()) for group in groups]
        for first in (True, False):
            updates = [] if first else [best_update(moments.inputs, moments.wanted) for _, moments in found]
            for inputs, targets in self.job.calibrate(network, self.samples, backward=True):
                with watching(network, found):
                    network.zero_grad()
                    self.job.loss(network(inputs), targets).backward()
                for at, (group, moments) in enumerate(found):
                    maker, taker = network.get_submodule(group.maker), network.get_submodule(group.taker)
                    gather(maker, taker, moments, None if first else updates[at])
            found = [(group, moments) for group, moments in found if moments.count]
        return found

    def scale(
        self, model: ElasticModel, after: Tensor, outgoing: list[tuple[nn.Parameter, tuple[Tensor, ...], Tensor]]
    ) -> None:
        """Sets the outgoing weights at the amplitude with the smallest loss."""
        losses = []
        for amplitude in AMPLITUDES:
            set_outgoing(outgoing, amplitude)
            network, total = extract(model.space, model.dense, after).train(), torch.zeros(())
            with torch.no_grad():
                for inputs, targets in self.job.calibrate(network, self.samples):
                    total = total + self.job.loss(network(inputs), targets) * len(inputs)
            losses.append(total.nan_to_num(torch.inf))
        set_outgoing(outgoing, AMPLITUDES[int(torch.stack(losses).argmin())])

    @property
    def samples(self) -> int:
        """How many training samples statistics are taken from."""
        return self.settings.batches * self.job.recipe.batch_size


@contextmanager
def watching(network: nn.Module, found: list[tuple[Between, Moments]]) -> Iterator[None]:
    """Keeps what the two layers of each group take in, and the gradients of the taker's outputs."""
    handles = []
    for group, moments in found:

        def keep_inputs(_: nn.Module, inputs: Any, output: Tensor, seen: dict[str, Tensor] = moments.seen) -> None:
            seen["before"] = inputs[0].detach()

        def keep_all(_: nn.Module, inputs: Any, output: Tensor, seen: dict[str, Tensor] = moments.seen) -> None:
            seen["inputs"] = inputs[0].detach()
            output.register_hook(lambda gradient: seen.__setitem__("gradient", gradient))

        handles.append(network.get_submodule(group.maker).register_forward_hook(keep_inputs))
        handles.append(network.get_submodule(group.taker).register_forward_hook(keep_all))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def gather(maker: nn.Module, taker: nn.Module, moments: Moments, update: Tensor | None) -> None:
    """Adds a batch to the moments: to those that dW follows from, or, where it is known, to those of what is missing.

    Args:
        maker, taker: the layers around the group.
        moments: with what the hooks saw.
        update: dW, shape (C k k, out); None: not known yet.
    """
    seen = moments.seen
    wanted = -len(seen["inputs"]) * as_image(seen["gradient"])  # of each sample's own loss
    features = patches(taker, seen["inputs"])
    ahead = patches(maker, seen["before"])
    positions = as_image(seen["inputs"]).shape[2:]
    if ahead.shape[2] != positions.numel():
        return  # something between the two layers, such as pooling, changes the positions
    if update is None:
        moments.inputs = moments.inputs + torch.einsum("bip,bjp->ij", features, features)
        moments.wanted = moments.wanted + torch.einsum("bip,bop->io", features, wanted.flatten(2))
        moments.count += ahead.shape[0] * ahead.shape[2]
        return
    missing = wanted - torch.einsum("bip,io->bop", features, update).view_as(wanted)
    image = ahead.unflatten(2, positions)
    shape = (missing.shape[1], image.shape[1], *kernel(taker.weight).shape[2:])
    products = conv2d_weight(image, shape, missing, **geometry(taker))
    moments.before = moments.before + torch.einsum("bip,bjp->ij", ahead, ahead)
    moments.mean = moments.mean + ahead.sum((0, 2))
    moments.missing = moments.missing + products.transpose(0, 1).flatten(1)


def place(
    space: Space, dense: nn.Module, group: Between, moments: Moments, before: Tensor, after: Tensor
) -> list[tuple[nn.Parameter, tuple[Tensor, ...], Tensor]]:
    """Writes the incoming weights of a group's newborn filters into the dense model, and what their norm needs.

    Returns:
        where its outgoing weights go, and what they are at an amplitude of 1.
    """
    filters = space.groups[group.number].structures
    born = torch.nonzero((after & ~before)[filters]).flatten()
    makes, takes = (dense.get_parameter(f"{path}.weight") for path in (group.maker, group.taker))
    second, mean = moments.before / moments.count, moments.mean / moments.count
    incoming, outgoing = newborn_filters(second, moments.missing / moments.count, len(born))
    spread = (1 - (incoming @ mean).square()).clamp(min=1e-6).sqrt()
    if group.norm is None:  # half of the amplitude each, as in the paper
        half = outgoing.norm(dim=1, keepdim=True).sqrt()
        incoming, outgoing = incoming * half, outgoing / half
    born = born.to(makes.device)
    given = born[: len(incoming)]
    inputs, outputs = (
        kept_of(space, before, f"{path}.weight", dim).to(born) for path, dim in ((group.maker, 1), (group.taker, 0))
    )
    weight = makes.detach()
    weight[given] = 0  # from filters that are newborn themselves
    weight[given[:, None], inputs] = incoming.view(len(given), len(inputs), *weight.shape[2:])
    tensors = dense.state_dict()
    if f"{group.maker}.bias" in tensors:
        tensors[f"{group.maker}.bias"][given] = 0
    if group.norm is not None:
        passed = {"weight": spread, "bias": incoming @ mean, "running_mean": incoming @ mean, "running_var": spread**2}
        for key, values in passed.items():
            tensors[f"{group.norm}.{key}"][given] = values
    weight = takes.detach()
    weight[:, born] = 0  # to filters that are newborn themselves, and where there is nothing to follow
    columns = outgoing.view(len(given), len(outputs), *weight.shape[2:]).transpose(0, 1)
    return [(takes, (outputs[:, None], given), columns)]


def kept_of(space: Space, present: Tensor, name: str, dim: int) -> Tensor:
    """Places of the entries that an axis of the dense network keeps."""
    kept = space.kept(present, (name, dim))
    return torch.arange(space.shapes[name][dim]) if kept is None else kept


def set_outgoing(outgoing: list[tuple[nn.Parameter, tuple[Tensor, ...], Tensor]], amplitude: float) -> None:
    """Writes outgoing weights at an amplitude."""
    for parameter, places, values in outgoing:
        parameter.detach()[places] = amplitude * values


class Tiny(Growth):
    """Widen where the gradient asks for what the network cannot express."""

    name = "tiny"
    summary = "newborn filters in closed form, from the part of the gradient that the weights there cannot follow"
    citation = "Verbockhaven et al., Growing Tiny Networks, arXiv 2405.19816"
    Settings = Settings
    Callback = Expressive

    def skip(self, task: Task, network: nn.Module) -> str | None:
        """Networks without a group between two layers that it can be solved for."""
        space = discover(network, task.example().to(next(network.parameters()).device))
        if len(between(space, network)) >= max(1, SERVED * len(space.groups)):
            return None
        return "hardly a filter is made by one plain layer and taken in by one, as its closed form needs"
