"""Many trainings in one cell: regularized evolution of the widths, judged on the search split.

Real et al., *Regularized Evolution for Image Classifier Architecture Search* (arXiv 1802.01548): the oldest dies, the
best of a few is mutated. The winner is then trained by the whole recipe.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from nasbench_grow import Space, extract, select
from nasbench_grow.contract import Job, Method, Run


@dataclass(frozen=True)
class Settings:
    trials: int = 4
    population: int = 2
    epochs: float = 1.0
    """Of a trial."""


def network_of(space: Space, genes: Tensor, job: Job) -> Tensor:
    """The structures whose widths are in the proportion of ``genes``, one a group, at the budget."""
    keys = torch.full((len(space),), torch.inf)
    for group, gene in zip(space.groups, genes, strict=True):
        keys[group.structures] = -(torch.arange(group.size) + 0.5) / (group.size * gene)
    return select(space, keys, job.budget * job.dense_macs, job.granularity)


class Evolution(Method):
    name, summary, family = "kind-evolution", "evolves widths, trains the best", "search"
    Settings = Settings

    def run(self, job: Job) -> Run:
        draws = torch.Generator().manual_seed(job.seed)
        space = job.model().space
        population: deque[tuple[float, Tensor]] = deque(maxlen=self.settings.population)
        seen: list[tuple[float, Tensor]] = []
        for trial in range(self.settings.trials):
            if trial < self.settings.population:
                genes = 0.5 + torch.rand(len(space.groups), generator=draws)
            else:
                genes = max(population, key=lambda each: each[0])[1].clone()
                at = int(torch.randint(len(genes), (), generator=draws))
                genes[at] = 0.5 + torch.rand((), generator=draws)
            model = job.model(extract(space, job.build(), network_of(space, genes, job)))
            score = yield from job.trial(model, epochs=self.settings.epochs)
            population.append((score, genes))
            seen.append((score, genes))
        best = max(seen, key=lambda each: each[0])[1]
        model = job.model(extract(space, job.build(), network_of(space, best, job)))
        yield from job.fit(model)
        return model.network
