"""Variance transfer: growing with the variances of a fixed network, and a learning rate for what joined at each stage.

Yuan, Savarese, Maire, *Accelerated Training via Incrementally Growing Neural Networks using Variance Transfer and
Learning Rate Adaptation*, NeurIPS 2023 (arXiv 2306.12700). Newborn filters come in pairs with the same incoming weights
V and opposite outgoing ones, Z and -Z, so that they cancel; both are random, with the variance that initialisation has
at the new width. Weights that take in more than before are multiplied by sqrt(C_t / C_t+1), C the number of inputs, by
C_t / C_t+1 in the output layer, and the running statistics of a normalisation that follows change with them. The
weights that joined at stage k learn at the recipe's rate times |W_k| / |W_0|, Frobenius norms within each layer. The
schedule is ours, as theirs was read only at second hand (nine stages, epochs that rise exponentially, 54.9 % of the
training MACs on ResNet-20): nine stages from a quarter of the width, each about a fifth wider and longer than the one
before, by which the hidden layers train for half. The factor of the output layer is a survey's. Ours, too: variances
are those of the backbone's own initialisation; a filter too many for a pair has outgoing zeros; norms and biases keep
the recipe's rate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nasbench_grow import Space
from nasbench_grow.contract import (
    ElasticModel,
    Growth,
    GrowthSettings,
    Job,
    Widening,
    check_positive,
    copy_filters,
    scale_consumers,
)


@dataclass(frozen=True)
class VarianceTransferSettings(GrowthSettings):
    """A schedule whose stages become wider and longer."""

    steps: int = 8
    growth: float = 0.793
    pace: float = 1.2
    """Length of a stage over that of the one before."""

    def __post_init__(self) -> None:
        """Refuses a setting outside its range with a UserError."""
        super().__post_init__()
        check_positive(self, "pace")

    def stages(self) -> list[tuple[float, float]]:
        """Geometric in the widths and, from the beginning of growth on, in time."""
        lengths = [self.pace**step for step in range(self.steps)]
        begins = [self.begin + self.growth * sum(lengths[:step]) / sum(lengths) for step in range(self.steps + 1)]
        widths = [self.seed_share ** (1 - step / self.steps) for step in range(self.steps + 1)]
        return list(zip([0.0, *begins[1:]], widths, strict=True))


class Input(NamedTuple):
    """A weight that takes in filters."""

    name: str
    dim: int
    """The axis of its inputs."""
    last: bool
    """Whether it is an output layer: what it gives out is no filter."""


class Transferring(Widening):
    """Transfers variances at every growth step, and gives each stage's weights a learning rate of their own."""

    def __init__(self, job: Job, model: ElasticModel, settings: VarianceTransferSettings) -> None:
        super().__init__(job, model, settings)
        space = model.space
        self.inputs = [Input(name, dim, (name, 0) not in space.owners) for name, dim in space.consumers]
        self.norms = norms_behind(job)
        self.born = len(self.networks) - torch.stack(self.networks).sum(0)
        """The stage at which each filter joins, shape (structures,); beyond the last one for those that never do."""
        self._births: tuple[nn.Module, dict[str, Tensor]] | None = None
        self._before: dict[str, Tensor] = {}
        for name, dim, _ in self.inputs:
            if (weight := dict(model.network.named_parameters()).get(name)) is not None:
                weight.detach().mul_(math.sqrt(len(space.owners[name, dim]) / weight.shape[dim]))

    def start(self, model: ElasticModel, before: Tensor, after: Tensor) -> None:
        """Rescales what was there and starts what is new (section 3.1)."""
        space = model.space
        for name, dim, last in self.inputs:
            first, old, new, dense = (
                entries(space, present, name, dim) for present in (self.networks[0], before, after, space.full())
            )
            factor = old / new if last else math.sqrt(old / new)
            fresh = math.sqrt(dense / first) * first / new if last else math.sqrt(dense / new)
            weight = model.dense.get_parameter(name).detach()
            factors = torch.ones_like(weight)
            factors[block(space, after, name, weight)] = fresh
            factors[block(space, before, name, weight)] = factor
            weight.mul_(factors)
            self.rescale_norm(model.dense, name.rpartition(".")[0], factor)
        origin, sign = pairs(space, before, after)
        copy_filters(model, origin, after)
        scale_consumers(model, sign, after)

    def rescale_norm(self, dense: nn.Module, layer: str, factor: float) -> None:
        """Gives the normalisation behind a layer the statistics of the rescaled outputs, biases apart."""
        if layer in self.norms:
            norm, bias = dense.get_submodule(self.norms[layer]), dense.get_submodule(layer)._parameters.get("bias")
            assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None
            shift = torch.zeros_like(norm.running_mean) if bias is None else bias.detach()
            norm.running_mean.sub_(shift).mul_(factor).add_(shift)
            norm.running_var.mul_(factor**2)

    def after_backward(self, model: ElasticModel) -> None:
        """Remembers the weights before the optimizer's step."""
        parameters = dict(model.network.named_parameters())
        self._before = {name: parameters[name].detach().clone() for name in self.births(model)}

    def after_step(self, model: ElasticModel) -> None:
        """Goes as far as each stage's learning rate says: the step times |W_k| / |W_0|."""
        parameters = dict(model.network.named_parameters())
        for name, births in self.births(model).items():
            weight, before = parameters[name].detach(), self._before[name]
            rates = relative_norms(before, births, len(self.networks))
            weight.sub_(before).mul_(rates[births]).add_(before)
        self._before = {}

    def births(self, model: ElasticModel) -> dict[str, Tensor]:
        """The stage at which every entry joined, of the weights in which not all did at the first; of their shapes."""
        if self._births is None or self._births[0] is not model.network:
            found = {}
            for name, weight in model.network.named_parameters():
                births = torch.zeros(weight.shape, dtype=torch.long)
                for dim in range(weight.ndim):
                    owner = model.space.owners.get((name, dim))
                    kept = model.space.kept(model.structures, (name, dim))
                    if owner is not None and kept is not None:
                        stage = torch.where(owner[kept] >= 0, self.born[owner[kept].clamp(min=0)], 0)
                        births = torch.maximum(births, stage.view(-1, *[1] * (weight.ndim - 1 - dim)))
                if weight.ndim > 1 and births.any():
                    found[name] = births.to(weight.device)
            self._births = model.network, found
        return self._births[1]


