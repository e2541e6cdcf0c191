"""Trees of image files, one sub-folder a class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset
from torchvision.transforms import v2

from nasbench_grow.base.errors import UserError
from nasbench_grow.data.decoding import DecodedSplit, DecodedTrainSplit, Shown, read_image
from nasbench_grow.data.images import Normalisation

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
        classes = [name for name in find_classes(str(folder))[0] if not name.startswith((".", "__"))]  # of other tools
    except OSError:
        classes = []
    if not classes:
        raise UserError(f"{folder} holds no class; put the images into it, one sub-folder a class")
    numbers = {name: number for number, name in enumerate(classes)}
    samples = make_dataset(str(folder), numbers, IMG_EXTENSIONS, allow_empty=True)
    empty = set(range(len(classes))) - {label for _, label in samples}
    if empty:
        kinds = ", ".join(IMG_EXTENSIONS)
        raise UserError(f"{folder / classes[min(empty)]} holds no image ({kinds}); add some, or delete the folder")
    return classes, samples


class _View:
    """Decodes an image and shows it as ``transform`` gives it."""

    def __init__(self, *transform: Callable[[Any], Any]) -> None:
        self.transform = v2.Compose([*transform, v2.PILToTensor()])

    def __call__(self, sample: Sample) -> Shown:
        path, label = sample
        return self.transform(read_image(path).convert("RGB")), torch.tensor(label)


def _centre(size: int) -> _View:
    return _View(v2.Resize(round(RESIZE * size), antialias=True), v2.CenterCrop(size))


class FolderSplit(DecodedSplit[Sample]):
    """Images that are evaluated: fixed order, resized, the centre cut out; int64 labels (batch,).

    Args:
        samples: file and class of each image.
        size: height and width of what the network sees.
        normalisation: turns pixel values into network inputs.
        device: where the batches are wanted.
    """

    def __init__(
        self, samples: Sequence[Sample], size: int, normalisation: Normalisation, device: torch.device
    ) -> None:
        super().__init__(samples, _centre(size), normalisation, device)


class FolderTrainSplit(DecodedTrainSplit[Sample]):
    """Images that are trained on, as ``augmentation`` shows them; as above.

    Args:
        augmentation: transforms from a PIL image to one of ``size``; None: random crops of random size and shape, half
            of them mirrored.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        size: int,
        normalisation: Normalisation,
        device: torch.device,
        augmentation: Sequence[Callable[[Any], Any]] | None = None,
    ) -> None:
        if augmentation is None:
            augmentation = (v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip())
        augmented = _View(*augmentation)
        super().__init__(samples, _centre(size), augmented, normalisation, device)

    def classes(self) -> Tensor:
        """Class of each image, int64 (n,)."""
        return torch.tensor([label for _, label in self.samples])
