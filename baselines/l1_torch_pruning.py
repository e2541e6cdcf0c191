"""L1-norm filter pruning by another implementation: Torch-Pruning prunes what ``l1`` would, by the same schedule.

A check on ``l1``, and on all that this package adds to a trained network. ``torch_pruning.pruner.MagnitudePruner``
ranks by the L1 norm (Li et al., ICLR 2017, arXiv 1608.08710), removes the same share of every layer's filters and cuts
the network itself. By its defaults all weights of a filter count, those that take it in, too, as a mean over layers.
The share is that which comes nearest to the budget, in whole filters: the library's own rounding leaves narrow layers
dense. What is left trains on with a fresh optimizer, as it would outside. The two should agree within what seeds do.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from nasbench_grow import count_macs
from nasbench_grow.contract import Job, Pruning, Run, Task

HALVINGS = 12
"""How often the interval is halved in which the share to remove lies: to 1/4096 of the filters."""


class L1TorchPruning(Pruning):
    """Train, let Torch-Pruning prune by L1 norm, fine-tune."""

    name = "l1_torch_pruning"
    summary = "as l1, ranked and cut by Torch-Pruning: does another implementation arrive at the same?"
    family = "control"
    citation = "Fang et al., DepGraph: Towards Any Structural Pruning, arXiv 2301.12900 (the library)"

    def skip(self, task: Task, network: nn.Module) -> str | None:
        """Recurrent networks: the library's importance passes over their weights."""
        recurrent = any(isinstance(module, nn.RNNBase) for module in network.modules())
        return "Torch-Pruning's importance leaves recurrent weights out" if recurrent else None

    def run(self, job: Job) -> Run:
        """Dense training, or what another cell trained; one cut; training."""
        model = yield from self.dense(job)
        fixed = list(model.space.fixed)
        small = job.model(nearest(job, model.network, fixed))
        yield from self.tune(job, small, since=self.settings.dense_share)
        return small.network


def nearest(job: Job, network: nn.Module, fixed: list[str]) -> nn.Module:
    """A copy of the network, with the MACs nearest to the budget; the modules named ``fixed`` keep their outputs."""
    low, high = 0.0, 1.0
    limit = job.budget * job.dense_macs
    found: list[tuple[float, nn.Module]] = []
    for _ in range(HALVINGS):
        share = (low + high) / 2
        candidate = pruned(job, network, fixed, share)
        macs = count_macs(candidate, job.example)
        low, high = (low, share) if macs <= limit else (share, high)
        found.append((abs(macs - limit), candidate))
    return min(found, key=lambda one: one[0])[1]


def pruned(job: Job, network: nn.Module, fixed: list[str], share: float) -> nn.Module:
    """A copy of the network without a share of every layer's filters, those of the smallest L1 norm."""
    import torch_pruning  # takes seconds, which a list of the methods need not wait for

    network = copy.deepcopy(network).requires_grad_(True)
    pruner: Any = torch_pruning.pruner.MagnitudePruner(
        network,
        job.example,
        torch_pruning.importance.MagnitudeImportance(p=1),
        pruning_ratio=share,
        ignored_layers=[network.get_submodule(name) for name in fixed],
    )
    pruner.step()
    return network
