"""What classification tasks share: cross entropy and accuracy; and, for images in memory, the splits."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nasbench_grow.base.errors import UserError
from nasbench_grow.contract.task import Split, Splits, Task
from nasbench_grow.data.evaluating import evaluating
from nasbench_grow.data.images import Augmentation, ImageSplit, ImageTrainSplit, Normalisation
from nasbench_grow.data.raw import RawImages
from nasbench_grow.data.splits import balanced_subset, hold_out


class Classification(Task):
    """One class for each sample."""

    metric = "accuracy"
    higher_is_better = True
    metric_scale = 100.0
    metric_unit = "%"

    def loss(self, output: Any, target: Tensor) -> Tensor:
        """Cross entropy, mean over the batch; ``output`` are logits (batch, classes), ``target`` classes (batch,)."""
        return F.cross_entropy(output, target)

    def evaluate(self, network: nn.Module, split: Split, batch_size: int = 512) -> float:
        """Share of the split's images whose largest logit is that of their class."""
        with evaluating(network):
            hits = [(network(images).argmax(1) == labels).sum() for images, labels in split.batches(batch_size)]
        return int(torch.stack(hits).sum()) / len(split)


class ImageClassification(Classification):
    """Labelled images, one class each; a task says where they come from and how they are augmented."""

    normalisation: ClassVar[Normalisation]
    augmentation: ClassVar[Augmentation]
    val_samples: ClassVar[int]
    """Number of training images set aside for validation: a fixed, class-balanced choice."""

    @abstractmethod
    def read(self) -> RawImages:
        """All images and labels; raises UserError where they cannot be had."""

    def fetch(self) -> Path | None:
        """Make sure that the data are on this machine; returns where, or None if a library brings them along."""
        self.read()
        return None

    def load(self, device: torch.device, train_samples: int | None = None) -> Splits:
        """The splits on ``device``; see :meth:`nasbench_grow.contract.task.Task.load`.

        Raises:
            UserError: the data cannot be had, or ``train_samples`` is not in [classes, training samples].
        """
        raw = self.read()
        train, val = hold_out(raw.train_labels, self.val_samples)
        train = choose_train(self.name, train, raw.train_labels, train_samples)

        def part(tensor: Tensor, chosen: Tensor) -> Tensor:
            return tensor[chosen].to(device)

        return Splits(
            train=ImageTrainSplit(
                part(raw.train_images, train), part(raw.train_labels, train), self.normalisation, self.augmentation
            ),
            val=ImageSplit(part(raw.train_images, val), part(raw.train_labels, val), self.normalisation),
            test=ImageSplit(raw.test_images.to(device), raw.test_labels.to(device), self.normalisation),
        )


def choose_train(task: str, train: Tensor, labels: Tensor, train_samples: int | None) -> Tensor:
    """A fixed, class-balanced choice of the training samples.

    Args:
        task: the task's name, for the error.
        train: numbers of the training samples, int64.
        labels: class of every sample, training or not.
        train_samples: how many to keep; None: all.
    Raises:
        UserError: ``train_samples`` is not in [classes, training samples].
    """
    if train_samples is None:
        return train
    classes = len(labels[train].unique())
    if not classes <= train_samples <= len(train):
        raise UserError(
            f"train_samples is {train_samples}, but {task} needs {classes} (one a class) to {len(train)} (all); choose "
            "a number in that range or leave it out to use all"
        )
    return train[balanced_subset(labels[train], train_samples)]
