"""Growing in one call, for a model and a data loader of one's own."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from nasbench_grow.base.errors import UserError
from nasbench_grow.contract import Batch, DivergedError, Job, Recipe, Run
from nasbench_grow.cost.macs import count_macs
from nasbench_grow.growing.beginning import Settings, begin, check_kind
from nasbench_grow.growing.growing import check_share_of_dense, check_spent
from nasbench_grow.growing.own import OwnBatches, OwnRecipe
from nasbench_grow.growing.relaxation import RelaxationSettings
from nasbench_grow.growing.sampling import SamplingSettings
from nasbench_grow.structure.architecture import describe, save
from nasbench_grow.structure.discovery import discover
from nasbench_grow.structure.selection import check_granularity
from nasbench_grow.structure.space import Space
from nasbench_grow.structure.step_time import StepTime, Timing, share_of_dense
from nasbench_grow.structure.widths import output_channels


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
    """An entry an epoch: epoch, loss, target and cost (shares of the dense one), output channels of every layer."""

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes weights and architecture to one safetensors file; :func:`nasbench_grow.load` reads it back."""
        return save(self.network, self.architecture, path)


def grow(
    model: nn.Module,
    example: Tensor,
    loader: Iterable[Batch],
    *,
    budget: float = 0.5,
    budget_ms: float | None = None,
    epochs: int = 30,
    loss: Callable[[Any, Tensor], Tensor] = F.cross_entropy,
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] | None = None,
    learning_rate_at: Callable[[float], float] | None = None,
    settings: Settings | None = None,
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
        optimizer: makes the optimizer of a network; None: SGD as in :class:`nasbench_grow.contract.Recipe`.
        learning_rate_at: learning rate for the share of the run that is done, in (0, 1]; None: warm-up, cosine, with
            the default optimizer; the optimizer's own with another.
        settings: of the method; a :class:`ScalingSettings` grows by a schedule that learns nothing, a
            :class:`RelaxationSettings` by the paper's equations. None: the defaults of :class:`SamplingSettings`.
        granularity: of the widths (:func:`nasbench_grow.structure.selection.allowed_width`); 8 suits CPUs.
        seed: of the sampling of structures.
        progress: show a progress bar.

    Raises:
        UserError: a bad argument, a model with nothing to grow, a loader that gives fewer batches than it has, a run
            too short to reach the budget, a loss that is no longer finite, or a network that is not what the model is
            without its absent channels.

    Warns:
        UserWarning: no network of this space comes close to the budget, or the paper's masks missed it; the loader's
            inputs are of another shape than the example.
    """
    if epochs < 1:
        raise UserError(f"epochs {epochs} is below 1; give the number of passes over the loader")
    if epochs != int(epochs):
        raise UserError(f"epochs {epochs} is no whole number; give the number of passes over the loader")
    check_granularity(granularity)
    check_share_of_dense(budget)
    if not isinstance(seed, int) or isinstance(seed, bool) or not -(2**63) <= seed < 2**64:
        raise UserError(f"seed {seed!r} is no whole number of 64 bits; give one, e.g. 0")
    device = next((parameter.device for parameter in model.parameters()), example.device)
    dense, example = copy.deepcopy(model), example.to(device)
    settings = SamplingSettings() if settings is None else settings
    check_kind(settings)
    rate = learning_rate_at or (Recipe().learning_rate_at if optimizer is None else None)
    price = None
    if budget_ms is not None or getattr(settings, "cost", "macs") == "time":
        timing = Timing(_batch_size(loader))

        def price(space: Space, network: nn.Module) -> StepTime:
            return StepTime(space, network, example, timing)

        if budget_ms is not None:
            if isinstance(settings, RelaxationSettings):
                raise UserError("budget_ms needs a cost in seconds, which the paper's masks have not; give a budget")
            settings = replace(settings, cost="time")
            budget = share_of_dense(budget_ms, price(discover(model, example), model).dense_ms)
    count = _count_batches(loader)
    with tqdm(total=epochs * count, desc="growing", unit="step", disable=not progress) as bar:
        samples, last = 0, example

        def batches(epoch: int) -> Iterator[Batch]:
            nonlocal samples, last
            for inputs, targets in loader:
                samples += len(inputs)
                bar.update()
                last = inputs.to(device)
                yield last, targets.to(device)

        job = Job(
            budget=budget,
            seed=seed,
            epochs=epochs,
            granularity=granularity,
            example=example,
            recipe=OwnRecipe(make=optimizer, rate=rate),
            loss=loss,
            build=lambda: model,
            train=OwnBatches(batches, count),
            price=price,
        )
        seed_model, growing = begin(job, settings)
        history, network = _follow(growing.run(job, seed_model), bar)
    network.eval().zero_grad()
    job.check_returned(network, last)
    check_spent(growing)
    if last.shape[1:] != example.shape[1:]:
        warnings.warn(
            f"inputs have the shape {tuple(last.shape[1:])}, the example {tuple(example.shape[1:])}: MACs are those "
            "of inputs like the example",
            stacklevel=2,
        )
    dense_macs = count_macs(dense, example)
    return Grown(
        network=network,
        architecture=describe(network, dense),
        macs=count_macs(network, example),
        dense_macs=dense_macs,
        train_macs=job.meter.total,
        dense_train_macs=3 * dense_macs * samples,
        history=history,
    )


def _follow(run: Run, bar: Any) -> tuple[list[dict[str, Any]], nn.Module]:
    """The history of a run, as it goes on, and the network that it returns."""
    history: list[dict[str, Any]] = []
    while True:
        try:
            stage = next(run)
        except StopIteration as end:
            return history, end.value
        except DivergedError as error:
            raise UserError(f"{error}; give a lower learning rate") from error
        history.append(
            {"epoch": len(history) + 1, "loss": stage.loss, **stage.log, "widths": output_channels(stage.network)}
        )
        bar.set_postfix(loss=f"{stage.loss:.3f}", cost=f"{stage.log['cost']:.0%}")


def _batch_size(loader: Iterable[Batch]) -> int:
    """Samples in the first batch."""
    return len(next(iter(loader))[0])


def _count_batches(loader: Iterable[Batch]) -> int:
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
