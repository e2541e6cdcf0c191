"""Net2Net: a small network becomes a wider and deeper one that computes the same, and goes on training.

Chen, Goodfellow, Shlens, *Net2Net: Accelerating Learning via Knowledge Transfer*, ICLR 2016 (arXiv 1511.05641).
Net2WiderNet: a newborn filter copies one that is drawn at random, and whatever takes in the two divides
by their number; a little noise on the copies breaks the symmetry. Net2DeeperNet: a layer joins as the
identity, its normalisation with the scale and shift that undo it on some training samples. A residual block joins as
the identity too where its last normalisation has a scale of zero, an idea younger than the paper; its own filters are
then random. Theirs is one step, from a teacher that is trained to the end, to a student that trains at a tenth of the
rate. Ours: the schedule, which is that of ``grow``, the recipe's rates throughout, how much noise there is, and which
layers join later: of each stage the second half.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from nasbench_grow import Space, UserError
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
class Net2NetSettings(GrowthSettings):
    """The schedule, the depth of the first network, and how copies start."""

    seed_layers: float = 0.5
    """Share of the removable layers of each stage that the first network has, rounded up; 1: it only becomes wider. The
    others join evenly over the growth steps."""
    noise: float = 0.01
    """Standard deviation of the noise on the weights that make a copy, as a share of that of each weight tensor."""
    samples: int = 256
    """Training samples from which the normalisation of a plain layer that joins is set."""

    def __post_init__(self) -> None:
        """Refuses a setting outside its range with a UserError."""
        super().__post_init__()
        check_positive(self, "samples")
        if not 0 <= self.seed_layers <= 1:
            raise UserError(f"seed_layers {self.seed_layers:g} is out of range: it is a share, 0 <= seed_layers <= 1")
        if self.noise < 0:
            raise UserError(f"noise {self.noise:g} is out of range: give 0 or more")


class Morphing(Widening):
    """At each growth step first the layers that join, then the filters."""

    settings: Net2NetSettings

    def structures(self, space: Space, last: Tensor, share: float) -> Tensor:
        """The first filters of every group, and the first layers of every stage."""
        present = super().structures(space, last, share)
        seed = self.settings.seed_share
        grown = 1.0 if seed == 1 else (share - seed) / (1 - seed)
        for stage in space.stages():
            layers = stage[last[stage]]
            depth = self.settings.seed_layers + (1 - self.settings.seed_layers) * grown
            present[layers[-int(-depth * len(layers) // 1) :]] = False
        return present

    def grow(self, model: ElasticModel, present: Tensor) -> None:
        """Deeper at the widths that there are, then wider."""
        space, deeper = model.space, model.structures.clone()
        deeper[space.filters :] |= present[space.filters :]
        passed_on = space.resolved(model.structures)
        for index, layer in enumerate(space.layers):
            if not bool(deeper[space.filters + index] & ~model.structures[space.filters + index]):
                continue
            if layer.bypass is not None:
                group = space.groups[layer.bypass[1]]
                deeper[group.structures] = passed_on[group.structures]  # as many channels as have passed
                continue
            for group in space.groups:
                if group.layer == index:
                    deeper[group.structures] = present[group.structures]
        model.resize(deeper, self.start_layers)
        model.resize(present, self.start)

    def start_layers(self, model: ElasticModel, before: Tensor, after: Tensor) -> None:
        """Newborn layers are the identity (Net2DeeperNet)."""
        space = model.space
        joining = [layer for index, layer in enumerate(space.layers) if (after & ~before)[space.filters + index]]
        plain = [layer.paths for layer in joining if layer.bypass is not None]
        statistics = moments(self.job, model, [paths[0] for paths in plain], self.settings.samples) if plain else []
        for layer in joining:
            for name in layer.terminal:
                model.dense.get_parameter(name).detach().zero_()
        for paths, (mean, variance) in zip(plain, statistics, strict=True):
            pass_through([model.dense.get_submodule(path) for path in paths], mean, variance)

    def start(self, model: ElasticModel, before: Tensor, after: Tensor) -> None:
        """Newborn filters copy others (Net2WiderNet)."""
        space = model.space
        origin = copied_from(space, before, after, self.job.seed)
        copies = torch.bincount(origin[space.resolved(after)], minlength=len(space))[origin]
        copy_filters(model, origin, after)
        scale_consumers(model, 1 / copies.clamp(min=1), after)
        self.add_noise(model, origin != torch.arange(len(space)), after)

    def add_noise(self, model: ElasticModel, copied: Tensor, present: Tensor) -> None:
        """Disturbs the weights that make the copied filters, shape (structures,), bool, from the global generator."""
        space = model.space
        for name, weight in model.dense.named_parameters():
            owner = space.owners.get((name, 0))
            if owner is None or weight.ndim < 2 or not space.layer_present(present, space.layer_of(name)):
                continue
            entries = torch.nonzero((owner >= 0) & copied[owner.clamp(min=0)]).flatten().to(weight.device)
            noise = torch.randn(len(entries), *weight.shape[1:]).to(weight) * weight.detach().std()
            weight.detach().index_add_(0, entries, self.settings.noise * noise)


def copied_from(space: Space, before: Tensor, after: Tensor, seed: int) -> Tensor:
    """Number of the filter that each one copies, shape (structures,): itself, or for a newborn one an older one of its
    group, drawn at random. Channels that an absent plain layer passes on copy as those of its input do."""
    draws = torch.Generator().manual_seed(seed + int(after.sum()))
    origin = torch.arange(len(space))
    for group in space.groups:
        old = group.start + torch.nonzero(before[group.structures]).flatten()
        born = group.start + torch.nonzero((after & ~before)[group.structures]).flatten()
        origin[born] = old[torch.randint(len(old), (len(born),), generator=draws)]
    for index, layer in enumerate(space.layers):
        if layer.bypass is not None and not space.layer_present(after, index):
            given, got = (space.groups[number] for number in layer.bypass)
            origin[got.structures] = origin[given.structures] - given.start + got.start
    return origin


def moments(job: Job, model: ElasticModel, paths: list[str], samples: int) -> list[tuple[Tensor, Tensor]]:
    """Mean and variance of the channels that pass each of these absent layers of the network, each shape (channels of
    the dense layer,): zero and one for channels that the network lacks."""
    sums: dict[str, list[Tensor]] = {path: [] for path in paths}

    def keep(path: str, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        value = inputs[0].detach().double()
        sums[path].append(torch.stack([value.mean((0, 2, 3)), value.square().mean((0, 2, 3))]))

    network = model.network
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    with torch.no_grad():
        for inputs, _ in job.calibrate(network, samples):
            hooks = [network.get_submodule(path).register_forward_pre_hook(partial(keep, path)) for path in paths]
            network(inputs)
            for hook in hooks:  # gone before more samples are asked for, as counting their MACs runs the network
                hook.remove()
    for module, mode in modes:
        module.training = mode
    result = []
    for path, found in sums.items():
        mean, square = torch.stack(found).mean(0)
        kept = model.space.kept(model.structures, (f"{path}.weight", 1))
        weight = model.dense.get_parameter(f"{path}.weight")
        whole = weight.new_zeros(weight.shape[1]), weight.new_ones(weight.shape[1])
        for full, part in zip(whole, (mean, square - mean.square()), strict=True):
            full[slice(None) if kept is None else kept.to(weight.device)] = part.to(weight)
        result.append(whole)
    return result


def pass_through(modules: list[nn.Module], mean: Tensor, variance: Tensor) -> None:
    """Makes a convolution and its normalisation, in training and in evaluation mode, pass on what comes in.

    Args:
        modules: a plain layer's; what is no convolution and no normalisation changes nothing that is not negative.
        mean, variance: of its input, each shape (channels,).
    """
    for module in modules:
        if isinstance(module, nn.Conv2d):
            nn.init.dirac_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            with torch.no_grad():
                module.weight.copy_((variance + module.eps).sqrt())
                module.bias.copy_(mean)
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.copy_(mean)
            module.running_var.copy_(variance)


class Net2Net(Growth):
    """Widens by copies and deepens by identities."""

    name = "net2net"
    summary = "widths and depth rise by schedule; newborn filters are copies, newborn layers the identity"
    citation = "Chen et al., Net2Net: Accelerating Learning via Knowledge Transfer, arXiv 1511.05641"
    Settings = Net2NetSettings
    Callback = Morphing
