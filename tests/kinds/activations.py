"""Statistics from calibration batches: filters are kept by how strongly their channels respond."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nasbench_grow import select
from nasbench_grow.contract import ElasticModel, Job, Method, Run


def responses(job: Job, model: ElasticModel, samples: int) -> Tensor:
    """Mean absolute output of the convolutions that create each filter, shape (structures,)."""
    space, total = model.space, torch.zeros(len(model.space))

    def note(name: str, module: nn.Module, inputs: Any, output: Tensor) -> None:
        owner = space.owners.get((f"{name}.weight", 0))
        if owner is not None:
            total.index_add_(0, owner, output.abs().mean((0, 2, 3)).cpu())

    hooks = [
        module.register_forward_hook(partial(note, name))
        for name, module in model.network.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    model.network.eval()
    with torch.no_grad():
        for inputs, _ in job.calibrate(model.network, samples):
            model.network(inputs)
    for hook in hooks:
        hook.remove()
    return total


class Responsive(Method):
    name, summary, family = "kind-activations", "keeps the filters that respond most", "pruning"

    def run(self, job: Job) -> Run:
        model = job.model()
        yield from job.fit(model, epochs=0.5 * job.epochs)
        keys = responses(job, model, samples=48)
        keys[model.space.filters :] = torch.inf
        model.resize(select(model.space, keys, job.budget * job.dense_macs, job.granularity))
        yield from job.fit(model)
        return model.network
