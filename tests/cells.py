"""A small cell that trains in a fraction of a second, and methods that misbehave in known ways, for tests."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from timm.models import register_model
from tiny_networks import Residual
from torch import nn

from nasbench_grow.base.errors import UserError
from nasbench_grow.baselines.dense import Dense
from nasbench_grow.contract import Job, Method
from nasbench_grow.contract.task import Batch
from nasbench_grow.harness import registry
from nasbench_grow.harness.cell import Cell, make_cell
from nasbench_grow.harness.record import FIELDS as RECORD_FIELDS
from nasbench_grow.harness.record import Record


@register_model
def tiny_network(pretrained: bool = False, num_classes: int = 10, in_chans: int = 1, **kwargs: Any) -> nn.Module:
    """Two convolutions and a classifier: (B, in_chans, H, W) to (B, num_classes)."""
    return nn.Sequential(
        nn.Conv2d(in_chans, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, num_classes),
    )


@register_model
def tiny_residual(pretrained: bool = False, num_classes: int = 10, in_chans: int = 1, **kwargs: Any) -> nn.Module:
    """A stem and three removable blocks, 16 filters wide: (B, 1, H, W) to (B, 10)."""
    return Residual(width=16)


class Noisy(Dense):
    """Draws from PyTorch's global generator while it trains, as dropout does."""

    name = "noisy"

    def train_epoch(self, batches: Iterable[Batch]) -> float:
        return super().train_epoch((inputs + 0.1 * torch.randn_like(inputs), targets) for inputs, targets in batches)


class Diverging(Dense):
    name = "diverging"

    def train_epoch(self, batches: Iterable[Batch]) -> float:
        return super().train_epoch(batches) if self.job.clock.end == 0 else float("nan")


class Failing(Dense):
    name = "failing"

    def train_epoch(self, batches: Iterable[Batch]) -> float:
        raise ValueError("first line\nsecond line")


class Refusing(Dense):
    name = "refusing"
    uses_budget = True

    def __init__(self, job: Job) -> None:
        raise UserError(f"budget {job.budget} is too small")


class DeviceFailing(Dense):
    """Ends its second epoch as a GPU does when another program has its memory."""

    name = "device-failing"
    error: ClassVar[RuntimeError] = torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB.")

    def train_epoch(self, batches: Iterable[Batch]) -> float:
        if self.job.clock.end > 0:
            raise self.error
        return super().train_epoch(batches)


MISBEHAVING = (Noisy, Diverging, Failing, Refusing, DeviceFailing)
METHODS: dict[str, type[Method]] = {cls.name: cls for cls in (Dense, *MISBEHAVING)}


def use_methods(monkeypatch: Any) -> None:
    """Make the methods of this file the only registered ones."""
    monkeypatch.setattr(registry, "methods", lambda: METHODS)


def small_cell(**changes: Any) -> Cell:
    """Two epochs of two steps on digits."""
    cell = {"method": "dense", "task": "digits", "backbone": "tiny_network", "budget": 1.0, "seed": 0}
    return make_cell(**{**cell, "epochs": 2, "train_samples": 64, **changes})


def finished_record(cell: Cell, **changes: Any) -> Record:
    """A record as a finished run would have left it."""
    counts = {"macs": 50, "dense_macs": 100, "train_macs": 600, "dense_train_macs": 1000, "total_s": 3.0, "wall_s": 2.0}
    known = {**vars(cell), **counts, "run_key": cell.run_key(), "status": "ok", "metric": "accuracy"}
    return {field: {**known, "test_metric": 0.5, **changes}.get(field) for field in RECORD_FIELDS}


def run_in_two_processes(target: Callable[..., object], *arguments: Any) -> None:
    """Calls ``target`` in two processes at once and checks that both end well; they inherit what is patched here."""
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=target, args=arguments) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
    assert [worker.exitcode for worker in workers] == [0, 0]
