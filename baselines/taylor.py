"""Taylor pruning: filters leave while the trained network trains on, those first whose removal changes the loss least.

Molchanov, Mallya, Tyree, Frosio, Kautz, *Importance Estimation for Neural Network Pruning*, CVPR 2019 (arXiv
1906.10771), in the form Taylor-FO-BN: a gate of 1 stands behind the batch normalisation of each filter. To first order
the loss changes by the gate's gradient dL/dg where the filter leaves. Importance is its square, averaged over the
mini-batches since the last pruning and, with momentum 0.9, over the prunings before. Filters of all layers compete.

Published (configurations of ResNet-50 and 101 on ImageNet): 100 filters leave every 30 mini-batches, 10 to 120 times
from the first of 25 epochs on, at a hundredth of the first learning rate. Here 30 prunings of equal MACs are spread
over a quarter of the run, so that short runs have mini-batches enough for each; the recipe's schedule goes on.
Their gates on a residual stream, one shared by all blocks, count what came before several times, and so they divide
by the number of blocks; here a gate scales what each block adds, each once, and nothing is divided. Importance is not
divided by cost: their code has a term of FLOPs and says that the paper does not use it. ``per_macs`` divides by MACs.
Theirs may close a layer altogether, here one filter stays; and of CIFAR's ResNet-20 it prunes the insides of blocks
alone, here streams compete as in theirs on ImageNet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nasbench_grow import UserError
from nasbench_grow.contract import Callback, ElasticModel, Job, Pruning, RoundsSettings, Run, cut


@dataclass(frozen=True)
class TaylorSettings(RoundsSettings):
    """When and how fast filters leave, and what their importance is."""

    rounds: int = 30
    """Prunings, each of as many MACs."""
    pruning_share: float = 0.25
    """Share of the epochs over which they are spread, from ``dense_share`` on."""
    momentum: float = 0.9
    """Of the importance, from pruning to pruning; 0: only the mini-batches since the last one count."""
    per_macs: bool = False
    """Whether importance is divided by the MACs that the filter adds to the network as it stands."""

    def __post_init__(self) -> None:
        """Refuses a setting outside its range with a UserError."""
        super().__post_init__()
        if not 0 <= self.momentum < 1:
            raise UserError(f"momentum {self.momentum:g} is out of range: give 0 or more, below 1")


class Importance(Callback):
    """Sums up what each filter's gate would change in the loss, and removes filters when it is time.

    Args:
        job: the cell.
        model: the trained network.
        settings: of the method.
    """

    def __init__(self, job: Job, model: ElasticModel, settings: TaylorSettings) -> None:
        self.job, self.settings = job, settings
        self.steps = max(1, int(settings.pruning_share * job.total_steps))
        self.seen = self.done = self.summed = 0  # steps, prunings, and steps since the last pruning
        self.total = model.example.new_zeros(len(model.space), dtype=torch.float32)
        self.average: Tensor | None = None
        self.scaled = model.filter_sums(torch.ones_like, of=("scale",)) > 0  # filters with a factor of their own
        self.all_scaled = bool(self.scaled[: model.space.filters].all())

    def gate_gradients(self, model: ElasticModel) -> Tensor:
        """The derivative of the batch's loss by each filter's gate, shape (structures,).

        A gate scales the affine pair of a normalisation. Where there is none, it stands where the filter's output is
        taken in: a hidden unit of a recurrent layer, a convolution or linear layer without one.
        """

        def slope(weight: Tensor) -> Tensor:
            return weight.detach() * (torch.zeros_like(weight) if weight.grad is None else weight.grad)

        gradients = model.filter_sums(slope, of=("scale", "shift"))
        if not self.all_scaled:
            gradients = torch.where(self.scaled, gradients, model.filter_sums(slope, of=("consuming",)))
        return gradients

    def after_backward(self, model: ElasticModel) -> None:
        """Adds the mini-batch's squared gradients."""
        if self.done < self.settings.rounds:
            self.total += self.gate_gradients(model).square()
            self.summed += 1
            self.seen += 1

    def before_step(self, model: ElasticModel, step: int, steps: int) -> None:
        """Prunes, if enough mini-batches have been seen."""
        self.prune(model)

    def after_epoch(self, model: ElasticModel) -> None:
        """The same, lest the last pruning waits for a step that never comes."""
        self.prune(model)

    def prune(self, model: ElasticModel) -> None:
        """Removes the filters of lowest importance, down to the MACs that are due."""
        due = min(self.settings.rounds, self.seen * self.settings.rounds // self.steps)
        if due == self.done:
            return
        mean = self.total / self.summed
        momentum = self.settings.momentum
        self.average = mean if self.average is None else momentum * self.average + (1 - momentum) * mean
        self.done, self.summed = due, 0
        self.total = torch.zeros_like(self.total)
        limit = (1 + (self.job.budget - 1) * due / self.settings.rounds) * self.job.dense_macs
        cut(model, self.keys(model), limit, self.job.granularity)

    def keys(self, model: ElasticModel) -> Tensor:
        """Importance as :func:`nasbench_grow.select` takes it, shape (structures,), float64: layers stay."""
        assert self.average is not None
        keys = self.average.cpu().double()
        if self.settings.per_macs:
            keys /= model.space.marginal_macs(model.structures).clamp(min=1)
        keys[model.space.filters :] = torch.inf
        return keys

    def log(self, model: ElasticModel) -> dict[str, float]:
        """How far pruning is."""
        return {"prunings": float(self.done)}

    def state_dict(self) -> dict[str, Any]:
        """What has been seen and done."""
        return {
            "seen": self.seen,
            "done": self.done,
            "summed": self.summed,
            "total": self.total,
            "average": self.average,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from there."""
        self.seen, self.done, self.summed = state["seen"], state["done"], state["summed"]
        self.total = state["total"].to(self.total.device)
        self.average = None if state["average"] is None else state["average"].to(self.total.device)


class Taylor(Pruning):
    """Train, remove filters by first-order importance while training on, fine-tune."""

    name = "taylor"
    summary = "train dense, then remove the filters that change the loss least (first order) while training goes on"
    citation = "Molchanov et al., Importance Estimation for Neural Network Pruning, arXiv 1906.10771"
    Settings = TaylorSettings

    def run(self, job: Job) -> Run:
        """Dense training, or what another cell trained; then training that prunes at first."""
        model = yield from self.dense(job)
        yield from self.tune(job, model, Importance(job, model, self.settings), since=self.settings.dense_share)
        return model.network
