"""Jobs for methods that search: on a part of digits, or with a made-up table in the place of all training."""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import cache
from typing import Any

import torch
from tiny_networks import EXAMPLE, Plain, Residual, seeded
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


def table_job(value: Callable[[tuple[int, ...]], float], seed: int = 0, granularity: int = 1) -> Job:
    """A table of the widths of three convolutions."""
    return search_job(lambda: Plain(64), Table, value=value, seed=seed, granularity=granularity)


@cache
def every_width() -> frozenset[tuple[int, ...]]:
    """All that a table can be asked for, by brute force: the whole grid, each sample brought to the budget."""
    space, sample = GrowableSpace(seeded(lambda: Plain(64)), EXAMPLE, 0.5, 1), {}
    return frozenset(tuple(sample[group.name] for group in space.structures.groups) for _ in space.grid(sample))


def result(method: Method, job: Job) -> tuple[nn.Module, list[str]]:
    """The network that a method returns, and the purpose of each stage."""
    stages, purposes = method.run(job), []
    while True:
        try:
            purposes.append(next(stages).purpose)
        except StopIteration as end:
            return end.value, purposes
