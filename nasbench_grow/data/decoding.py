"""Splits whose samples are files: decoded by worker processes, when a batch needs them.

A data set of this kind does not fit into memory. Worker processes, as many as there are cores, decode and augment; what
they send are bytes, which the device normalises a whole batch at a time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from pathlib import Path
from typing import Generic, Self, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from nasbench_grow.base.errors import UserError
from nasbench_grow.contract.task import Batch
from nasbench_grow.data.images import Normalisation, epoch_seed
from nasbench_grow.data.splits import ChosenSamples, balanced_order

Sample = TypeVar("Sample")
Shown = tuple[Tensor, Tensor]
"""One decoded sample: uint8 image (3, height, width) and its int64 target, of any shape."""


class DecodedSplit(Generic[Sample]):
    """Samples that are evaluated: fixed order, not augmented.

    Args:
        samples: what ``view`` needs to find each sample.
        view: decodes one sample; raises UserError naming a bad file.
        normalisation: turns pixel values into network inputs.
        device: where the batches are wanted.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        view: Callable[[Sample], Shown],
        normalisation: Normalisation,
        device: torch.device,
    ) -> None:
        self.samples, self.view = samples, view
        self.normalisation, self.device = normalisation, device

    def __len__(self) -> int:
        return len(self.samples)

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Every sample once in order: float32 images (batch, 3, height, width), targets (batch, ...).

        Raises:
            UserError: a file cannot be used; the line names it.
        """
        yield from self._shown(torch.arange(len(self)), batch_size)

    def _shown(self, order: Tensor, batch_size: int) -> Iterator[Batch]:
        """The samples of these numbers, not augmented."""
        yield from self._load(self.view, [[(int(i), 0) for i in part] for part in order.split(batch_size)])

    def _load(self, view: Callable[[Sample], Shown], batches: Sequence[Sequence[tuple[int, int]]]) -> Iterator[Batch]:
        """Batches of samples under ``view``; each sample is given by its number and the seed of its random choices."""
        loader = DataLoader(
            _Views(self.samples, view),
            batch_sampler=batches,  # type: ignore[arg-type]
            num_workers=min(len(batches), len(os.sched_getaffinity(0))),
            collate_fn=_collate,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # else it would draw from the global one, for seeds that nobody uses
        )
        for images, targets, faults in loader:
            if faults:
                raise UserError(faults[0])
            images, targets = (part.to(self.device, non_blocking=True) for part in (images, targets))
            yield self.normalisation(images), targets


class DecodedTrainSplit(DecodedSplit[Sample], ChosenSamples):
    """Samples that are trained on: shuffled epochs under ``augmented``, which draws from PyTorch's global generator."""

    def __init__(
        self,
        samples: Sequence[Sample],
        view: Callable[[Sample], Shown],
        augmented: Callable[[Sample], Shown],
        normalisation: Normalisation,
        device: torch.device,
    ) -> None:
        super().__init__(samples, view, normalisation, device)
        self.augmented = augmented

    def classes(self) -> Tensor:
        """Zeros: what a sample's class is, if it has one, a subclass knows."""
        return torch.zeros(len(self), dtype=torch.int64)

    def only(self, chosen: Tensor) -> Self:
        """The same split with the samples of these numbers alone."""
        part = copy(self)
        part.samples = [self.samples[number] for number in chosen.tolist()]
        return part

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Every sample once, not augmented, in a fixed order of which every beginning is class-balanced.

        Raises:
            UserError: a file cannot be used; the line names it.
        """
        yield from self._shown(balanced_order(self.classes()), batch_size)

    def epoch(self, epoch: int, batch_size: int, seed: int) -> Iterator[Batch]:
        """Shuffled, augmented, normalised batches: a pure function of the arguments, whatever the number of workers.

        Raises:
            UserError: a file cannot be used; the line names it.
        """
        draws = np.random.default_rng([epoch_seed(seed, epoch)])
        order = draws.permutation(len(self)).tolist()
        seeds = draws.integers(2**31, size=len(self)).tolist()
        drawn = list(zip(order, seeds, strict=True))
        steps = self.steps_per_epoch(batch_size)
        yield from self._load(self.augmented, [drawn[step * batch_size :][:batch_size] for step in range(steps)])


class _Views(Dataset[tuple[Tensor, Tensor, str]], Generic[Sample]):
    """Views of samples; what cannot be used gives a fault instead, because workers wrap their errors in traces."""

    def __init__(self, samples: Sequence[Sample], view: Callable[[Sample], Shown]) -> None:
        self.samples, self.view = samples, view

    def __getitem__(self, drawn: tuple[int, int]) -> tuple[Tensor, Tensor, str]:
        number, seed = drawn
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                return *self.view(self.samples[number]), ""
        except UserError as error:
            return torch.empty(0), torch.empty(0), str(error)


def _collate(parts: list[tuple[Tensor, Tensor, str]]) -> tuple[Tensor, Tensor, list[str]]:
    images, targets, faults = zip(*parts, strict=True)
    found = [fault for fault in faults if fault]
    return (torch.empty(0), torch.empty(0), found) if found else (torch.stack(images), torch.stack(targets), found)


def read_image(path: str | Path) -> Image.Image:
    """The decoded image of a file, in the mode that the file has; raises UserError naming a file that is no image."""
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except (OSError, SyntaxError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} cannot be read as an image ({reason}); replace or delete it") from error
