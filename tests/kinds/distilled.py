"""Starts from the trained network of another cell, prunes it, and lets the whole one teach what is left."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasbench_grow import count_macs, select
from nasbench_grow.contract import Callback, ElasticModel, Job, Method, Run


class Taught(Callback):
    """Half of the loss is the distance to the teacher's answers; asking it is billed."""

    def __init__(self, job: Job, teacher: nn.Module) -> None:
        self.job, self.teacher, self.macs = job, teacher.eval(), count_macs(teacher, job.example)

    def loss(self, model: ElasticModel, network: nn.Module, inputs: Any, targets: Tensor, loss: Any) -> Tensor:
        output = self.forward(model, network, inputs)
        with torch.no_grad():
            wanted = self.teacher(inputs).softmax(1)
        self.job.meter.forward(self.macs, len(inputs))
        return 0.5 * loss(output, targets) + 0.5 * F.cross_entropy(output, wanted)


class Distilled(Method):
    name, summary, family = "kind-distilled", "prunes a trained network, which teaches it", "pruning"
    source, takes = "dense", "network"

    def run(self, job: Job) -> Run:
        model = job.model(job.source.network())
        norms = model.filter_sums(lambda weight: weight.detach().abs()).cpu()
        norms[model.space.filters :] = torch.inf
        model.resize(select(model.space, norms, job.budget * job.dense_macs, job.granularity))
        yield from job.fit(model, Taught(job, job.source.network()), rate=0.1)
        return model.network