def relative_norms(weight: Tensor, births: Tensor, stages: int) -> Tensor:
    """The Frobenius norm of the entries of each stage over that of the first, shape (stages,): 1 where it has none."""
    squares = weight.new_zeros(stages).index_add(0, births.flatten(), weight.square().flatten())
    return torch.where(squares[0] > 0, (squares / squares[0]).sqrt(), 1.0)


def entries(space: Space, present: Tensor, name: str, dim: int) -> int:
    """Length of an axis in the sub-network of ``present``, shape (structures,)."""
    kept = space.kept(present, (name, dim))
    assert kept is not None
    return len(kept)


def block(space: Space, present: Tensor, name: str, weight: Tensor) -> tuple[Tensor, ...]:
    """Index of the entries of a dense weight that the sub-network of ``present`` has."""
    kept = [space.kept(present, (name, dim)) for dim in range(weight.ndim)]
    lengths = zip(kept, weight.shape, strict=True)
    index = [torch.arange(length) if each is None else each for each, length in lengths]
    return torch.meshgrid(*(each.to(weight.device) for each in index), indexing="ij")


def pairs(space: Space, before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """For newborn filters in pairs, the number of the one that each filter copies, and by what its outgoing weights are
    multiplied: -1 for the second of a pair, 0 for one that is left over. Both of shape (structures,)."""
    origin, sign = torch.arange(len(space)), torch.ones(len(space))
    for group in space.groups:
        born = group.start + torch.nonzero((after & ~before)[group.structures]).flatten()
        second = born[1::2]
        origin[second], sign[second] = born[::2][: len(second)], -1.0
        sign[born[2 * len(second) :]] = 0.0
    return origin, sign


def norms_behind(job: Job) -> dict[str, str]:
    """Names of the convolutions that a batch normalisation follows directly, and of that one."""
    network, made, found = job.build().eval(), dict[int, tuple[str, Tensor]](), dict[str, str]()

    def keep(name: str, _: nn.Module, inputs: object, output: Tensor) -> None:
        made[id(output)] = name, output  # alive, lest another tensor has its identity

    def look(name: str, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if id(inputs[0]) in made:
            found[made[id(inputs[0])][0]] = name

    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(partial(keep, name))
        elif isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(partial(look, name))
    with torch.no_grad():
        network(job.example)
    return found


class VarianceTransfer(Growth):
    """Widens by pairs that cancel, with variances and learning rates that suit the width."""

    name = "variance_transfer"
    summary = (
        "widths rise by schedule; newborn pairs cancel, variances are transferred, each stage has its learning rate"
    )
    citation = "Yuan et al., Accelerated Training via Incrementally Growing Neural Networks, arXiv 2306.12700"
    Settings = VarianceTransferSettings
    Callback = Transferring
