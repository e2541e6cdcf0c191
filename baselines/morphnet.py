"""MorphNet: filters pay for their MACs, those that are not worth it die, the widths left are expanded to the budget.

Gordon, Eban, Nachum, Chen, Wu, Yang, Choi, *MorphNet: Fast & Simple Resource-Constrained Structure Learning of Deep
Networks*, CVPR 2018 (arXiv 1711.06798). While the dense network trains, the scale of each filter's batch normalisation
is priced by the MACs that the filter costs beside the neighbours alive; of coupled filters the largest scale pays, and
they die together. Alive is what is above ``threshold``; a block with nothing alive is gone. All widths are then
multiplied by the one factor that meets the budget, beyond the dense network's if need be, and that network is trained
from scratch by the whole recipe. Published in their code: the regulariser, the largest scale, thresholds of 0.01 and
0.001, prices to be searched over orders of magnitude around one over the dense network's cost.

Ours: the price is set by how far it would move a scale in the whole search, so that it depends neither on the length of
the run nor on the size of the network; the search goes through the beginning of the recipe's schedule (they advise a
constant rate) and ends as soon as what is alive costs ``shrunk`` of the budget; there is one round of shrinking and
expanding, and at least one filter of each group lives. The search leaves out the search split and is billed on top. At
a ``strength`` of 1 hardly a filter dies, and what comes out is uniform width; 16 was chosen on validation.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nasbench_grow import Space, discover, extract, select, widen
from nasbench_grow.baselines.slimming import Scales, reach, without_scales
from nasbench_grow.contract import Callback, ElasticModel, Job, Method, Run, Stage, Task, check_positive, check_share

UPDATES = 20
"""How often in an epoch prices follow the filters alive."""


class Shrinking(Callback):
    """Prices scales by MACs.

    Args:
        model: the dense one, to be searched.
        strength: what a scale of one costs, of a filter of average price in the dense network.
        threshold: of scales; what is above is alive.
        target: MACs at which the filters alive are kept in ``found``.
    """

    def __init__(self, model: ElasticModel, strength: float, threshold: float, target: float) -> None:
        self.strength, self.threshold, self.target = strength, threshold, target
        self.found: Tensor | None = None
        self.scales = Scales(model)
        self.unit = float(model.space.marginal_macs(model.space.full())[self.scales.there].mean())

    def alive(self, model: ElasticModel) -> Tensor:
        """The structures alive, shape (structures,), bool: filters, of each group at least one, and layers."""
        space, scales = model.space, self.scales.largest().detach().cpu()
        alive = (scales > self.threshold) | ~self.scales.there
        for group in space.groups:
            if not alive[group.structures].any():
                alive[group.start + int(scales[group.structures].argmax())] = True
                if group.layer is not None and space.layers[group.layer].bypass is None:
                    alive[space.filters + group.layer] = False
        return alive

    def before_step(self, model: ElasticModel, step: int, steps: int) -> None:
        """Prices follow the filters alive."""
        if step % max(1, steps // UPDATES) == 0:
            alive = self.alive(model)
            prices = self.strength / self.unit * model.space.marginal_macs(alive)
            self.prices = prices.to(model.example.device, torch.float32)
            if self.found is None and model.space.macs(alive) <= self.target:
                self.found = alive

    def penalty(self, model: ElasticModel) -> Tensor:
        """The sum over the filters of price times scale."""
        return (self.prices * self.scales.largest()).sum()

    def state_dict(self) -> dict[str, Any]:
        """What was found; prices follow from the weights."""
        return {"found": self.found}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what was found."""
        self.found = state["found"]


def factor(space: Space, alive: Tensor, limit: float) -> float:
    """The largest factor by which the widths alive can be multiplied for ``limit`` MACs, rounding apart."""
    counts, layers = space.counts(alive)

    def fits(times: float) -> bool:
        return space.macs_of([times * count for count in counts], layers) <= limit

    low, high = 0.0, 1.0
    while fits(high):
        high *= 2
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def expanded(space: Space, dense: nn.Module, alive: Tensor, job: Job) -> nn.Module:
    """The network of the widths alive times one factor, at the budget, with initial weights."""
    limit, step = job.budget * job.dense_macs, job.granularity
    times = factor(space, alive, limit)
    widths = {group.name: int(alive[group.structures].sum()) for group in space.groups}
    room = {name: (math.ceil(times * width / step) + 1) * step for name, width in widths.items()}
    wide = widen(space, dense, room, seed=job.seed)
    wide_space = discover(wide, job.example)
    keys = torch.full((len(wide_space),), torch.inf)
    for group in wide_space.groups:
        keys[group.structures] = -(torch.arange(group.size) + 0.5) / widths[group.name]
    gone = {layer.name for layer, there in zip(space.layers, alive[space.filters :], strict=True) if not there}
    for number, layer in enumerate(wide_space.layers, wide_space.filters):
        if layer.name in gone:
            keys[number] = -torch.inf
    return extract(wide_space, wide, select(wide_space, keys, limit, step))


@dataclass(frozen=True)
class MorphNetSettings:
    """How the structure is searched."""

    strength: float = 16.0
    """How far the price of an average filter would move its scale, which starts at one, in a whole search."""
    threshold: float = 0.01
    """Scales above it are alive."""
    search_share: float = 0.5
    """Epochs of the search, at most, as a share of those that the network found trains for."""
    shrunk: float = 0.5
    """Cost at which the search ends, as a share of the budget."""

    def __post_init__(self) -> None:
        """Refuses a setting outside its range with a UserError."""
        check_positive(self, "strength", "threshold")
        check_share(self, "search_share", "shrunk")


class MorphNet(Method):
    """Shrinks, expands, trains from scratch."""

    name = "morphnet"
    summary = "shrink by a price of MACs on the norms' scales, expand all widths alike, train from scratch"
    family = "pruning"
    citation = "Gordon et al., MorphNet: Fast & Simple Resource-Constrained Structure Learning, arXiv 1711.06798"
    Settings = MorphNetSettings

    def skip(self, task: Task, network: nn.Module) -> str | None:
        """Networks without scales to price."""
        return without_scales(network)

    def run(self, job: Job) -> Run:
        """The search, an epoch at a time; then the training of what it found."""
        settings, model = self.settings, job.model()
        share, space = settings.search_share, model.space
        shrinking = Shrinking(
            model,
            settings.strength / reach(job, share),
            settings.threshold,
            settings.shrunk * job.budget * job.dense_macs,
        )
        pieces = max(1, int(share * job.epochs))

        def train(piece: int) -> Generator[Stage, None, int | None]:
            span = (share * piece / pieces, share * (piece + 1) / pieces)
            epochs = share * job.epochs / pieces
            yield from job.fit(model, shrinking, epochs=epochs, span=span, searching=True)
            return piece + 1 if shrinking.found is None and piece + 1 < pieces else None

        yield from job.rounds(model, train, 0, shrinking)
        alive = shrinking.alive(model) if shrinking.found is None else shrinking.found
        model = job.model(expanded(space, job.build(), alive, job))
        yield from job.fit(model)
        return model.network
