"""Jobs that judge networks on samples of their own, and runs of them that are killed again and again."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from killing import Killed
from small_runs import Depthwise, job_for, run, wide_plain, wide_residual, words
from tiny_networks import Kept, Residual
from torch import nn

from nasbench_grow.contract import Job, Method


def leaving() -> nn.Sequential:
    """Plain layers of 24 filters, two of which can leave: (B, 1, 8, 8) to (B, 10)."""
    layers: list[nn.Module] = []
    for given in (1, 24, 24):
        layers += [nn.Conv2d(given, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10))


KINDS = {
    "plain": wide_plain,
    "residual": wide_residual,
    "depthwise": lambda: Depthwise(24),
    "small": lambda: Residual(24),
    "leaving": leaving,
    "words": words,
}
"""Networks of each kind."""

CELLS = [("plain", 8), ("residual", 1), ("residual", 8), ("depthwise", 1), ("leaving", 8), ("words", 1)]
"""Kinds and granularities."""


def search_job(make: Any, **changes: Any) -> Job:
    """A job of a few epochs whose search split is all 16 samples; its score is minus the loss on them."""

    def score(network: nn.Module, split: Any) -> float:
        network.eval()
        with torch.no_grad():
            return -sum(float(job.loss(network(inputs), targets)) for inputs, targets in split.batches(8))

    job = job_for(make, score=score, **changes)
    job.train.hold_out = lambda share, batch_size=1: (job.train, job.train)
    return job


class Deadly(Kept):
    """A storage that ends the run after every second thing that it keeps, each time once."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[Any] = set()

    def write(self, name: str, state: Any) -> None:
        super().write(name, state)
        moment = name, state.get("step"), state["done"]
        if moment not in self.seen:
            self.seen.add(moment)
            if len(self.seen) % 2:
                raise Killed


def run_whole_and_killed(method: Method, make: Any, **changes: Any) -> tuple[tuple[nn.Module, Job], ...]:
    """The network and the job of a run, and of the same one killed again and again."""
    torch.manual_seed(3)
    whole = search_job(make, **changes)
    network, _ = run(method, whole)
    storage, arrived = Deadly(), None
    while arrived is None:
        torch.manual_seed(99 if storage.seen else 3)  # the generators of another process
        job = search_job(make, storage=storage, **changes)
        with suppress(Killed):
            arrived, _ = run(method, job)
    assert len(storage.seen) > whole.epochs
    return (network, whole), (arrived, job)
