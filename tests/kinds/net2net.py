"""Grows in place, newborn filters with a start of their own: copies that leave the network's function as it was.

Chen, Goodfellow, Shlens, *Net2Net* (arXiv 1511.05641): a new filter copies another one, and whoever takes the two in
divides by their number.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nasbench_grow import select, uniform_keys
from nasbench_grow.contract import Callback, ElasticModel, Job, Method, Run


def copies(model: ElasticModel, before: Tensor, after: Tensor) -> None:
    """Fills the entries of newborn filters in the dense model."""
    space, tensors = model.space, {**dict(model.dense.named_parameters()), **dict(model.dense.named_buffers())}
    copied_from = torch.arange(len(space))
    for group in space.groups:
        old = group.start + torch.nonzero(before[group.structures]).flatten()
        born = group.start + torch.nonzero(after[group.structures] & ~before[group.structures]).flatten()
        copied_from[born] = old[torch.arange(len(born)) % len(old)]
    family = torch.bincount(copied_from[after], minlength=len(space))[copied_from]  # filters that are one another's
    there = after & (copied_from != torch.arange(len(space)))
    for (name, dim), owner in space.owners.items():
        tensor = tensors[name].detach()
        rank = torch.zeros_like(owner)  # which of its filter's entries an entry is
        for number in owner.unique().tolist():
            rank[owner == number] = torch.arange(int((owner == number).sum()))
        place = {(int(o), int(r)): at for at, (o, r) in enumerate(zip(owner, rank, strict=True))}
        to = [at for at, o in enumerate(owner.tolist()) if o >= 0 and there[o]]
        origin = [place[int(copied_from[owner[at]]), int(rank[at])] for at in to]
        tensor.index_copy_(dim, torch.tensor(to, dtype=torch.long), tensor[(slice(None),) * dim + (origin,)])
        if (name, dim) in space.consumers:
            share = 1 / torch.where(owner >= 0, family[owner.clamp(min=0)].clamp(min=1), 1)
            tensor.mul_(share.view(-1, *[1] * (tensor.ndim - 1 - dim)))


class Widening(Callback):
    """From a third of the filters to the budget, once, halfway."""

    def __init__(self, job: Job, model: ElasticModel) -> None:
        self.present = select(model.space, uniform_keys(model.space), job.budget * job.dense_macs, job.granularity)
        seed = select(model.space, uniform_keys(model.space), 0.3 * job.budget * job.dense_macs, job.granularity)
        model.resize(seed)

    def before_step(self, model: ElasticModel, step: int, steps: int) -> None:
        if step >= steps // 2:
            model.resize(self.present, newborn=copies)


class Net2Net(Method):
    name, summary, family = "kind-net2net", "widens by copies halfway", "growing"

    def run(self, job: Job) -> Run:
        model = job.model()
        yield from job.fit(model, Widening(job, model))
        return model.network
