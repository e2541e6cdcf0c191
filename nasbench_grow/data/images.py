"""Image splits that live on the device as uint8 and are augmented and normalised a whole batch at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cache
from typing import Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from nasbench_grow.contract.task import Batch
from nasbench_grow.data.splits import ChosenSamples, balanced_order


@cache
def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """A value for each channel, to be combined with images; kept, as a GPU would have to stop for every new one."""
    return torch.tensor(values, device=device).view(-1, 1, 1)


@dataclass(frozen=True)
class Normalisation:
    """Per-channel mean and standard deviation of pixel values in [0, 1]."""

    mean: Sequence[float]
    std: Sequence[float]

    def __call__(self, images: Tensor) -> Tensor:
        """Normalise uint8 ``images`` of shape (batch, channels, height, width) to float32."""
        mean, std = (_per_channel(tuple(values), images.device) for values in (self.mean, self.std))
        return images.to(torch.float32).sub_(255 * mean).div_(255 * std)


@dataclass(frozen=True)
class Augmentation:
    """Zero padding by ``padding`` pixels, a random crop back to the image's size and, with ``flip``, a mirror image
    with probability one half."""

    padding: int
    flip: bool

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Random choices for ``count`` images: int64 (count, 3), the crop's top and left edge and whether to mirror."""
        corners = torch.randint(2 * self.padding + 1, (count, 2), generator=generator)
        mirrored = torch.randint(2 if self.flip else 1, (count, 1), generator=generator)
        return torch.cat([corners, mirrored], dim=1)

    def __call__(self, images: Tensor, choices: Tensor) -> Tensor:
        """Apply ``choices`` (batch, 3), as :meth:`draw` gives them, to ``images`` (batch, channels, height, width)."""
        batch, channels, height, width = images.shape
        top, left, mirrored = choices.unsqueeze(2).unbind(1)
        columns = torch.arange(width, device=images.device)
        columns = left + torch.where(mirrored == 1, width - 1 - columns, columns)
        rows = top + torch.arange(height, device=images.device)
        padded = F.pad(images, (self.padding,) * 4).flatten(2)
        pixels = rows.unsqueeze(2) * (width + 2 * self.padding) + columns.unsqueeze(1)
        index = pixels.view(batch, 1, height * width).expand(batch, channels, height * width)
        return padded.gather(2, index).view(images.shape)


class ImageSplit:
    """A part of an image data set that is evaluated: fixed order, no augmentation.

    Args:
        images: uint8, shape (n, channels, height, width), on the device where batches are wanted.
        labels: class of each image (n,), or of each pixel (n, height, width), any integer type, on the same device.
        normalisation: turns pixel values into network inputs.
    """

    def __init__(self, images: Tensor, labels: Tensor, normalisation: Normalisation) -> None:
        self.images = images
        self.labels = labels
        self.normalisation = normalisation

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Every sample once in stored order: float32 (batch, channels, height, width), int64 labels (batch, ...)."""
        for images, labels in zip(self.images.split(batch_size), self.labels.split(batch_size), strict=True):
            yield self.normalisation(images), labels.long()


class TrainImages(ImageSplit, ChosenSamples):
    """What image splits in memory that are trained on share, however they augment."""

    def classes(self) -> Tensor:
        """The labels; zeros where each pixel has one."""
        return self.labels if self.labels.ndim == 1 else torch.zeros(len(self), dtype=torch.int64)

    def only(self, chosen: Tensor) -> Self:
        """The same split with the images of these numbers alone, copied."""
        part, chosen = copy(self), chosen.to(self.images.device)
        part.images, part.labels = self.images.index_select(0, chosen), self.labels[chosen]
        return part

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Every sample once, not augmented, in a fixed order of which every beginning is class-balanced."""
        for chosen in balanced_order(self.classes()).to(self.images.device).split(batch_size):
            yield self.normalisation(self.images[chosen]), self.labels[chosen].long()


class ImageTrainSplit(TrainImages):
    """A part of an image data set that is trained on: shuffled, augmented epochs beside the plain batches."""

    def __init__(
        self, images: Tensor, labels: Tensor, normalisation: Normalisation, augmentation: Augmentation
    ) -> None:
        super().__init__(images, labels, normalisation)
        self.augmentation = augmentation

    def epoch(self, epoch: int, batch_size: int, seed: int) -> Iterator[Batch]:
        """Shuffled, augmented, normalised batches: a pure function of the arguments, the same on every device."""
        # Drawn on the CPU: generators of different devices give different streams.
        generator = torch.Generator().manual_seed(epoch_seed(seed, epoch))
        order = torch.randperm(len(self), generator=generator).to(self.images.device)
        choices = self.augmentation.draw(len(self), generator).to(self.images.device)
        for step in range(self.steps_per_epoch(batch_size)):
            part = slice(step * batch_size, (step + 1) * batch_size)
            images = self.images.index_select(0, order[part])  # on a CPU many times as fast as indexing
            yield self.normalisation(self.augmentation(images, choices[part])), self.labels[order[part]].long()


def epoch_seed(seed: int, epoch: int) -> int:
    """One well-mixed number for the pair, so that (seed 1, epoch 0) and (seed 0, epoch 1) have nothing in common."""
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint32)[0])
