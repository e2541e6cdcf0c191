"""Provable filter pruning (PFP): layers keep as many filters as bound the error of what is computed from them.

Liebenwein, Baykal, Lang, Feldman, Rus, *Provable Filter Pruning for Efficient Neural Networks*, ICLR 2020 (arXiv
1911.07412). A filter's sensitivity is the largest share that its feature map has, over a few samples, places and the
next layer's outputs, of what an output sums up; positive and negative weights apart. If m filters are drawn with
probabilities in proportion and reweighted, the sum is off by more than a share epsilon with a probability below delta,
provided m >= K (6 + 2 epsilon) S log(8 (places + 1) kernel / delta) / epsilon^2, S being the sum of sensitivities. One
epsilon for all layers, found by bisection, meets the budget; a layer keeps as many filters as m draws give on average.
By default those with the highest sensitivities stay, unweighted, as in all published recipes (lucaslie/torchprune,
``PFPNet``); ``choice=sampled`` draws them and ``mixed`` draws those alone that are not sure to be drawn.

Published: K = 3, delta = 1e-16, K log(8 eta* eta / delta) samples (eta filters in all, eta* in the widest layer);
pruning and a whole retraining in turn. Ours: a feature map that several layers take in counts with the largest of its
sensitivities; a map's share is that of its whole kernel (their code: of one entry); constant factors of the bound,
which the bisection takes up; the samples are of the training split.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasbench_grow import Space, UserError, select
from nasbench_grow.contract import ElasticModel, Job, PruneAndTune, RoundsSettings, Task, check_choices

Choice = Literal["deterministic", "sampled", "mixed"]

K = 3.0
"""By how much a sensitivity may be larger than it was on the samples (the paper's assumption on its distribution)."""
Layer = nn.Conv2d | nn.Linear
CHUNK = 2**22
"""Shares of outputs, one a feature map, that are held at a time."""


@dataclass(frozen=True)
class ProvableSettings(RoundsSettings):
    """When it is pruned, with what probability of failure, and which filters stay."""

    failure: float = 1e-16
    """The probability delta with which the bound on the error may fail."""
    choice: Choice = "deterministic"
    """``deterministic``: the most sensitive filters stay. ``sampled``: filters are drawn and reweighted. ``mixed``:
    those that are drawn at least once on average stay, the others are drawn."""

    def __post_init__(self) -> None:
        """Refuses a setting outside its range with a UserError."""
        super().__post_init__()
        check_choices(self, choice=Choice)
        if not 0 < self.failure < 1:
            raise UserError(f"failure {self.failure:g} is out of range: it is a probability, 0 < failure < 1")


def shares(layer: Layer, inputs: Tensor) -> tuple[Tensor, int, int]:
    """The largest share of any output that each of a layer's inputs has, as it is called now.

    Args:
        layer: a convolution or linear layer.
        inputs: what it takes in, (B, C, H, W) or (..., C). Positive and negative parts count apart, as weights do.

    Returns:
        shape (C,), each between 0 and 1; the number of places at which outputs are computed; the MACs spent.
    """
    signed = bool((inputs < 0).any())
    parts = torch.cat([inputs.clamp(min=0), inputs.neg().clamp(min=0)]) if signed else inputs
    if isinstance(layer, nn.Conv2d):
        weight = layer.weight
        compute = partial(F.conv2d, stride=layer.stride, padding=layer.padding, dilation=layer.dilation)
    else:  # a linear layer is a convolution at one place
        weight = layer.weight[:, :, None, None]
        parts = parts.reshape(-1, parts.shape[-1], 1, 1)
        compute = partial(F.conv2d, stride=1)
    channels, found, spent, places = parts.shape[1], parts.new_zeros(parts.shape[1]), 0, 1
    for kernel in (weight.clamp(min=0), weight.neg().clamp(min=0)):
        whole = compute(parts, kernel)
        places = whole.shape[-1] * whole.shape[-2]
        whole = torch.where(whole > torch.finfo(whole.dtype).eps, whole, torch.inf)
        spent += 2 * whole.numel() * kernel[0].numel()  # once for the sums, once for their terms
        step = max(1, CHUNK // whole.numel())
        for start in range(0, channels, step):
            some = slice(start, min(start + step, channels))
            number = some.stop - some.start
            # each input channel on its own, through each output's kernel: (B, number * outputs, H, W)
            alone = kernel[:, some].transpose(0, 1).reshape(-1, 1, *kernel.shape[2:])
            terms = compute(parts[:, some], alone, groups=number)
            terms = terms.view(len(parts), number, *whole.shape[1:]) / whole[:, None]
            found[some] = torch.maximum(found[some], terms.amax((0, 2, 3, 4)))
    return found, places, spent


@dataclass
class Sensitivities:
    """Of the filters, and what their layers' bounds depend on.

    Attributes:
        values: shape (structures,), float64: zero for layers and where nothing takes a filter in.
        terms: of each group, the sums that its filters enter: places x kernel entries, over all layers that take it in.
    """

    values: Tensor
    terms: list[int]


def consumers(space: Space, network: nn.Module) -> dict[str, Layer]:
    """The layers that take filters in, by the names of the weights that do."""
    weights = {f"{name}.weight": module for name, module in network.named_modules() if isinstance(module, Layer)}
    return {name: weights[name] for name, _ in space.consumers if name in weights}


def sensitivities(job: Job, model: ElasticModel, samples: int) -> Sensitivities:
    """Measured on training samples, which are billed as calibration, with all that is computed beside the network."""
    space, network = model.space, model.network
    device = job.example.device
    found = Sensitivities(torch.zeros(len(space), dtype=torch.float64, device=device), [0] * len(space.groups))
    uses, counted = consumers(space, network), set[str]()

    def note(name: str, layer: Layer, args: tuple[Any, ...]) -> None:
        each, places, spent = shares(layer, args[0].detach().float())
        with job.meter.spending_on("calibration"):
            job.meter.add(spent)
        owner = space.owners[name, 1]
        kept = space.kept(model.structures, (name, 1))
        owner = (owner if kept is None else owner[kept]).to(each.device)
        owned = owner >= 0
        found.values.scatter_reduce_(0, owner[owned], each[owned].double(), "amax")
        if name not in counted:
            counted.add(name)
            kernel = layer.weight[0, 0].numel()
            for index, group in enumerate(space.groups):
                if ((owner >= group.start) & (owner < group.start + group.size)).any():
                    found.terms[index] += (places + 1) * kernel

    training = network.training
    network.eval()
    with torch.no_grad():
        for inputs, _ in job.calibrate(network, samples):
            # hooked only now: the network has also been run to be billed
            hooks = [layer.register_forward_pre_hook(partial(note, name)) for name, layer in uses.items()]
            network(inputs)
            for hook in hooks:
                hook.remove()
    network.train(training)
    return found


def draws_for(probabilities: Tensor) -> Tensor:
    """How many draws give more than 0, 1, 2, ... different filters on average: shape (filters,), float64.

    Infinite where filters of probability zero would be needed. Solved by bisection on the expectation, the sum over
    filters of 1 - (1 - p)^m.
    """
    missing = torch.log1p(-probabilities.double())
    wanted = torch.arange(len(probabilities), dtype=torch.float64)
    low, high = torch.full_like(wanted, -20.0), torch.full_like(wanted, 40.0)  # logarithms of m
    for _ in range(60):
        middle = (low + high) / 2
        expected = -torch.expm1(middle.exp()[:, None] * missing).sum(1)
        low, high = torch.where(expected > wanted, low, middle), torch.where(expected > wanted, middle, high)
    return high.exp().masked_fill(high > 39.9, torch.inf)


def error_of(draws: Tensor, total: float, terms: int, failure: float) -> Tensor:
    """The relative error epsilon that so many draws bound: m epsilon^2 = K (6 + 2 epsilon) S log(8 terms / delta)."""
    factor = K * total * math.log(8 * max(1, terms) / failure)
    return (factor + (factor**2 + 6 * draws * factor).sqrt()) / draws


def drawn(probabilities: Tensor, width: int, sure: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draws filters with replacement until there are ``width`` different ones.

    Draws arrive like a Poisson process: a filter's first after an exponentially distributed time of rate p. At the time
    t of the last first arrival a filter has been drawn n times, and its weight is n / (t p), 1 on average.

    Args:
        probabilities: shape (filters,).
        width: different filters wanted.
        sure: bool, shape (filters,): filters that stay without being drawn, with a weight of 1; at most ``width``.
        generator: of the random numbers.

    Returns:
        which filters stay (bool) and their weights, each of shape (filters,); weights of others are zero.
    """
    kept, weights = sure.clone(), sure.double()
    wanted = width - int(sure.sum())
    if wanted:
        rates = probabilities.double().masked_fill(sure, 0)
        rates = rates / rates.sum().clamp(min=1e-300)
        first = torch.empty_like(rates).exponential_(generator=generator) / rates.clamp(min=1e-300)
        first = first.masked_fill(sure, torch.inf)
        last, chosen = first.topk(wanted, largest=False)
        time = last.max()
        more = torch.poisson((rates * (time - first))[chosen].clamp(min=0), generator=generator)
        kept[chosen] = True
        weights[chosen] = (1 + more) / (time * rates[chosen].clamp(min=1e-300))
    return kept, weights


class Provable(PruneAndTune):
    """Train, prune with a bound on every layer's error, fine-tune."""

    name = "provable"
    summary = "train dense, prune each layer as far as a bound on its relative error allows, fine-tune"
    citation = "Liebenwein et al., Provable Filter Pruning for Efficient Neural Networks, arXiv 1911.07412"
    Settings = ProvableSettings

    def skip(self, task: Task, network: nn.Module) -> str | None:
        """Its bound is of sums that it can see."""
        if any(isinstance(module, nn.RNNBase) for module in network.modules()):
            return "its bound is of convolutions and linear layers, and here recurrent layers take filters in"
        return None

    def samples(self, space: Space) -> int:
        """How many samples measure sensitivities: K log(8 eta* eta / delta)."""
        widest = max((group.size for group in space.groups), default=1)
        return math.ceil(K * math.log(8 * widest * space.filters / self.settings.failure))

    def prune(self, job: Job, model: ElasticModel, limit: float) -> None:
        """Removes filters so that one bound on the relative error of every layer meets the limit."""
        space = model.space
        found = sensitivities(job, model, self.samples(space))
        values = found.values.cpu().clamp(min=1e-12).masked_fill(~model.structures, 0)
        keys = torch.full((len(space),), torch.inf, dtype=torch.float64)
        keys[: space.filters] = -torch.inf
        for group, terms in zip(space.groups, found.terms, strict=True):
            here = values[group.structures]
            order = here.argsort(descending=True, stable=True)[: int((here > 0).sum())]
            probabilities = here[order] / here.sum()
            errors = error_of(draws_for(probabilities), float(here.sum()), terms, self.settings.failure)
            keys[group.start + order] = errors  # a filter stays if the error without it would be larger
        present = select(space, keys, limit, job.granularity)
        weights = self.choose(job, model, values, present)
        model.resize(present)
        reweigh(model, weights)

    def choose(self, job: Job, model: ElasticModel, values: Tensor, present: Tensor) -> Tensor:
        """Puts filters that were drawn in the place of the most sensitive ones, where that is wanted.

        Returns:
            the filters' weights, shape (structures,).
        """
        weights = torch.ones(len(model.space), dtype=torch.float64)
        if self.settings.choice == "deterministic":
            return weights
        generator = torch.Generator().manual_seed(job.seed)
        for group in model.space.groups:
            here, width = values[group.structures], int(present[group.structures].sum())
            probabilities = here / here.sum()
            sure = torch.zeros(group.size, dtype=torch.bool)
            if width == int((here > 0).sum()):
                sure = here > 0  # nothing is left to be drawn
            elif self.settings.choice == "mixed":
                draws = draws_for(probabilities.sort(descending=True).values)[width - 1]
                sure = present[group.structures] & (probabilities * draws >= 1)
            present[group.structures], weights[group.structures] = drawn(probabilities, width, sure, generator)
        return weights


@torch.no_grad()
def reweigh(model: ElasticModel, weights: Tensor) -> None:
    """Multiplies what takes in each filter by the filter's weight, shape (structures,)."""
    for name, layer in consumers(model.space, model.network).items():
        owner = model.space.owners[name, 1]
        kept = model.space.kept(model.structures, (name, 1))
        owner = owner if kept is None else owner[kept]
        factors = torch.where(owner >= 0, weights[owner.clamp(min=0)], 1.0)
        layer.weight.mul_(factors.to(layer.weight).view(-1, *[1] * (layer.weight.ndim - 2)))
