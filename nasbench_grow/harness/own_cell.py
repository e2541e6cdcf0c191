"""The cell of a user's own folder of images: the same runs, records and resuming as of any other task."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nasbench_grow.base.errors import UserError, one_line
from nasbench_grow.contract import Recipe
from nasbench_grow.data.images import Normalisation
from nasbench_grow.data.own_images import OwnImages, own_images
from nasbench_grow.data.trained_weights import put_weights, read_weights
from nasbench_grow.harness import registry
from nasbench_grow.harness.cell import Cell, make_cell

DEVICES = ("auto", "cpu", "cuda")
DEFAULT_SIZE = 224
RATE_OF_256 = 0.1
"""Learning rate of a batch of 256, as of the suite's photographs."""
WEIGHT_DECAY = 1e-4
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class OwnRun:
    """What a user asks for."""

    model: str
    """A name of timm's, or ``module:function``."""
    data: str
    budget: float = 0.5
    epochs: int = 90
    method: str = "grow"
    checkpoint: str | None = None
    batch_size: int = 64
    image_size: int | None = None
    """None: what timm says of the model, or 224."""
    learning_rate: float | None = None
    """None: 0.1 for a batch of 256, in proportion for others."""
    augmentation: str = "crop"
    val_share: float = 0.2
    seed: int = 0
    device: str = "auto"


def own_cell(asked: OwnRun) -> tuple[Cell, type[OwnImages]]:
    """The cell and its task, which this process knows from now on.

    Raises:
        UserError: anything that is asked for cannot be had.
    """
    if asked.batch_size < 2:
        raise UserError(f"batch size {asked.batch_size} is out of range: give 2 or more images")
    rate = RATE_OF_256 * asked.batch_size / 256 if asked.learning_rate is None else asked.learning_rate
    if not 0 < rate < float("inf"):
        raise UserError(f"learning rate {rate:g} is out of range: give a number above 0")
    if not 0 <= asked.seed < 2**32:
        raise UserError(f"seed {asked.seed} is out of range: use a whole number from 0 to {2**32 - 1}")
    registry.method(asked.method)
    setup = _setup(asked.device)
    config = _timm_config(asked.model)
    size = asked.image_size
    if size is None:
        size = DEFAULT_SIZE if config is None else config.input_size[-1]
    if size < 1:
        raise UserError(f"image size {size} is out of range: give the pixels of a side, 1 or more")
    task = own_images(
        asked.data,
        image_size=size,
        recipe=Recipe(batch_size=asked.batch_size, learning_rate=rate, weight_decay=WEIGHT_DECAY),
        augmentation=asked.augmentation,
        normalisation=Normalisation(*(_IMAGENET if config is None else (tuple(config.mean), tuple(config.std)))),
        val_share=asked.val_share,
        seed=asked.seed,
        checkpoint=asked.checkpoint,
    )
    registry.add_task(task)
    _check(asked, task)
    cell = make_cell(
        method=asked.method,
        task=task.name,
        backbone=asked.model,
        budget=asked.budget,
        seed=asked.seed,
        epochs=asked.epochs,
        setup=setup,
    )
    return cell, task


def _setup(device: str) -> str:
    """The set-up for a device."""
    if device not in DEVICES:
        raise UserError(f"unknown device {device!r}: choose {', '.join(DEVICES)}")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        return "cpu"
    name = "cuda-tf32" if registry.setup("cuda-tf32").available()[0] else "cuda-fp32"
    registry.usable_setup(name)
    return name


def _timm_config(model: str) -> Any:
    """What timm says of a model's inputs; None where it says nothing."""
    import timm

    import nasbench_grow.backbones  # noqa: F401  (registers the suite's own)

    return timm.get_pretrained_cfg(model) if timm.is_model(model) else None


def _check(asked: OwnRun, task: type[OwnImages]) -> None:
    """Raises UserError unless the model takes the images, gives a logit for each class and fits the checkpoint."""
    network = registry.build_backbone(asked.model, task()).eval()
    size, classes = task.input_shape[-1], task.num_classes
    try:
        with torch.inference_mode():
            output = network(task().example())
    except Exception as error:  # a model may refuse in any way
        raise UserError(
            f"model {asked.model!r} does not take images of {size} x {size} pixels ({one_line(error)}); give another "
            "--image-size, most often a larger one"
        ) from error
    if tuple(getattr(output, "shape", ())) != (1, classes):
        shape = list(getattr(output, "shape", ())) or f"a {type(output).__name__}"
        raise UserError(
            f"model {asked.model!r} gives {shape} for one image, but {Path(asked.data)} has {classes} classes, so that "
            f"[1, {classes}] is needed; give a model of that many classes"
        )
    if asked.checkpoint is not None:
        put_weights(network, read_weights(asked.checkpoint), asked.checkpoint)
