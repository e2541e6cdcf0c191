"""Plain training by the recipe, shared by every method whose network does not change while it trains."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from nasbench_grow.contract.method import Job, Method
from nasbench_grow.contract.task import Batch
from nasbench_grow.cost.macs import count_macs


def train_steps(
    job: Job, network: nn.Module, macs: int, optimizer: torch.optim.Optimizer, batches: Iterable[Batch]
) -> float:
    """One optimizer step a batch, with the recipe's learning rate and the training meter.

    Args:
        job: gives the loss, the learning rates and the meter.
        network: trained in place, in training mode.
        macs: forward multiply-accumulates of ``network`` for one input.
        optimizer: holds the parameters of ``network``.
        batches: inputs and targets on the device of the run.

    Returns:
        The mean loss over the batches (NaN where it became so).
    """
    network.train()
    total = torch.zeros((), device=job.example.device)
    steps = 0
    for inputs, targets in batches:
        for group in optimizer.param_groups:
            group["lr"] = job.learning_rate()
        optimizer.zero_grad()
        loss = job.loss(network(inputs), targets)
        loss.backward()
        optimizer.step()
        job.meter.step(macs, len(inputs))
        total += loss.detach()  # stays on the device: reading it every step would stall a GPU
        steps += 1
    return total.item() / max(steps, 1)


class FixedNetwork(Method):
    """A method that chooses a network once and then trains it by the recipe; a subclass says which network."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.chosen = self.choose(job)
        self.fast = job.accelerate(self.chosen)
        self.macs = count_macs(self.chosen, job.example)
        self.optimizer = job.recipe.optimizer(self.chosen)

    @abstractmethod
    def choose(self, job: Job) -> nn.Module:
        """The network to train, on the device of the run; a pure function of ``job``."""

    def train_epoch(self, batches: Iterable[Batch]) -> float:
        """Train on every batch once; returns the mean training loss."""
        return train_steps(self.job, self.fast, self.macs, self.optimizer, batches)

    def network(self) -> nn.Module:
        """The network in training."""
        return self.chosen

    def state_dict(self) -> dict[str, Any]:
        """Weights and optimizer; the structure follows from the job."""
        return {"network": self.chosen.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the epoch that ``state`` was taken at."""
        self.chosen.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
