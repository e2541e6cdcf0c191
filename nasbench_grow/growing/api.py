"""Growing in one call, for a model and a data loader of one's own."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from nasbench_grow.base.calling import batch_length, call
from nasbench_grow.base.errors import UserError
from nasbench_grow.base.given import check_example, check_model, unwrapped
from nasbench_grow.base.trees import tensors, to_device
from nasbench_grow.contract import Batch, DivergedError, Job, Recipe, Run
from nasbench_grow.cost.macs import count_macs
from nasbench_grow.growing.arguments import check_arguments
from nasbench_grow.growing.beginning import Settings, begin, check_kind
from nasbench_grow.growing.growing import check_share_of_dense, check_spent
from nasbench_grow.growing.loading import Step, arranged, checked, count_batches, first_length, leaves_one
from nasbench_grow.growing.own import MakeOptimizer, OwnBatches, OwnRecipe, SampleMeter, check_training
from nasbench_grow.growing.relaxation import RelaxationSettings
from nasbench_grow.growing.sampling import SampledMasks, SamplingSettings
from nasbench_grow.structure.architecture import describe, save
from nasbench_grow.structure.discovery import discover
from nasbench_grow.structure.selection import check_granularity
from nasbench_grow.structure.space import Space
from nasbench_grow.structure.step_time import StepTime, Timing, share_of_dense
from nasbench_grow.structure.subnetwork import detach_kept
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
    example: Any = None
    """The input that it was grown with: :meth:`save` keeps what the network answers to one like it."""

    def save(self, path: str | os.PathLike[str], *, class_names: Sequence[str] = ()) -> Path:
        """Writes weights, architecture and the names of the classes to one safetensors file, which
        :func:`nasbench_grow.load` reads back; it refuses to give a network that computes anything else."""
        return save(self.network, self.architecture, path, example=self.example, class_names=class_names)


def grow(
    model: nn.Module,
    example: Any,
    loader: Iterable[Any],
    *,
    budget: float = 0.5,
    budget_ms: float | None = None,
    epochs: int = 30,
    loss: Callable[[Any, Any], Tensor] = F.cross_entropy,
    step: Step | None = None,
    optimizer: MakeOptimizer | None = None,
    learning_rate_at: Callable[[float], float] | None = None,
    settings: Settings | None = None,
    granularity: int = 8,
    seed: int = 0,
    progress: bool = True,
) -> Grown:
    """Grows a small network inside ``model`` while training it on ``loader``.

    Args:
        model: the dense network that bounds the growth; its weights are changed. Batches are moved to its device.
        example: one input with a batch axis: a tensor, a tuple of what ``forward`` takes, or a dict of it by keyword.
        loader: gives (inputs, targets) batches, the same number each time it is looped over; inputs as in ``example``.
        budget: MACs of the result as a share of the model's, in (0, 1].
        budget_ms: instead of it, milliseconds that a training step of the result may take on this device. The layers
            are timed for that, once for each device.
        epochs: passes over the loader.
        loss: ``loss(output, target)``, a scalar.
        step: instead of it, ``step(network, batch)`` for batches of any kind: calls the network, in training mode, and
            returns a scalar loss. Every input that it calls the network with is billed.
        optimizer: makes the optimizer of a network, or (optimizer, scheduler): the scheduler is moved on after each
            epoch, by its loss if it is a ``ReduceLROnPlateau``. Called anew for each network that trains; what the old
            optimizer knew is carried over. None: SGD as in :class:`nasbench_grow.contract.Recipe`.
        learning_rate_at: learning rate for the share of the run that is done, in (0, 1]; None: warm-up, cosine, with
            the default optimizer; the optimizer's own with another.
        settings: of the method; a :class:`ScalingSettings` grows by a schedule that learns nothing, a
            :class:`RelaxationSettings` by the paper's equations. None: the defaults of :class:`SamplingSettings`.
        granularity: of the widths (:func:`nasbench_grow.structure.selection.allowed_width`); 8 suits CPUs.
        seed: of the sampling of structures.
        progress: show a progress bar.

    Raises:
        UserError: a bad argument, a model with nothing to grow, an optimizer whose state cannot follow, a loader that
            gives fewer batches than it has, a run too short to reach the budget, a loss that is no longer finite, or a
            network that is not what the model is without its absent channels.

    Warns:
        UserWarning: the run is too short to learn which structures are worth most; no network of this space comes
            close to the budget, or the paper's masks missed it; the loader's inputs are of another shape than the
            example.
    """
    check_arguments(
        epochs=epochs,
        seed=seed,
        budget_ms=budget_ms,
        loss=loss,
        step=step,
        learning_rate_at=learning_rate_at,
    )
    check_granularity(granularity)
    check_share_of_dense(budget)
    epochs, model = int(epochs), unwrapped(model)
    check_model(model)
    check_example(example)
    like = next(model.parameters(), tensors(example)[0])
    detach_kept(model)
    dense, example = copy.deepcopy(model), to_device(example, like.device)
    settings = SamplingSettings() if settings is None else settings
    check_kind(settings)
    rate = learning_rate_at or (Recipe().learning_rate_at if optimizer is None else None)
    price = None
    if budget_ms is not None or getattr(settings, "cost", "macs") == "time":
        timing = Timing(first_length(loader))

        def price(space: Space, network: nn.Module) -> StepTime:
            return StepTime(space, network, example, timing)

        if budget_ms is not None:
            if isinstance(settings, RelaxationSettings):
                raise UserError("budget_ms needs a cost in seconds, which the paper's masks have not; give a budget")
            settings = replace(settings, cost="time")
            budget = share_of_dense(budget_ms, price(discover(model, example), model).dense_ms)
    count = count_batches(loader)
    if leaves_one(loader):
        _check_alone(model, example)
    recipe = OwnRecipe(make=optimizer, rate=rate)
    meter = SampleMeter()
    with tqdm(total=epochs * count, desc="growing", unit="step", disable=not progress) as bar:
        last = example

        def batches(epoch: int) -> Iterator[Batch]:
            nonlocal last
            for batch in loader:
                bar.update()
                inputs, targets = arranged(batch, step, like)
                last = inputs if step is None else example
                yield inputs, targets

        job = Job(
            budget=budget,
            seed=seed,
            epochs=epochs,
            granularity=granularity,
            example=example,
            recipe=recipe,
            loss=checked(loss, step),
            build=lambda: model,
            train=OwnBatches(batches, count),
            price=price,
            meter=meter,
        )
        seed_model, growing = begin(job, settings)
        if isinstance(growing.masks, SampledMasks) and not growing.masks.learns:
            warnings.warn(
                f"the search of a run of {job.total_steps} steps has fewer than least_search, "
                f"{growing.masks.settings.least_search}, and learns nothing: all widths get the same share; train for "
                "longer, or give settings with a larger search",
                stacklevel=2,
            )
        check_training(optimizer, seed_model.network, seed_model.dense)
        history, network = _follow(growing.run(job, seed_model), recipe, bar)
    network.eval().zero_grad()
    job.check_returned(network, last)
    check_spent(growing)
    _compare_shapes(last, example)
    dense_macs = count_macs(dense, example)
    return Grown(
        network=network,
        architecture=describe(network, dense),
        macs=count_macs(network, example),
        dense_macs=dense_macs,
        train_macs=job.meter.total,
        dense_train_macs=3 * dense_macs * meter.samples,
        history=history,
        example=example,
    )


def _compare_shapes(inputs: Any, example: Any) -> None:
    """Warn where inputs are larger or smaller than what MACs are counted on."""
    given, counted = ([tuple(tensor.shape[1:]) for tensor in tensors(each)] for each in (inputs, example))
    if given != counted:
        warnings.warn(
            f"inputs have the shape {', '.join(map(str, given))}, the example {', '.join(map(str, counted))}: MACs are "
            "those of inputs like the example",
            stacklevel=3,
        )


def _follow(run: Run, recipe: OwnRecipe, bar: Any) -> tuple[list[dict[str, Any]], nn.Module]:
    """The history of a run, as it goes on, and the network that it returns."""
    history: list[dict[str, Any]] = []
    while True:
        try:
            stage = next(run)
        except StopIteration as end:
            return history, end.value
        except DivergedError as error:
            raise UserError(f"{error}; give a lower learning rate") from error
        except ValueError as error:
            if ALONE not in str(error):
                raise
            raise UserError(_ALONE_LINE) from error
        recipe.after_epoch(stage.loss)
        history.append(
            {"epoch": len(history) + 1, "loss": stage.loss, **stage.log, "widths": output_channels(stage.network)}
        )
        bar.set_postfix(loss=f"{stage.loss:.3f}", cost=f"{stage.log['cost']:.0%}")


ALONE = "Expected more than 1 value per channel"
"""What batch normalisation says of a batch of one."""
_ALONE_LINE = (
    "a batch of one sample cannot train this model's batch normalisations; let the loader leave the rest out "
    "(DataLoader(..., drop_last=True)) or give another batch size"
)


def _check_alone(model: nn.Module, example: Any) -> None:
    """Raise UserError if the model cannot be trained on one sample."""
    if batch_length(example) != 1:
        return
    try:
        with torch.no_grad():
            call(copy.deepcopy(model).train(), example)
    except ValueError as error:
        if ALONE in str(error):
            raise UserError(_ALONE_LINE) from error
    except Exception:  # the example may be none for training, as where a step adds targets
        return
