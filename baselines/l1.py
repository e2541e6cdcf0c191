"""L1-norm filter pruning: train the dense network, remove the filters with the smallest weights, go on training.

Li, Kadav, Durdanovic, Samet, Graf, *Pruning Filters for Efficient ConvNets*, ICLR 2017 (arXiv 1608.08710): the filters
of a layer are ranked by the sum of their absolute weights (section 3.1), pruned once, in all layers by the same share
(their stage-wise ratios are hand-picked), then the network is retrained. Filters that are coupled by a residual stream
are ranked by the sum over the layers that write to it. All within the epochs that every method has: the dense network
trains for the first half, and the recipe's one learning-rate schedule goes on after pruning (theirs retrains at a
hundredth of the first learning rate for a quarter of the epochs on top).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nasbench_grow import Space, select
from nasbench_grow.contract import Job, Method, Run, check_share


@dataclass(frozen=True)
class L1Settings:
    """When the network is pruned."""

    dense_share: float = 0.5
    """Share of the epochs before pruning."""

    def __post_init__(self) -> None:
        """Refuses what is no share."""
        check_share(self, "dense_share")


class L1(Method):
    """Train, prune once by L1 norm, fine-tune."""

    name = "l1"
    summary = "train dense for half the epochs, prune by L1 norm, fine-tune for the other half"
    family = "pruning"
    citation = "Li et al., Pruning Filters for Efficient ConvNets, arXiv 1608.08710"
    Settings = L1Settings
    version = 3  # also runs of one epoch, in the middle of which it prunes

    def run(self, job: Job) -> Run:
        """Dense training, pruning, training."""
        model = job.model()
        epochs = self.settings.dense_share * job.epochs
        yield from job.fit(model, epochs=int(epochs) or epochs)  # whole ones, if there are any
        norms = model.filter_sums(lambda weight: weight.detach().abs())
        space = model.space
        limit = job.budget * space.macs(space.full())
        model.resize(select(space, same_share(space, norms), limit, job.granularity))
        yield from job.fit(model)
        return model.network


def same_share(space: Space, norms: Tensor) -> Tensor:
    """Keys by which every group keeps the same share of its filters, those with the largest norms; layers stay.

    Args:
        space: the configuration space.
        norms: shape (structures,).
    """
    keys = torch.full((len(space),), torch.inf)
    for group in space.groups:
        order = torch.argsort(norms[group.structures], descending=True, stable=True).cpu()
        keys[group.start + order] = -(torch.arange(group.size) + 0.5) / group.size
    return keys
