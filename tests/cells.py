"""A small cell that trains in a fraction of a second, and methods that misbehave in known ways, for tests."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from timm.models import register_model
from tiny_networks import Residual
from torch import Tensor, nn

from nasbench_grow.base.errors import UserError
from nasbench_grow.baselines.dense import Dense
from nasbench_grow.contract import Callback, ElasticModel, Job, Method, Run, Task
from nasbench_grow.harness import registry
from nasbench_grow.harness.cell import Cell, make_cell
from nasbench_grow.harness.record import FIELDS, SCHEMA, Record


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


class NoisyInputs(Callback):
    """Draws from PyTorch's global generator while it trains, as dropout does."""

    def forward(self, model: ElasticModel, network: nn.Module, inputs: Tensor) -> Any:
        return network(inputs + 0.1 * torch.randn_like(inputs))


class InSecondEpoch(Callback):
    """Does something to the loss once the first of two epochs is over."""

    def before_step(self, model: ElasticModel, step: int, steps: int) -> None:
        self.late = step >= steps / 2

    def loss(self, model: ElasticModel, network: nn.Module, inputs: Tensor, targets: Tensor, loss: Any) -> Tensor:
        found = super().loss(model, network, inputs, targets, loss)
        return self.disturbed(found) if self.late else found

    def disturbed(self, loss: Tensor) -> Tensor:
        raise NotImplementedError


class BecomesNan(InSecondEpoch):
    def disturbed(self, loss: Tensor) -> Tensor:
        return loss * torch.nan


class MeetsFullMemory(InSecondEpoch):
    """Ends as a GPU does when another program has its memory."""

    error: ClassVar[RuntimeError] = torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB.")

    def disturbed(self, loss: Tensor) -> Tensor:
        raise self.error


class Fails(Callback):
    def loss(self, *arguments: Any) -> Tensor:
        raise ValueError("first line\nsecond line")


class WithCallback(Dense):
    """Trains the whole network with another callback."""

    callback: ClassVar[type[Callback]]

    def run(self, job: Job) -> Run:
        model = job.model()
        yield from job.fit(model, self.callback())
        return model.network


class Noisy(WithCallback):
    name, callback = "noisy", NoisyInputs


class Diverging(WithCallback):
    name, callback = "diverging", BecomesNan


class Failing(WithCallback):
    name, callback = "failing", Fails


class DeviceFailing(WithCallback):
    name, callback = "device-failing", MeetsFullMemory


class Refusing(Dense):
    name = "refusing"
    uses_budget = True

    def choose(self, job: Job) -> nn.Module:
        raise UserError(f"budget {job.budget} is too small")


class Skipping(Dense):
    name = "skipping"

    def skip(self, task: Task, network: nn.Module) -> str | None:
        return "its idea needs attention, which this network has not"


MISBEHAVING = (Noisy, Diverging, Failing, Refusing, DeviceFailing, Skipping)
METHODS: dict[str, type[Method]] = {cls.name: cls for cls in (Dense, *MISBEHAVING)}


def use_methods(monkeypatch: Any, *others: type[Method]) -> None:
    """Make the methods of this file, and ``others``, the only registered ones."""
    registered = {**METHODS, **{cls.name: cls for cls in others}}
    monkeypatch.setattr(registry, "methods", lambda: registered)


def small_cell(**changes: Any) -> Cell:
    """Two epochs of two steps on digits."""
    cell = {"method": "dense", "task": "digits", "backbone": "tiny_network", "budget": 1.0, "seed": 0}
    return make_cell(**{**cell, "epochs": 2, "train_samples": 64, **changes})


def finished_record(cell: Cell, **changes: Any) -> Record:
    """A record as a finished run would have left it."""
    counts = {"macs": 50, "dense_macs": 100, "train_macs": 600, "dense_train_macs": 1000, "source_macs": 0}
    ended = {"status": "ok", "metric": "accuracy", "test_metric": 0.5, "total_s": 3.0, "wall_s": 2.0, "cpu_s": 2.0}
    known = {**vars(cell), **counts, **ended, "run_key": cell.run_key(), "schema": SCHEMA, **changes}
    return {field: known.get(field) for field in FIELDS}


def run_in_two_processes(target: Callable[..., object], *arguments: Any) -> None:
    """Calls ``target`` in two processes at once and checks that both end well; they inherit what is patched here."""
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=target, args=arguments) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
    assert [worker.exitcode for worker in workers] == [0, 0]
