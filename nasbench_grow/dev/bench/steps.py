"""Training steps and how their times are compared: interleaved, so that a change of the machine's load hits all."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Hashable
from typing import TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

from nasbench_grow.contract.task import Recipe
from nasbench_grow.dev.bench.record import bar
from nasbench_grow.structure.step_time import synchronise

_Name = TypeVar("_Name", bound=Hashable)
Step = Callable[[], None]


def training_step(
    network: nn.Module, inputs: Tensor, targets: Tensor, forward: Callable[[Tensor], Tensor] | None = None
) -> Step:
    """One step of the recipe on always the same batch: forward, backward, SGD with momentum.

    Args:
        network: holds the parameters to be trained.
        inputs, targets: the batch.
        forward: gives the network's output, where that is more than calling it.
    """
    optimizer = Recipe(learning_rate=1e-4).optimizer(network)  # small: the loss stays finite over any number of steps
    run = network if forward is None else forward  # a compiled module has no truth value

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(run(inputs), targets).backward()
        optimizer.step()
        synchronise(inputs.device)

    return step


def seconds(step: Step) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def interleave(steps: dict[_Name, Step], total_seconds: float, min_rounds: int, label: str) -> dict[_Name, list[float]]:
    """Seconds of every step in every round; a round runs each step once, in a new random order.

    Two rounds to warm up are not counted. The first also loads kernels; from the length of the second follows how many
    fill ``total_seconds``.
    """
    order = random.Random(0)
    names = list(steps)
    _, warm_up = (sum(seconds(step) for step in steps.values()) for _ in range(2))
    rounds = max(min_rounds, round(total_seconds / warm_up))
    times: dict[_Name, list[float]] = {name: [] for name in names}
    with bar(label, rounds) as progress:
        for _ in range(rounds):
            order.shuffle(names)
            for name in names:
                times[name].append(round(seconds(steps[name]), 6))
            progress.update()
    return times
