"""GradMax: newborn filters change nothing at birth, and start where the gradient of their weights is largest.

Evci, van Merrienboer, Unterthiner, Pedregosa, Vladymyrov, *GradMax: Growing Neural Networks using Gradient
Information*, ICLR 2022 (arXiv 2201.05125). Between two layers, the gradient of the loss by the weights of an auxiliary
layer that bypasses both is a matrix M of (what the second gives out) x (what the first takes in). Theirs: what a
newborn filter takes in is zero, and its outgoing weights are the largest left singular vectors of M, by which the
gradient of the incoming ones is largest where the activation is linear at zero. Their networks have no normalisation
there, and batch normalisation, which all backbones here have, divides a filter of zeros by its deviation, zero. So the
two change places: outgoing weights are zero, and the incoming ones v are those with the largest gradient of these, M v,
under the same approximation and at the same variance v' C v, as the norm gives every filter; they are the largest right
singular vectors of M after whitening by the covariance C of what comes in; ours. Published (their code, CIFAR): a
quarter of the width, 12 steps every 2,500 from step 10,000 of 78,125, each by a quarter of the first width, on a batch
of 128, at half the mean norm. As there, filters that are not between two layers of a kind (those of residual streams,
too) start at random, here with outgoing zeros.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasbench_grow import Space
from nasbench_grow.contract import (
    ElasticModel,
    Growth,
    GrowthSettings,
    Job,
    Task,
    Widening,
    check_positive,
    scale_consumers,
)

RIDGE = 0.01
"""Share of the mean variance that is added to every input's, lest those that hardly vary decide."""


@dataclass(frozen=True)
class GradMaxSettings(GrowthSettings):
    """The published schedule, and how newborn filters start."""

    steps: int = 12
    begin: float = 0.096
    growth: float = 0.384
    scale: float = 0.5
    """Norm of what a newborn filter takes in, as a share of the mean of those that are there."""
    samples: int = 128
    """Training samples whose gradient is taken at a growth step."""

    def __post_init__(self) -> None:
        """Refuses a setting outside its range with a UserError."""
        super().__post_init__()
        check_positive(self, "scale", "samples")


class Between(NamedTuple):
    """The filters of a group, and the two layers that they are between."""

    group: int
    """Number of the channel group."""
    first: str
    """Name of the one layer that makes them."""
    second: str
    """Name of the one layer that takes them in."""
    normalised: bool
    """Whether a batch normalisation is between the two."""
    depthwise: tuple[str, ...]
    """Names of depthwise convolutions between the two."""


class Maximising(Widening):
    """Starts newborn filters where their gradient is largest."""

    settings: GradMaxSettings

    def start(self, model: ElasticModel, before: Tensor, after: Tensor) -> None:
        """Sets what newborn filters take in by the singular value decomposition; nothing heeds them yet."""
        space, born = model.space, after & ~before
        places = [place for place in between(space, model.dense) if born[space.groups[place.group].structures].any()]
        found = auxiliary_gradients(self.job, model, places, self.settings.samples) if places else []
        for place, (gradient, covariance) in zip(places, found, strict=True):
            filters = space.groups[place.group].start + torch.nonzero(born[space.groups[place.group].structures])
            vectors = incoming(gradient, covariance, len(filters))
            set_incoming(model, place, filters.flatten(), vectors, self.settings.scale)
        scale_consumers(model, 1.0 - born.float(), after)


def between(space: Space, dense: nn.Module) -> list[Between]:
    """The groups whose filters one convolution makes and one other takes in alone, or two linear layers."""
    makers: dict[int, list[str]] = defaultdict(list)
    takers: dict[int, list[str]] = defaultdict(list)
    depthwise: dict[int, list[str]] = defaultdict(list)
    normalised, taken_in = set(), set(space.consumers)
    weights = dict(dense.named_parameters())
    group_of = torch.repeat_interleave(torch.tensor([group.size for group in space.groups]))
    for (name, dim), owner in space.owners.items():
        path = name.rpartition(".")[0]
        module, groups = dense.get_submodule(path), group_of[owner[owner >= 0]].unique().tolist()
        whole = len(groups) == 1 and bool((owner >= 0).all())  # else its channels are several groups', side by side
        for group in groups:
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                normalised.add(group)
            elif isinstance(module, nn.Conv2d) and module.groups > 1:
                depthwise[group].append(path)
            elif name in weights and weights[name].ndim > 1:
                (takers if (name, dim) in taken_in else makers)[group].append(path if whole else "")
    found = []
    for group in range(len(space.groups)):
        if len(makers[group]) == len(takers[group]) == 1 and makers[group] != [""] and takers[group] != [""]:
            first, second = makers[group][0], takers[group][0]
            layers = dense.get_submodule(first), dense.get_submodule(second)
            if type(layers[0]) is type(layers[1]) and isinstance(layers[0], (nn.Conv2d, nn.Linear)):
                between_them = tuple(dict.fromkeys(depthwise[group]))
                found.append(Between(group, first, second, group in normalised, between_them))
    return found


