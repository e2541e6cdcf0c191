"""Growing in one call, for a model and a data loader of one's own."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from nasbench_grow.base.errors import UserError
from nasbench_grow.contract.task import Recipe
from nasbench_grow.cost.macs import count_macs
from nasbench_grow.growing.grower import Grower
from nasbench_grow.growing.presets import Preset, as_preset
from nasbench_grow.structure.architecture import describe, save
from nasbench_grow.structure.discovery import discover
from nasbench_grow.structure.step_time import StepTime, Timing, share_of_dense


@dataclass(frozen=True)
class Grown:
    """What :func:`grow` returns."""

    network: nn.Module
    """The small network: an ordinary module in evaluation mode."""
    architecture: str
    """Its architecture as text (see :mod:`nasbench_grow.structure.architecture`)."""
    macs: int
    """Forward MACs of the network for one input."""
    dense_macs: int
    """Forward MACs of the model that it was grown in."""
    train_macs: int
    """MACs that training took: 3 x forward MACs x batch size, summed over the steps."""
    dense_train_macs: int
    """MACs that training the dense model on the same batches would have taken."""
    history: list[dict[str, Any]]
    """An entry an epoch: epoch, loss, target and cost (shares of the dense MACs), widths of the channel groups."""

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes weights and architecture to one safetensors file; :func:`nasbench_grow.load` reads it back."""
        return save(self.network, self.architecture, path)


def grow(
    model: nn.Module,
    example: Tensor,
    loader: Iterable[tuple[Tensor, Tensor]],
    *,
    budget: float = 0.5,
    budget_ms: float | None = None,
    epochs: int = 30,
    loss: Callable[[Any, Tensor], Tensor] = F.cross_entropy,
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] | None = None,
    learning_rate_at: Callable[[float], float] | None = None,
    preset: str | Preset = "default",
    granularity: int = 8,
    seed: int = 0,
    progress: bool = True,
) -> Grown:
    """Grows a small network inside ``model`` while training it on ``loader``.

    Args:
        model: the dense network that bounds the growth; its weights are changed. Batches are moved to its device.
        example: one input with a batch axis.
        loader: gives (inputs, targets) batches, the same number each time it is looped over.
        budget: MACs of the result as a share of the model's, in (0, 1].
        budget_ms: instead of it, milliseconds that a training step of the result may take on this device. The layers
            are timed for that, once for each device.
        epochs: passes over the loader.
        loss: ``loss(output, target)``, a scalar.
        optimizer: makes the optimizer of a network; None: SGD as in :class:`nasbench_grow.contract.method.Recipe`.
        learning_rate_at: learning rate for the share of the run that is done, in (0, 1]; None: warm-up, cosine, with
            the default optimizer; the optimizer's own with another.
        preset: ``"default"``, ``"paper"`` or a :class:`Preset`.
        granularity: of the widths (:func:`nasbench_grow.structure.selection.allowed_width`); 8 suits CPUs.
        seed: of the sampling of structures.
        progress: show a progress bar.

    Raises:
        UserError: a bad argument, a model with nothing to grow, or a loss that is no longer finite.
    """
    if epochs < 1:
        raise UserError(f"epochs {epochs} is below 1; give the number of passes over the loader")
    steps_per_epoch = _count_batches(loader)
    if optimizer is None:
        recipe = Recipe()
        optimizer, learning_rate_at = recipe.optimizer, learning_rate_at or recipe.learning_rate_at
    rate, total = learning_rate_at, epochs * steps_per_epoch
    chosen = as_preset(preset)
    device = next((parameter.device for parameter in model.parameters()), example.device)
    dense = copy.deepcopy(model)
    example = example.to(device)
    if budget_ms is not None:
        chosen = replace(chosen, cost="time")
    timing = Timing(_batch_size(loader)) if chosen.cost == "time" else Timing()
    if budget_ms is not None:
        budget = share_of_dense(budget_ms, StepTime(discover(model, example), model, example, timing).dense_ms)
    grower = Grower(
        model,
        example,
        budget=budget,
        epochs=epochs,
        steps_per_epoch=steps_per_epoch,
        loss=loss,
        optimizer=optimizer,
        learning_rate_at=None if rate is None else lambda step: rate((step + 1) / total),
        preset=chosen,
        granularity=granularity,
        seed=seed,
        timing=timing,
    )
    samples = 0

    def batches() -> Iterable[tuple[Tensor, Tensor]]:
        nonlocal samples
        for inputs, targets in loader:
            samples += len(inputs)
            bar.update()
            yield inputs.to(device), targets.to(device)

    history = []
    with tqdm(total=total, desc="growing", unit="step", disable=not progress) as bar:
        for epoch in range(1, epochs + 1):
            mean = grower.train(batches())
            if not math.isfinite(mean):
                raise UserError(f"the loss became {mean} in epoch {epoch}; give a lower learning rate")
            history.append({"epoch": epoch, "loss": mean, **grower.log(), "widths": grower.widths()})
            bar.set_postfix(loss=f"{mean:.3f}", macs=f"{grower.macs / grower.dense_macs:.0%}")
    network = grower.finish()
    return Grown(
        network=network,
        architecture=describe(network, dense),
        macs=count_macs(network, example),
        dense_macs=grower.dense_macs,
        train_macs=grower.meter.total,
        dense_train_macs=3 * grower.dense_macs * samples,
        history=history,
    )


def _batch_size(loader: Iterable[tuple[Tensor, Tensor]]) -> int:
    """Samples in the first batch."""
    return len(next(iter(loader))[0])


def _count_batches(loader: Iterable[tuple[Tensor, Tensor]]) -> int:
    """Batches in one pass over the loader."""
    try:
        count = len(loader)  # type: ignore[arg-type]
    except TypeError as error:  # no length, or a DataLoader over a stream
        if iter(loader) is loader:
            raise UserError(
                f"a {type(loader).__name__} gives its batches only once; give a list or a loader"
            ) from error
        count = sum(1 for _ in loader)
    if count == 0:
        raise UserError("the loader gives no batch; give one with at least one (inputs, targets) pair")
    return count
