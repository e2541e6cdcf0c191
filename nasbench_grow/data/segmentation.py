"""What segmentation tasks share: loss, mean intersection over union, the recipe's schedule, the choice of samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nasbench_grow.base.errors import UserError
from nasbench_grow.base.parallel import mean_over_processes
from nasbench_grow.contract.task import Recipe, Split, Task
from nasbench_grow.data.evaluating import evaluating
from nasbench_grow.data.splits import balanced_subset

VOID = 255
"""The class of pixels that count for nothing, in every target."""


@dataclass(frozen=True)
class PolyRecipe(Recipe):
    """DeepLab's schedule: the learning rate falls with (1 - progress) ** 0.9, without a warm-up.

    Chen et al., "Rethinking Atrous Convolution" (arXiv 1706.05587), section 4.1; kept by DeepLabv3+ (arXiv 1802.02611).
    There the encoder is pretrained and the rate 0.007; here all weights are random, so tasks set a higher one.
    """

    warmup: float = 0.0

    def learning_rate_at(self, progress: float) -> float:
        """The rate after the share ``progress`` in [0, 1] of the steps."""
        return self.learning_rate * (1 - progress) ** 0.9


class Segmentation(Task):
    """One class for each pixel. Targets are int64 (batch, height, width), ``VOID`` where a pixel has no class."""

    metric = "mean IoU"
    higher_is_better = True
    metric_scale = 100.0
    metric_unit = "%"

    def output_shape(self) -> tuple[int, ...]:
        """A logit for each class at each pixel."""
        return (self.num_classes, *self.input_shape[1:])

    def loss(self, output: Any, target: Tensor) -> Tensor:
        """Cross entropy, mean over the pixels that have a class, 0 where none has; ``output`` are logits
        (batch, classes, height, width)."""
        total = F.cross_entropy(output, target, ignore_index=VOID, reduction="sum")
        return total / mean_over_processes((target != VOID).sum()).clamp(min=1e-6)

    def evaluate(self, network: nn.Module, split: Split, batch_size: int = 16) -> float:
        """Mean, over the classes that occur in the targets, of intersection over union of the predicted and the true
        pixels of the whole split; void pixels are left out, wherever they lie."""
        with evaluating(network):
            counts = [
                confusion(network(images).argmax(1), targets, self.num_classes)
                for images, targets in split.batches(batch_size)
            ]
        return mean_iou(torch.stack(counts).sum(0))


def confusion(predicted: Tensor, targets: Tensor, classes: int) -> Tensor:
    """How many pixels of each true class (row) were given each class (column), int64 (classes, classes).

    Args:
        predicted: class of every pixel, int64, any shape.
        targets: true classes, or ``VOID``, of the same shape.
        classes: their number.
    """
    known = targets != VOID
    pairs = targets[known] * classes + predicted[known]
    return pairs.bincount(minlength=classes**2).view(classes, classes)


def mean_iou(counts: Tensor) -> float:
    """Mean intersection over union of the classes with any true pixel; ``counts`` as :func:`confusion` gives them.

    Raises:
        UserError: no pixel has a class.
    """
    counts = counts.double()
    true, right = counts.sum(1), counts.diagonal()
    if not true.any():
        raise UserError("every pixel of the split is void, so that it has no mean IoU; give masks with classes")
    union = true + counts.sum(0) - right
    return float((right / union)[true > 0].mean())


def choose_train(task: str, train: Tensor, train_samples: int | None) -> Tensor:
    """A fixed choice of ``train_samples`` (None: all) of the training images, part of every larger choice.

    Args:
        task: the task's name, for the error.
        train: numbers of the training images, int64.
    Raises:
        UserError: ``train_samples`` is not in [1, training images].
    """
    if train_samples is None:
        return train
    if not 1 <= train_samples <= len(train):
        raise UserError(
            f"train_samples is {train_samples}, but {task} needs 1 to {len(train)} (all); choose a number in that "
            "range or leave it out to use all"
        )
    return train[balanced_subset(torch.zeros(len(train), dtype=torch.int64), train_samples)]
