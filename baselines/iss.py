"""Intrinsic sparse structures (ISS): a group lasso over all the weights of each LSTM unit, until whole units are zero.

Wen, He, Rajbhandari, Zhang, Wang, Liu, Hu, Chen, Li, *Learning Intrinsic Sparse Structures within Long Short-Term
Memory*, ICLR 2018 (arXiv 1709.05027). A hidden unit's structure is what makes it in the four gates, its recurrent
column and what takes it in, in the next layer or the output matrix; biases do not count, and an entry that makes and
takes in the same unit counts twice, both as in their code. The Euclidean norm of each structure is priced, every step
sets weights below ``threshold`` to zero, and units of which nothing is left leave; embeddings stay, as there. For two
layers of 1,500 units they learn from scratch with lambda 0.0012 (their code's example: 0.00245), a threshold of 1e-4
and dropout 0.4 in place of 0.65. The price alone shrinks a norm by lambda times the learning rate a step: from an
initial 3.7 to zero takes 3,000 steps at a rate of 1, and in a shorter run hardly a unit vanishes. Theirs ends as small
as lambda makes it. Ours stops pricing once the budget is met, and what is above it after ``sparse_share`` of the epochs
(theirs keeps its first rate as long) leaves by the norm of its structure, taken as a root mean square so that
layers of any size compare.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nasbench_grow.contract import Callback, ElasticModel, Job, Method, Run, Task, check_positive, check_share, cut

STRUCTURE = ("creating", "consuming")
"""The weights of a unit's intrinsic sparse structure."""


@dataclass(frozen=True)
class Settings:
    """How units become sparse, and for how long."""

    strength: float = 0.0012
    """Lambda, the price of a structure's norm, in units of the loss (summed over a sequence, as the task's is)."""
    threshold: float = 1e-4
    """Weights below it are set to zero after each step."""
    dropout: float = 0.6
    """Factor on the backbone's dropout, because the price regularises, too: about 0.4 / 0.65."""
    sparse_share: float = 0.33
    """Share of the epochs after which the network meets the budget."""

    def __post_init__(self) -> None:
        """Refuses a setting outside its range with a UserError."""
        check_positive(self, "strength", "threshold")
        check_share(self, "dropout", "sparse_share")


class Sparsifying(Callback):
    """Prices the units' structures until the network meets its budget."""

    def __init__(self, job: Job, model: ElasticModel, settings: Settings) -> None:
        self.job, self.settings, self.limit = job, settings, job.budget * job.dense_macs
        self.units = units(model)
        self.priced = self.units.to(job.example.device, torch.float32)

    def penalty(self, model: ElasticModel) -> Tensor | None:
        """The sum of the structures' norms, times lambda."""
        if model.macs <= self.limit:
            return None
        squares = model.filter_sums(torch.square, of=STRUCTURE)
        return self.settings.strength * torch.dot(self.priced, (squares + 1e-8).sqrt())

    def after_step(self, model: ElasticModel) -> None:
        """Sets small weights to zero."""
        if model.macs > self.limit:
            with torch.no_grad():
                for weight in model.network.parameters():
                    weight.masked_fill_(weight.abs() < self.settings.threshold, 0.0)

    def after_epoch(self, model: ElasticModel) -> None:
        """Removes the units that are zero, as far as the budget asks for."""
        zero = self.units & (structure_norms(model) == 0)
        present = model.structures & ~zero
        for group in model.space.groups:
            if not present[group.structures].any():
                present[group.structures] = model.structures[group.structures]  # something of it must stay
        if model.space.macs(present) <= self.limit:
            meet_budget(self.job, model)
        else:
            model.resize(present)


def units(model: ElasticModel) -> Tensor:
    """Which structures are units of a recurrent layer, shape (structures,), bool."""
    found = torch.zeros(len(model.space), dtype=torch.bool)
    for group in model.space.groups:
        found[group.structures] = isinstance(model.dense.get_submodule(group.name), nn.RNNBase)
    return found


def structure_norms(model: ElasticModel) -> Tensor:
    """Root mean square of the weights of each structure, shape (structures,)."""
    squares = model.filter_sums(lambda weight: weight.detach().square(), of=STRUCTURE)
    sizes = model.filter_sums(lambda weight: torch.ones_like(weight.detach()), of=STRUCTURE)
    return (squares / sizes.clamp(min=1)).sqrt().cpu()


def meet_budget(job: Job, model: ElasticModel) -> None:
    """Removes the units of the smallest structures until the network meets the budget."""
    keys = torch.where(units(model), structure_norms(model), torch.inf)
    cut(model, keys, job.budget * job.dense_macs, job.granularity)


class Iss(Method):
    """Learn units sparse from scratch, remove them, train on."""

    name = "iss"
    summary = "a group lasso over the intrinsic sparse structure of each LSTM unit; no fine-tuning"
    family = "pruning"
    citation = "Wen et al., Learning Intrinsic Sparse Structures within LSTM, arXiv 1709.05027"
    Settings = Settings

    def skip(self, task: Task, network: nn.Module) -> str | None:
        """Networks without LSTM."""
        lstm = any(isinstance(module, nn.LSTM) for module in network.modules())
        return None if lstm else "the backbone has no LSTM, whose units' structures are what is priced"

    def run(self, job: Job) -> Run:
        """One training; the network has its size after a part of it."""
        dense = job.build()
        for module in dense.modules():
            if isinstance(module, nn.Dropout):
                module.p *= self.settings.dropout
        model = job.model(dense)
        yield from job.fit(
            model, Sparsifying(job, model, self.settings), epochs=self.settings.sparse_share * job.epochs
        )
        meet_budget(job, model)
        yield from job.fit(model)
        return model.network
