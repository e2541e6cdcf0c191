"""Jobs for methods that search: on a part of digits, or with a made-up table in the place of all training."""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from tiny_networks import EXAMPLE, Residual, seeded
from torch import nn

from nasbench_grow.contract import Callback, ElasticModel, Job, Method, Recipe, Splits, Stage
from nasbench_grow.growing.nni_space import GrowableSpace
from nasbench_grow.tasks.digits import Digits

EPOCHS, SAMPLES, BATCH = 4, 80, 8
JUDGED = 8
"""A tenth of the samples."""


@cache
def some_digits() -> Splits:
    """The digits task with few training samples, read once."""
    return Digits().load(torch.device("cpu"), SAMPLES)


def search_job(make: Callable[[], nn.Module] = Residual, kind: type[Job] = Job, **changes: Any) -> Job:
    """A job of EPOCHS epochs on SAMPLES digits that can judge networks."""
    task = Digits()
    arguments = {
        "budget": 0.5,
        "seed": 0,
        "epochs": EPOCHS,
        "granularity": 1,
        "example": EXAMPLE,
        "recipe": Recipe(batch_size=BATCH, learning_rate=0.05),
        "loss": task.loss,
        "build": lambda: seeded(make),
        "train": some_digits().train,
        "score": lambda network, split: task.evaluate(network, split),
        **changes,
    }
    return kind(**arguments)


class Table(Job):
    """A job in which a network's score is looked up: its trial is billed and not trained."""

    def __init__(self, *, value: Callable[[tuple[int, ...]], float], **arguments: Any) -> None:
        super().__init__(**arguments)
        self.value = value
        self.found: list[tuple[tuple[int, ...], float]] = []
        """What was tried, in order: widths of a network's convolutions, and its score."""

    def trial(
        self, model: ElasticModel, callback: Callback | None = None, *, epochs: float
    ) -> Generator[Stage, None, float]:
        """The value of the network's widths."""
        yield from ()
        widths = widths_of(model.network)
        self.found.append((widths, self.value(widths)))
        return self.found[-1][1]

    def fit(self, model: ElasticModel, *arguments: Any, **named: Any) -> Generator[Stage, None, None]:
        """Nothing."""
        yield from ()


def widths_of(network: nn.Module) -> tuple[int, ...]:
    """The output channels of its convolutions."""
    return tuple(module.out_channels for module in network.modules() if isinstance(module, nn.Conv2d))


class Chain(nn.Sequential):
    """Six 1 x 1 convolutions of 32 and 48 filters, none removable: (B, 1, 8, 8) to (B, 10)."""

    def __init__(self) -> None:
        widths = [1, 32, 48, 32, 48, 32, 48]
        convs = (nn.Conv2d(before, width, 1, bias=False) for before, width in pairwise(widths))
        layers = [layer for conv in convs for layer in (conv, nn.ReLU())]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 10))


def table(method: Method, value: Callable[[tuple[int, ...]], float], make: Any = Chain, seed: int = 0) -> Table:
    """A job after a search whose networks have made-up scores."""
    job = search_job(make, Table, value=value, seed=seed)
    assert isinstance(job, Table)
    network, _ = result(method, job)
    assert value(widths_of(network)) == max(score for _, score in job.found), "the best is trained"
    return job


@cache
def every_width(make: Any) -> frozenset[tuple[int, ...]]:
    """All that a table can be asked for, by brute force: the whole grid, each sample brought to the budget."""
    sample: dict[str, Any] = {}
    space = GrowableSpace(seeded(make), EXAMPLE, 0.5, 1)
    return frozenset(tuple(sample[group.name] for group in space.structures.groups) for _ in space.grid(sample))


def result(method: Method, job: Job) -> tuple[nn.Module, list[str]]:
    """The network that a method returns, and the purpose of each stage."""
    stages, purposes = method.run(job), []
    while True:
        try:
            purposes.append(next(stages).purpose)
        except StopIteration as end:
            return end.value, purposes
