"""Trees of image files, one sub-folder a class: decoded by worker processes, when a batch needs them.

A data set of this kind does not fit into memory. Worker processes, as many as there are cores, decode, crop and mirror;
what they send are bytes, which the device normalises a whole batch at a time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset
from torchvision.transforms import v2

from nasbench_grow.contract import Batch
from nasbench_grow.data.images import Normalisation, epoch_seed
from nasbench_grow.errors import UserError

Sample = tuple[str, int]
"""File and class of one image."""

RESIZE = 256 / 224
"""Before the central crop of the evaluation the shorter side is so many times the crop's."""


def read_tree(folder: Path) -> tuple[list[str], list[Sample]]:
    """The classes (names of the sub-folders, sorted) and the images of a tree, class by class.

    Raises:
        UserError: the folder or its classes are missing, or a class holds no image; the line names it.
    """
    try:
        classes, numbers = find_classes(str(folder))
    except OSError as error:
        raise UserError(f"{folder} holds no class; put the images into it, one sub-folder a class") from error
    samples = make_dataset(str(folder), numbers, IMG_EXTENSIONS, allow_empty=True)
    empty = set(range(len(classes))) - {label for _, label in samples}
    if empty:
        kinds = ", ".join(IMG_EXTENSIONS)
        raise UserError(f"{folder / classes[min(empty)]} holds no image ({kinds}); add some, or delete the folder")
    return classes, samples


class FolderSplit:
    """Images that are evaluated: fixed order, resized, the centre cut out.

    Args:
        samples: file and class of each image.
        size: height and width of what the network sees.
        normalisation: turns pixel values into network inputs.
        device: where the batches are wanted.
    """

    def __init__(
        self, samples: Sequence[Sample], size: int, normalisation: Normalisation, device: torch.device
    ) -> None:
        self.samples, self.size = samples, size
        self.normalisation, self.device = normalisation, device

    def __len__(self) -> int:
        return len(self.samples)

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Every image once in order: float32 (batch, 3, size, size), int64 labels (batch,).

        Raises:
            UserError: an image cannot be read; the line names its file.
        """
        size = self.size
        view = v2.Compose([v2.Resize(round(RESIZE * size), antialias=True), v2.CenterCrop(size), v2.PILToTensor()])
        order = torch.arange(len(self))
        yield from self._load(view, [[(int(i), 0) for i in part] for part in order.split(batch_size)])

    def _load(self, view: v2.Transform, batches: Sequence[Sequence[tuple[int, int]]]) -> Iterator[Batch]:
        """Batches of images under ``view``; each image is given by its number and the seed of its random choices."""
        loader = DataLoader(
            _Views(self.samples, view),
            batch_sampler=batches,  # type: ignore[arg-type]
            num_workers=min(len(batches), len(os.sched_getaffinity(0))),
            collate_fn=_collate,
            pin_memory=self.device.type == "cuda",
        )
        for images, labels, faults in loader:
            if faults:
                raise UserError(faults[0])
            images, labels = (part.to(self.device, non_blocking=True) for part in (images, labels))
            yield self.normalisation(images), labels


class FolderTrainSplit(FolderSplit):
    """Images that are trained on: shuffled epochs of random crops of random size and shape, half of them mirrored."""

    def steps_per_epoch(self, batch_size: int) -> int:
        """Number of batches of an epoch: whole ones only, but at least one."""
        return max(1, len(self) // batch_size)

    def epoch(self, epoch: int, batch_size: int, seed: int) -> Iterator[Batch]:
        """Shuffled, augmented, normalised batches: a pure function of the arguments, whatever the number of workers.

        Raises:
            UserError: an image cannot be read; the line names its file.
        """
        view = v2.Compose(
            [v2.RandomResizedCrop(self.size, antialias=True), v2.RandomHorizontalFlip(), v2.PILToTensor()]
        )
        draws = np.random.default_rng([epoch_seed(seed, epoch)])
        order = draws.permutation(len(self)).tolist()
        seeds = draws.integers(2**31, size=len(self)).tolist()
        drawn = list(zip(order, seeds, strict=True))
        steps = self.steps_per_epoch(batch_size)
        yield from self._load(view, [drawn[step * batch_size : (step + 1) * batch_size] for step in range(steps)])


class _Views(Dataset[tuple[Tensor, int, str]]):
    """Views of image files; what cannot be read gives a fault instead, because workers wrap their errors in traces."""

    def __init__(self, samples: Sequence[Sample], view: v2.Transform) -> None:
        self.samples, self.view = samples, view

    def __getitem__(self, drawn: tuple[int, int]) -> tuple[Tensor, int, str]:
        number, seed = drawn
        path, label = self.samples[number]
        try:
            with Image.open(path) as image, torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                return self.view(image.convert("RGB")), label, ""
        except (OSError, SyntaxError, ValueError) as error:
            reason = " ".join(str(error).split())
            return torch.empty(0), label, f"{path} cannot be read as an image ({reason}); replace or delete it"


def _collate(parts: list[tuple[Tensor, int, str]]) -> tuple[Tensor, Tensor, list[str]]:
    images, labels, faults = zip(*parts, strict=True)
    found = [fault for fault in faults if fault]
    return torch.empty(0) if found else torch.stack(images), torch.tensor(labels), found
