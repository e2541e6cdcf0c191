"""L1-norm filter pruning: train the dense network, remove the filters with the smallest weights, go on training.

Li, Kadav, Durdanovic, Samet, Graf, *Pruning Filters for Efficient ConvNets*, ICLR 2017 (arXiv 1608.08710): the filters
of a layer are ranked by the sum of their absolute weights (section 3.1), pruned once, in all layers by the same share
(their stage-wise ratios are hand-picked), then the network is retrained. Filters that are coupled by a residual stream
are ranked by the sum over the layers that write to it. All within the epochs that every method has: the dense network
trains for the first half, and the recipe's one learning-rate schedule goes on after pruning (theirs retrains at a
hundredth of the first learning rate for a quarter of the epochs on top).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from nasbench_grow.base.errors import UserError
from nasbench_grow.contract.method import Job, Method
from nasbench_grow.contract.task import Batch
from nasbench_grow.contract.training import train_steps
from nasbench_grow.structure.discovery import discover
from nasbench_grow.structure.selection import select
from nasbench_grow.structure.space import Space
from nasbench_grow.structure.subnetwork import carry_optimizer, extract

DENSE_SHARE = 0.5
"""Share of the epochs before pruning."""


class L1(Method):
    """Train, prune once by L1 norm, fine-tune."""

    name = "l1"
    summary = "train dense for half the epochs, prune by L1 norm, fine-tune for the other half"
    version = 2  # widths are rounded to the nearest allowed one
    source = "Li et al., Pruning Filters for Efficient ConvNets, arXiv 1608.08710"

    def __init__(self, job: Job) -> None:
        if job.epochs < 2:
            raise UserError(f"l1 cannot run for {job.epochs} epoch: it prunes halfway; give --epochs 2 or more")
        self.job = job
        self.trained = job.build()
        self.fast = job.accelerate(self.trained)
        self.space = discover(self.trained, job.example)
        self.present = self.space.full()
        self.optimizer = job.recipe.optimizer(self.trained)
        self.prune_at = int(DENSE_SHARE * job.epochs) * job.steps_per_epoch

    def train_epoch(self, batches: Iterable[Batch]) -> float:
        """Trains for an epoch, pruning before it when its time has come."""
        if self.job.clock.end == self.prune_at:
            dense_macs = self.space.macs(self.space.full())
            keys = ranks_by_norm(self.space, self.trained)
            self._become(select(self.space, keys, self.job.budget * dense_macs, self.job.granularity))
        macs = self.space.macs(self.present)
        return train_steps(self.job, self.fast, macs, self.optimizer, batches)

    @torch.profiler.record_function("restructuring")
    def _become(self, present: Tensor) -> None:
        """Cuts the full network and its optimizer down to ``present``."""
        small = extract(self.space, self.trained, present)
        optimizer = self.job.recipe.optimizer(small)
        carry_optimizer(self.space, (self.present, self.trained, self.optimizer), (present, small, optimizer))
        self.trained, self.optimizer, self.present = small, optimizer, present
        self.fast = self.job.accelerate(small)

    def network(self) -> nn.Module:
        """The network in training: dense before pruning, small after."""
        return self.trained

    def state_dict(self) -> dict[str, Any]:
        """Structure, weights and optimizer."""
        return {
            "present": self.present,
            "network": self.trained.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on after the epoch that ``state`` was taken at."""
        if not bool(state["present"].all()):
            self._become(state["present"])
        self.trained.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])


def filter_norms(space: Space, network: nn.Module) -> Tensor:
    """Sum of the absolute weights that create each filter, shape (structures,); zero for layers.

    Args:
        space: the configuration space.
        network: the full network that it describes.
    """
    norms = torch.zeros(len(space), dtype=torch.float64)
    for name, weight in network.named_parameters():
        owner = space.owners.get((name, 0))
        if owner is not None and weight.ndim > 1:
            owned = owner >= 0
            sums = weight.detach().abs().flatten(1).sum(1).double().cpu()
            norms.index_add_(0, owner[owned], sums[owned])
    return norms


def ranks_by_norm(space: Space, network: nn.Module) -> Tensor:
    """Keys by which every group keeps the same share of its filters, those with the largest norms; layers stay."""
    norms = filter_norms(space, network)
    keys = torch.full((len(space),), torch.inf)
    for group in space.groups:
        order = torch.argsort(norms[group.structures], descending=True, stable=True)
        keys[group.start + order] = -(torch.arange(group.size) + 0.5) / group.size
    return keys