def auxiliary_gradients(
    job: Job, model: ElasticModel, places: list[Between], samples: int
) -> list[tuple[Tensor, Tensor | None]]:
    """What :func:`auxiliary_gradient` gives for each place, summed over training samples."""
    network, total = model.network, list[tuple[Tensor, Tensor | None]]()
    for inputs, targets in job.calibrate(network, samples, backward=True):
        taken, pulls = watch(network, places, lambda: job.loss(network(inputs), targets).backward())  # noqa: B023
        found = []
        for place in places:
            layers = network.get_submodule(place.first), network.get_submodule(place.second)
            inside, pull = taken[place.second].shape, pulls[place.second]
            found.append(auxiliary_gradient(*layers, taken[place.first], inside, pull, normalised=place.normalised))
        total = [_added(*pair) for pair in zip(total, found, strict=True)] if total else found
    network.zero_grad(set_to_none=True)
    return total


def _added(one: tuple[Tensor, Tensor | None], other: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor | None]:
    """The sums of two pairs of a gradient and a covariance, if there is one."""
    return one[0] + other[0], None if one[1] is None or other[1] is None else one[1] + other[1]


def watch(
    network: nn.Module, places: list[Between], train: Callable[[], None]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What the layers around some filters take in, and the gradient by what the second ones give out, while ``train``
    runs the network and its backward pass; by the layers' names."""
    taken: dict[str, Tensor] = {}
    pulls: dict[str, Tensor] = {}

    def keep(name: str, _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        taken[name] = inputs[0].detach()
        output.register_hook(lambda gradient: pulls.update({name: gradient.detach()}))

    names = {place.first for place in places} | {place.second for place in places}
    hooks = [network.get_submodule(name).register_forward_hook(partial(keep, name)) for name in sorted(names)]
    train()
    for hook in hooks:
        hook.remove()
    return taken, pulls


def auxiliary_gradient(
    first: nn.Module, second: nn.Module, inputs: Tensor, shape: torch.Size, gradient: Tensor, *, normalised: bool
) -> tuple[Tensor, Tensor | None]:
    """The gradient by the auxiliary layer (section 3): M, by which M v is the gradient of the outgoing weights of a
    linear filter with incoming weights v.

    Args:
        first, second: two convolutions, or two linear layers.
        inputs: of the first.
        shape: of the input of the second.
        gradient: of the loss, by the output of the second.
        normalised: whether the filter loses its mean on the way.

    Returns:
        M, shape (outputs of the second x its kernel, inputs of the first x its kernel), and if ``normalised`` the
        covariance C of the latter. Where the second has an input of another height and width than the first an output,
        by pooling or strides in between, means of the filter stand for it.
    """
    if isinstance(first, nn.Linear):
        rows = inputs.flatten(0, -2)
        rows = rows - rows.mean(0) if normalised else rows
        return gradient.flatten(0, -2).T @ rows, rows.T @ rows / len(rows) if normalised else None
    assert isinstance(first, nn.Conv2d) and isinstance(second, nn.Conv2d)
    size = [
        (length + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
        for length, pad, dilation, kernel, stride in zip(
            inputs.shape[2:], _padding(first), first.dilation, first.kernel_size, first.stride, strict=True
        )
    ]
    patches = F.unfold(inputs, first.kernel_size, first.dilation, _padding(first), first.stride).unflatten(2, size)
    covariance = None
    if normalised:
        patches = patches - patches.mean((0, 2, 3), keepdim=True)
        covariance = torch.einsum("nihw,njhw->ij", patches, patches) / (len(patches) * size[0] * size[1])
    if patches.shape[2:] != shape[2:]:
        patches = F.adaptive_avg_pool2d(patches, (shape[2], shape[3]))
    (high, wide), (down, right) = _padding(second), second.stride
    patches = F.pad(patches, (wide, wide, high, high))
    height, width = gradient.shape[2:]
    parts = []
    for y in range(second.kernel_size[0]):
        for x in range(second.kernel_size[1]):
            top, left = y * second.dilation[0], x * second.dilation[1]
            heeded = patches[:, :, top : top + down * height : down, left : left + right * width : right]
            parts.append(torch.einsum("nohw,nihw->oi", gradient, heeded[..., :height, :width]))
    return torch.stack(parts, 1).flatten(0, 1), covariance


def _padding(module: nn.Conv2d) -> tuple[int, int]:
    """Zeros on each side of the input of a convolution."""
    if isinstance(module.padding, str):
        same = [
            dilation * (kernel - 1) // 2 for dilation, kernel in zip(module.dilation, module.kernel_size, strict=True)
        ]
        return (same[0], same[1]) if module.padding == "same" else (0, 0)
    return module.padding  # type: ignore[return-value]


def incoming(gradient: Tensor, covariance: Tensor | None, filters: int) -> Tensor:
    """Incoming weights of length 1 by which the gradient of the outgoing ones is largest.

    Args:
        gradient: M, shape (rows, columns).
        covariance: C, shape (columns, columns): the variance of each filter, v' C v, is the same, and they are
            uncorrelated. None: their length is, and they are orthogonal.
        filters: how many are wanted.

    Returns:
        shape (filters or as many as M can tell apart, columns), the largest first. Of the two signs the one with a sum
        above zero, as what comes in is seldom negative.
    """
    pulls = gradient.double().T
    if covariance is not None:
        ridge = RIDGE * covariance.diagonal().mean().double().clamp(min=1e-12)
        root = torch.linalg.cholesky(covariance.double() + ridge * torch.eye(len(covariance)).to(pulls))
        pulls = torch.linalg.solve_triangular(root, pulls, upper=False)
    vectors = torch.linalg.eigh(pulls @ pulls.T).eigenvectors.flip(1)[:, : min(filters, *gradient.shape)]  # by size
    if covariance is not None:
        vectors = torch.linalg.solve_triangular(root.T, vectors, upper=True)
    vectors = F.normalize(vectors.T, dim=1).to(gradient)
    return vectors * torch.where(vectors.sum(1, keepdim=True) < 0, -1.0, 1.0)


def set_incoming(model: ElasticModel, place: Between, filters: Tensor, vectors: Tensor, scale: float) -> None:
    """Gives newborn filters their incoming weights, ``scale`` times as long as the mean of those that are there; what
    is depthwise in between passes them on.

    Args:
        model: in the middle of a growth step.
        place: of the filters.
        filters: their numbers; those beyond the vectors keep their initial weights.
        vectors: shape (at most filters, present inputs of the first layer x its kernel).
        scale: share of the mean norm.
    """
    space = model.space
    filters = filters[: len(vectors)]
    present = model.network.get_submodule(place.first).get_parameter("weight").detach()
    norm = present.flatten(1).norm(dim=1).mean()
    weight = model.dense.get_parameter(f"{place.first}.weight").detach()
    rows = _entries(space, (f"{place.first}.weight", 0), filters).to(weight.device)
    kept = space.kept(model.structures, (f"{place.first}.weight", 1))
    columns = torch.arange(weight.shape[1]) if kept is None else kept
    weight[rows[:, None], columns.to(weight.device)] = (scale * norm * vectors).view(len(rows), *present.shape[1:])
    bias = model.dense.get_submodule(place.first)._parameters.get("bias")
    if bias is not None:
        bias.detach()[rows] = 0
    for name in place.depthwise:
        weight = model.dense.get_parameter(f"{name}.weight").detach()
        rows = _entries(space, (f"{name}.weight", 0), filters).to(weight.device)
        weight[rows] = 0
        weight[rows, :, weight.shape[2] // 2, weight.shape[3] // 2] = 1


def _entries(space: Space, axis: tuple[str, int], filters: Tensor) -> Tensor:
    """The entry of each filter on an axis where each has one."""
    owner = space.owners[axis]
    order = torch.argsort(owner, stable=True)
    return order[torch.searchsorted(owner[order], filters)]


class GradMax(Growth):
    """Widens where gradients are largest."""

    name = "gradmax"
    summary = "widths rise by schedule; newborn filters change nothing and have the largest gradient (by an SVD)"
    citation = "Evci et al., GradMax: Growing Neural Networks using Gradient Information, arXiv 2201.05125"
    Settings = GradMaxSettings
    Callback = Maximising

    def skip(self, task: Task, network: nn.Module) -> str | None:
        """Networks without convolutions."""
        found = any(isinstance(module, nn.Conv2d) for module in network.modules())
        return None if found else "the backbone has no two convolutions between which filters could be grown"
