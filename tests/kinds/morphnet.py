"""Shrinks, then expands beyond the dense network: in the manner of MorphNet.

Gordon et al., *MorphNet* (arXiv 1711.06798): a regulariser says where filters are worth their cost; the widths that are
left are multiplied by one factor, up to the budget, and that network is trained from scratch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nasbench_grow import Space, widen
from nasbench_grow.contract import Callback, ElasticModel, Job, Method, Run


class Shrinking(Callback):
    """The norm of each filter's weights is priced by the MACs that it costs."""

    def __init__(self, space: Space, strength: float) -> None:
        costs = space.marginal_macs(space.full()).float()
        self.prices = strength * costs / costs.mean()

    def penalty(self, model: ElasticModel) -> Tensor:
        norms = (model.filter_sums(torch.square) + 1e-12).sqrt()
        return (self.prices * norms)[: model.space.filters].sum()


def expanded(space: Space, widths: list[float], limit: float) -> list[int]:
    """The widths times the largest factor that costs at most ``limit``."""
    layers = [True] * len(space.layers)

    def times(factor: float) -> list[int]:
        return [max(1, int(factor * width)) for width in widths]

    low, high = 0.0, 16.0
    for _ in range(40):
        middle = (low + high) / 2
        fits = space.macs_of([float(width) for width in times(middle)], layers) <= limit
        low, high = (middle, high) if fits else (low, middle)
    return times(low)


class MorphNet(Method):
    name, summary, family = "kind-morphnet", "shrinks, expands, trains again", "pruning"

    def run(self, job: Job) -> Run:
        model = job.model()
        space = model.space
        yield from job.fit(model, Shrinking(space, 1e-3), epochs=1, searching=True)
        norms = model.filter_sums(lambda weight: weight.detach().square()).sqrt().cpu()
        worth = norms > norms[: space.filters].median()
        widths = [float(worth[group.structures].sum()) + 1 for group in space.groups]
        wide = expanded(space, widths, job.budget * job.dense_macs)
        names = [group.name for group in space.groups]
        model = job.model(widen(space, job.build(), dict(zip(names, wide, strict=True)), seed=job.seed))
        yield from job.fit(model)
        return model.network
