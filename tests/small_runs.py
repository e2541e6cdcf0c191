"""Runs of a method on tiny networks of each kind, and runs that are killed and taken up again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from tiny_networks import FewBatches, Kept, Plain, Residual, seeded, small_job
from torch import Tensor, nn

from nasbench_grow.backbones.lstm import LanguageModel
from nasbench_grow.contract import Batch, Job, Method, Source
from nasbench_grow.cost.macs import count_macs

WORDS = torch.zeros(1, 6, dtype=torch.int64)
"""An input of the tiny language model: whether it goes on, and five words of 20."""


class Depthwise(nn.Module):
    """An inverted bottleneck with a depthwise convolution, on a residual stream: (B, 1, 8, 8) to (B, 10)."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.expand = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(4 * width)
        self.depthwise = nn.Conv2d(4 * width, 4 * width, 3, padding=1, groups=4 * width, bias=False)
        self.bn2 = nn.BatchNorm2d(4 * width)
        self.project = nn.Conv2d(4 * width, width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.norm(self.stem(x)))
        inner = F.relu6(self.bn2(self.depthwise(F.relu6(self.bn1(self.expand(x))))))
        return self.fc((x + self.bn3(self.project(inner))).mean((2, 3)))


class Unnormalised(nn.Module):
    """Convolutions with biases and no normalisation: (B, 1, 8, 8) to (B, 10)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.fc = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.conv2(F.relu(self.conv1(x)))).mean((2, 3)))


def words() -> nn.Module:
    """Two LSTM layers of 24 units."""
    return LanguageModel(20, units=24, layers=2, dropout=0.0, scale=0.1)


def wide_residual() -> nn.Module:
    """So many filters that one costs little beside the tolerance of a budget."""
    return Residual(48)


def wide_plain() -> nn.Module:
    """The same without a residual stream."""
    return Plain(48)


class Sentences(FewBatches):
    """A training split of two batches of random words an epoch."""

    def __init__(self) -> None:
        super().__init__(2, 8, (6,))

    def epoch(self, epoch: int, batch_size: int, seed: int) -> Iterator[Batch]:
        draws = torch.Generator().manual_seed(epoch)
        for step in range(2):
            text = torch.randint(0, 20, (8, 7), generator=draws)
            goes_on = torch.full((8, 1), step)
            yield torch.cat([goes_on, text[:, :-1]], 1)[:, : WORDS.shape[1]], text[:, 1 : WORDS.shape[1]]


def word_loss(output: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of the words, (B, T, words) against (B, T)."""
    return F.cross_entropy(output.flatten(0, 1), targets.flatten())


def job_for(make: Any, **changes: Any) -> Job:
    """A job of a few epochs of two steps, on digits or on words."""
    if make is not words:
        return small_job(make, **{"epochs": 4, **changes})
    job = small_job(make, **{"epochs": 4, "example": WORDS, "loss": word_loss, **changes})
    job.train = Sentences()
    return job


def from_trained(job: Job, make: Any, macs: int = 1000) -> Job:
    """The job with a source whose network has the weights of another seed and took so many MACs to train."""
    record = {"train_macs": macs, "wall_s": 1.0, "cpu_s": 1.0}
    job._source = Source(record, "", lambda: seeded(make, 7), job.meter)
    return job


def run(method: Method, job: Job) -> tuple[nn.Module, list[int]]:
    """The network that a method returns, and the MACs of its network at the end of each epoch."""
    stages, macs = method.run(job), []
    while True:
        try:
            macs.append(count_macs(next(stages).network, job.example))
        except StopIteration as end:
            return end.value, macs


def share(network: nn.Module, job: Job) -> float:
    """The network's MACs as a share of the dense one's."""
    return count_macs(network, job.example) / job.dense_macs


def killed_after(epochs: int, method: Method, make: Any, **changes: Any) -> tuple[nn.Module, Job]:
    """What a run arrives at that was killed before it could keep its epoch of that number, and taken up again."""
    storage = Kept()
    torch.manual_seed(3)
    stages = method.run(changes.pop("prepare", lambda job: job)(job_for(make, storage=storage, **changes)))
    for _ in range(epochs):
        next(stages)
    stages.close()
    torch.manual_seed(99)  # the generators of another process
    job = job_for(make, storage=storage, **changes)
    return run(method, job)[0], job


def same(one: nn.Module, other: nn.Module) -> bool:
    """Whether two networks have the same bits."""
    mine, others = one.state_dict(), other.state_dict()
    return mine.keys() == others.keys() and all(torch.equal(tensor, others[name]) for name, tensor in mine.items())
