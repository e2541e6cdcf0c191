"""What a job needs where there is no task: a user's own batches, optimizer and learning rates."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from nasbench_grow.base.errors import UserError, one_line
from nasbench_grow.contract import Batch, Recipe, Split, TrainSplit
from nasbench_grow.cost.meter import TrainingMeter
from nasbench_grow.structure.subnetwork import can_follow

Optimizer = torch.optim.Optimizer
MakeOptimizer = Callable[[nn.Module], Optimizer | tuple[Optimizer, Any]]
"""Makes the optimizer of a network, alone or with a scheduler of its learning rates."""


@dataclass
class _Running:
    """The optimizer in use and its scheduler."""

    optimizer: Optimizer | None = None
    scheduler: Any = None


@dataclass(frozen=True)
class OwnRecipe(Recipe):
    """A user's optimizer and learning rates in the place of the recipe's."""

    make: MakeOptimizer | None = None
    """None: the recipe's optimizer."""
    rate: Callable[[float], float] | None = None
    """Learning rate for the share of the run that is done, in (0, 1]; None: the optimizer's own rates stay."""
    running: _Running = field(default_factory=_Running)

    def learning_rate_at(self, progress: float) -> float:
        """The user's rate; NaN, which is not used, where there is none."""
        return math.nan if self.rate is None else self.rate(progress)

    def set_rate(self, optimizer: Optimizer, rate: float) -> None:
        """Sets the user's rate, if there is one."""
        if self.rate is not None:
            super().set_rate(optimizer, rate)

    def optimizer(self, network: nn.Module) -> Optimizer:
        """The user's optimizer; its scheduler, and the rates that it has set, go on from the last network's."""
        if self.make is None:
            return super().optimizer(network)
        optimizer, scheduler = _made(self.make, network)
        if scheduler is not None and self.rate is not None:
            raise UserError("learning_rate_at and the scheduler beside the optimizer both set the rate; leave one out")
        before = self.running
        if before.optimizer is not None and before.scheduler is not None and scheduler is not None:
            if len(before.optimizer.param_groups) != len(optimizer.param_groups):
                raise UserError(
                    f"the optimizer has {len(before.optimizer.param_groups)} parameter groups for one network and "
                    f"{len(optimizer.param_groups)} for another; make the same groups for each, also where one is empty"
                )
            for old, new in zip(before.optimizer.param_groups, optimizer.param_groups, strict=True):
                new.update({key: value for key, value in old.items() if key != "params"})
            scheduler.load_state_dict(before.scheduler.state_dict())
        before.optimizer, before.scheduler = optimizer, scheduler
        return optimizer

    def after_epoch(self, loss: float) -> None:
        """Moves the user's scheduler on, if there is one."""
        if isinstance(self.running.scheduler, ReduceLROnPlateau):
            self.running.scheduler.step(loss)
        elif self.running.scheduler is not None:
            self.running.scheduler.step()


def _made(make: MakeOptimizer, network: nn.Module) -> tuple[Optimizer, Any]:
    """What the user's function gives for a network: an optimizer and a scheduler or None.

    Raises:
        UserError: it fails, gives something else, or an optimizer of other parameters.
    """
    hint = "give a function of the network, e.g. lambda network: torch.optim.Adam(network.parameters())"
    if not callable(make):
        raise UserError(f"the optimizer is a {type(make).__name__}, which cannot be made for each new network; {hint}")
    try:
        made = make(network)
    except Exception as error:
        raise UserError(f"the optimizer cannot be made: {one_line(error)}; {hint}") from error
    optimizer, scheduler = made if isinstance(made, (tuple, list)) and len(made) == 2 else (made, None)
    if not isinstance(optimizer, Optimizer):
        raise UserError(f"optimizer(network) gives a {type(optimizer).__name__}; {hint}")
    if scheduler is not None and not isinstance(scheduler, LRScheduler):
        raise UserError(
            f"optimizer(network) gives a {type(scheduler).__name__} beside the optimizer; give a scheduler of "
            "torch.optim.lr_scheduler, which is moved on after each epoch"
        )
    return optimizer, scheduler


def check_training(make: MakeOptimizer | None, network: nn.Module, dense: nn.Module) -> None:
    """Raise UserError unless an optimizer made for ``network``, a sub-network of ``dense``, trains it and its state can
    follow the network as it changes. Both are left as they are.

    One step is tried, with gradients of zero, on copies of the parameters.
    """
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if not trained:
        raise UserError(
            f"all parameters of {type(network).__name__} are frozen (requires_grad is False): nothing would be "
            "trained; let some of them learn"
        )
    if make is None:
        return
    optimizer, _ = _made(make, network)
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    own, others = {id(each) for each in network.parameters()}, {id(each) for each in dense.parameters()}
    if not any(id(parameter) in own for parameter in held) or any(id(each) in others for each in held):
        raise UserError(
            "optimizer(network) holds parameters of another network than the one it was given; use its argument, as in "
            "lambda network: torch.optim.Adam(network.parameters())"
        )
    values = [parameter.detach().clone() for parameter in held]
    try:
        for parameter in held:
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        optimizer.step()
    except Exception as error:
        raise UserError(
            f"{type(optimizer).__name__} cannot be stepped as step(): {one_line(error)}; give an optimizer that "
            "needs no closure"
        ) from error
    finally:
        with torch.no_grad():
            for parameter, value in zip(held, values, strict=True):
                parameter.copy_(value)
                parameter.grad = None
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if not can_follow(key, value, parameter):
                what = f"of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
                raise UserError(
                    f"{type(optimizer).__name__} keeps {key!r} ({what}) for a parameter of shape "
                    f"{tuple(parameter.shape)}, which cannot follow the network as it grows; give another optimizer, "
                    "e.g. SGD, AdamW or Adafactor"
                )


class SampleMeter(TrainingMeter):
    """Counts the samples of all steps, too."""

    samples = 0

    def step(self, macs: int, batch_size: int) -> None:
        """Add one optimizer step of a network with ``macs`` forward MACs a sample."""
        self.samples += batch_size
        super().step(macs, batch_size)


class OwnBatches:
    """A user's batches as a training split, in their own order and size.

    Args:
        batches: gives the batches of epoch 1, 2, ...
        count: how many they are in each epoch.
    """

    def __init__(self, batches: Callable[[int], Iterable[Batch]], count: int) -> None:
        self._batches, self._count = batches, count

    def __len__(self) -> int:
        """Batches of an epoch: how many samples they hold is not known."""
        return self._count

    def steps_per_epoch(self, batch_size: int) -> int:
        """Batches of an epoch."""
        return self._count

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """The batches of the first epoch."""
        return iter(self._batches(1))

    def epoch(self, epoch: int, batch_size: int, seed: int) -> Iterator[Batch]:
        """The batches of an epoch."""
        return iter(self._batches(epoch))

    def hold_out(self, share: float, batch_size: int = 1) -> tuple[TrainSplit, Split]:
        """Own batches are used whole."""
        raise UserError("a loader cannot be divided; give this method a task")
