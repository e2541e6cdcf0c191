"""Networks small enough to grow within a test, and batches for them."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasbench_grow.contract import Batch, Job, Recipe, Splits
from nasbench_grow.growing.own import OwnRecipe
from nasbench_grow.tasks.digits import Digits

EXAMPLE = torch.zeros(1, 1, 8, 8)


class Plain(nn.Module):
    """Three 3 x 3 convolutions with batch norm, none removable: (B, 1, 8, 8) to (B, 10)."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.relu(self.bn3(self.conv3(x)))
        return self.fc(x.mean((2, 3)))


class Block(nn.Module):
    """A residual block that can be removed."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class Residual(nn.Module):
    """A stem and three removable blocks on one stream: (B, 1, 8, 8) to (B, 10)."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.blocks = nn.Sequential(Block(width), Block(width), Block(width))
        self.fc = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(F.relu(self.norm(self.stem(x)))).mean((2, 3)))


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A fresh network with the same weights at each call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def sgd(network: nn.Module) -> torch.optim.Optimizer:
    """SGD with momentum and weight decay."""
    return torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)


@cache
def digits() -> Splits:
    """The digits task's splits, read once."""
    return Digits().load(torch.device("cpu"))


def digit_batches(epoch: int, steps: int, batch_size: int = 16) -> Iterator[tuple[Tensor, Tensor]]:
    """The first ``steps`` batches of an epoch."""
    batches = digits().train.epoch(epoch, batch_size, seed=0)
    return (batch for batch, _ in zip(batches, range(steps), strict=False))


class FewBatches:
    """A training split that gives so many batches an epoch, of a size of its own: digits, or noise of another shape."""

    def __init__(self, steps: int, batch_size: int, shape: tuple[int, ...]) -> None:
        self.steps, self.batch_size, self.shape = steps, batch_size, shape

    def __len__(self) -> int:
        return self.steps * self.batch_size

    def steps_per_epoch(self, batch_size: int) -> int:
        return self.steps

    def epoch(self, epoch: int, batch_size: int, seed: int) -> Iterator[Batch]:
        if self.shape == EXAMPLE.shape[1:]:
            yield from digit_batches(epoch, self.steps, self.batch_size)
            return
        generator = torch.Generator().manual_seed(epoch)
        for _ in range(self.steps):
            inputs = torch.randn(self.batch_size, *self.shape, generator=generator)
            yield inputs, torch.arange(self.batch_size) % 10

    def batches(self, batch_size: int) -> Iterator[Batch]:
        return self.epoch(1, batch_size, 0)

    def hold_out(self, share: float, batch_size: int = 1) -> Any:
        raise NotImplementedError


class Kept:
    """A storage that a file would be: what is read is what was written, as plain data."""

    def __init__(self) -> None:
        self.states: dict[str, bytes] = {}

    def read(self, name: str) -> Any:
        return torch.load(io.BytesIO(self.states[name]), weights_only=True) if name in self.states else None

    def write(self, name: str, state: Any) -> None:
        file = io.BytesIO()
        torch.save(state, file)
        self.states[name] = file.getvalue()

    def forget(self, prefix: str) -> None:
        self.states = {name: state for name, state in self.states.items() if not name.startswith(prefix)}


def small_job(
    make: Callable[[], nn.Module],
    *,
    epochs: int = 10,
    steps: int = 2,
    batch_size: int = 8,
    example: Tensor = EXAMPLE,
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] = sgd,
    rate: Callable[[float], float] | None = None,
    **changes: Any,
) -> Job:
    """A job with a dense network that is the same each time; on digits, or on noise of another example's shape."""
    arguments = {"budget": 0.5, "seed": 0, "granularity": 1, "loss": F.cross_entropy, **changes}
    recipe: Recipe = OwnRecipe(batch_size=batch_size, make=optimizer, rate=rate)
    return Job(
        epochs=epochs,
        example=example,
        recipe=recipe,
        build=lambda: seeded(make),
        train=FewBatches(steps, batch_size, tuple(example.shape[1:])),
        **arguments,
    )
