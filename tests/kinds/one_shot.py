"""Weights shared between networks from step to step: single-path one-shot search of widths and depth.

Guo et al., *Single Path One-Shot Neural Architecture Search with Uniform Sampling* (arXiv 1904.00420): every step
trains one random path through the dense network. Paths are then judged with recalibrated batch normalisations, and the
best is trained from scratch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nasbench_grow import SharedWeights, Space, extract, recalibrate, select
from nasbench_grow.contract import Callback, ElasticModel, Job, Method, Run


@dataclass(frozen=True)
class Settings:
    candidates: int = 3
    samples: int = 32
    """To recalibrate a candidate with."""


class Paths:
    """Random structures at the budget: a share of each width, and layers or not."""

    def __init__(self, space: Space, job: Job) -> None:
        self.space, self.job = space, job
        self.draws = torch.Generator().manual_seed(job.seed)

    def draw(self) -> Tensor:
        keys = torch.full((len(self.space),), torch.inf)
        for group in self.space.groups:
            share = 0.5 + float(torch.rand((), generator=self.draws))
            keys[group.structures] = -(torch.arange(group.size) + 0.5) / (group.size * share)
        layers = slice(self.space.filters, len(self.space))
        there = torch.rand(len(self.space.layers), generator=self.draws) > 0.3
        keys[layers] = torch.where(there, torch.inf, -torch.inf)
        return select(self.space, keys, self.job.budget * self.job.dense_macs, self.job.granularity)


class OnePath(Callback):
    """Every step runs and trains another path, and is billed for that."""

    def __init__(self, model: ElasticModel, paths: Paths) -> None:
        self.paths, self.shared = paths, SharedWeights(model.space, model.dense)

    def before_step(self, model: ElasticModel, step: int, steps: int) -> None:
        self.path = self.paths.draw()

    def forward(self, model: ElasticModel, network: nn.Module, inputs: Any) -> Any:
        return self.shared(self.path, inputs)

    def step_macs(self, model: ElasticModel) -> int:
        return model.space.macs(self.path)

    def state_dict(self) -> dict[str, Any]:
        return {"draws": self.paths.draws.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.paths.draws.set_state(state["draws"])


class OneShot(Method):
    name, summary, family = "kind-one-shot", "one network for all paths, the best trained again", "search"
    Settings = Settings

    def run(self, job: Job) -> Run:
        model = job.model()
        paths = Paths(model.space, job)
        yield from job.fit(model, OnePath(model, paths), epochs=2, searching=True)
        found = []
        for _ in range(self.settings.candidates):
            present = paths.draw()
            candidate = extract(model.space, model.dense, present)
            recalibrate(candidate, (inputs for inputs, _ in job.calibrate(candidate, self.settings.samples)))
            found.append((job.score(candidate), present))
        best = max(found, key=lambda each: each[0])[1]
        model = job.model(extract(model.space, job.build(), best))
        yield from job.fit(model)
        return model.network
