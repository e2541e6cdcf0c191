"""A penalty while training, and reconfiguration to smaller networks as it goes: in the manner of PruneTrain."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nasbench_grow import select
from nasbench_grow.contract import Callback, ElasticModel, Job, Method, Run


@dataclass(frozen=True)
class Settings:
    strength: float = 1e-3
    """Of the group lasso."""


class GroupLasso(Callback):
    """Each filter's weights have a Euclidean norm that is priced; after an epoch the smallest filters leave."""

    def __init__(self, job: Job, strength: float) -> None:
        self.job, self.strength, self.epochs = job, strength, 0

    def penalty(self, model: ElasticModel) -> Tensor:
        return self.strength * (model.filter_sums(torch.square) + 1e-12).sqrt().sum()

    def after_epoch(self, model: ElasticModel) -> None:
        self.epochs += 1
        norms = model.filter_sums(lambda weight: weight.detach().square()).sqrt().cpu()
        keys = torch.where(model.structures, norms, -torch.inf)
        keys[model.space.filters :] = torch.inf
        left = 1 - (1 - self.job.budget) * self.epochs / self.job.epochs
        model.resize(select(model.space, keys, left * self.job.dense_macs, self.job.granularity))

    def state_dict(self) -> dict[str, int]:
        return {"epochs": self.epochs}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epochs = state["epochs"]


class PruneWhileTraining(Method):
    name, summary, family = "kind-group-lasso", "group lasso and reconfiguration", "pruning"
    Settings = Settings

    def run(self, job: Job) -> Run:
        model = job.model()
        yield from job.fit(model, GroupLasso(job, self.settings.strength))
        return model.network
