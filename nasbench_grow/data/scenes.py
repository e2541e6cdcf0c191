"""Images with a mask of classes: reading the files, augmenting both alike, and the splits of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from nasbench_grow.base.errors import UserError
from nasbench_grow.contract.task import Batch
from nasbench_grow.data.decoding import DecodedSplit, DecodedTrainSplit, Shown, read_image
from nasbench_grow.data.images import Normalisation, TrainImages, epoch_seed
from nasbench_grow.data.segmentation import VOID

Pair = tuple[Path, Path]
"""Files of an image and of its mask."""
Scene = tuple[Tensor, Tensor]
"""Image, uint8 (3, height, width), and mask, uint8 (height, width)."""
Augment = Callable[[Tensor, Tensor], Scene]
"""Changes an image and its mask alike, with draws from PyTorch's global generator."""


@dataclass(frozen=True)
class Reader:
    """Reads pairs of files whose masks hold the classes 0 to ``classes`` - 1, and ``void``."""

    classes: int
    void: int

    def __call__(self, pair: Pair) -> Scene:
        """The scene, void as ``VOID``.

        Raises:
            UserError: a file is missing or cannot be read, the sizes differ, or a pixel has another class.
        """
        image_path, mask_path = pair
        for path, other in ((image_path, mask_path), (mask_path, image_path)):
            if not path.is_file():
                raise UserError(f"{path} is missing, though there is {other}; add it, or take that one away as well")
        picture, mask = read_image(image_path).convert("RGB"), read_image(mask_path)
        if mask.mode not in ("L", "P"):
            raise UserError(
                f"{mask_path} has the colour mode {mask.mode}, but a mask needs one byte a pixel (L or P), its class; "
                "convert it"
            )
        if mask.size != picture.size:
            raise UserError(
                f"{mask_path} has {_size(mask.size)} pixels, but {image_path} has {_size(picture.size)}; both need the "
                "same size: replace one"
            )
        found = torch.from_numpy(np.array(mask))
        wrong = found[(found >= self.classes) & (found != self.void)]
        if len(wrong):
            raise UserError(
                f"{mask_path} holds the class {int(wrong[0])}; allowed are 0 to {self.classes - 1} and {self.void} "
                "(void): correct the mask"
            )
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1), found.masked_fill(found == self.void, VOID)


def read_all(pairs: Sequence[Pair], reader: Reader, height: int, width: int) -> Scene:
    """All scenes in memory: uint8 (n, 3, height, width) and (n, height, width).

    Raises:
        UserError: a pair that ``reader`` refuses, or one of another size.
    """
    scenes = []
    for pair in pairs:
        image, mask = reader(pair)
        if mask.shape != (height, width):
            found = _size((mask.shape[1], mask.shape[0]))
            raise UserError(f"{pair[0]} has {found} pixels instead of {_size((width, height))}; resize or delete it")
        scenes.append((image, mask))
    images, masks = zip(*scenes, strict=True)
    return torch.stack(images), torch.stack(masks)


def _size(width_height: tuple[int, int]) -> str:
    return "x".join(map(str, width_height))


class ScaledCrop:
    """DeepLab's augmentation (arXiv 1706.05587, section 4.1): scaled by 0.5 to 2, cut to a fixed size, half mirrored.

    What lies outside a small image is void in the mask and of the mean colour in the image.
    """

    def __init__(self, height: int, width: int, mean: Sequence[float]) -> None:
        colour = [round(255 * channel) for channel in mean]
        fill = {tv_tensors.Image: colour, tv_tensors.Mask: VOID}
        crop = v2.RandomCrop((height, width), pad_if_needed=True, fill=fill)
        self.crop = v2.Compose([crop, v2.RandomHorizontalFlip()])

    def __call__(self, image: Tensor, mask: Tensor) -> Scene:
        """A scene of the fixed size; masks are resampled to the nearest pixel."""
        scale = float(torch.empty(()).uniform_(0.5, 2))
        size = [round(scale * side) for side in mask.shape]
        image = v2.functional.resize(image, size, antialias=True)
        mask = v2.functional.resize(mask.unsqueeze(0), size, v2.InterpolationMode.NEAREST_EXACT)
        image, mask = self.crop(tv_tensors.Image(image), tv_tensors.Mask(mask.squeeze(0)))
        return image.as_subclass(Tensor), mask.as_subclass(Tensor)


def turned(image: Tensor, mask: Tensor) -> Scene:
    """One of the eight rotations and mirror images of a square scene without an upper side."""
    turns, mirrored = int(torch.randint(4, ())), bool(torch.randint(2, ()))
    image, mask = image.rot90(turns, (-2, -1)), mask.rot90(turns, (-2, -1))
    return (image.flip(-1), mask.flip(-1)) if mirrored else (image, mask)


class MemoryTrainSplit(TrainImages):
    """Scenes in memory that are trained on: shuffled, augmented epochs beside the plain batches."""

    def __init__(self, images: Tensor, masks: Tensor, normalisation: Normalisation, augment: Augment) -> None:
        super().__init__(images, masks, normalisation)
        self.augment = augment

    def epoch(self, epoch: int, batch_size: int, seed: int) -> Iterator[Batch]:
        """Shuffled, augmented, normalised batches: a pure function of the arguments, the same on every device."""
        draws = torch.Generator().manual_seed(epoch_seed(seed, epoch))
        order = torch.randperm(len(self), generator=draws).tolist()
        seeds = torch.randint(2**31, (len(self),), generator=draws).tolist()
        for step in range(self.steps_per_epoch(batch_size)):
            part = slice(step * batch_size, (step + 1) * batch_size)
            scenes = [self._augmented(number, drawn) for number, drawn in zip(order[part], seeds[part], strict=True)]
            images, masks = zip(*scenes, strict=True)
            yield self.normalisation(torch.stack(images)), torch.stack(masks).long()

    def _augmented(self, number: int, seed: int) -> Scene:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # the CPU's alone: a GPU's is not put back
            return self.augment(self.images[number], self.labels[number])


class FileSplit(DecodedSplit[Pair]):
    """Scenes in files that are evaluated, each at its own size.

    Args:
        pairs: the files.
        reader: reads them.
        normalisation: turns pixel values into network inputs.
        device: where the batches are wanted.
    """

    def __init__(
        self, pairs: Sequence[Pair], reader: Reader, normalisation: Normalisation, device: torch.device
    ) -> None:
        super().__init__(pairs, _View(reader), normalisation, device)

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Every scene in order, one a batch whatever ``batch_size`` is, because the sizes differ."""
        yield from super().batches(1)


class FileTrainSplit(DecodedTrainSplit[Pair]):
    """Scenes in files that are trained on; ``augment`` gives them one size. Else as above."""

    def __init__(
        self,
        pairs: Sequence[Pair],
        reader: Reader,
        normalisation: Normalisation,
        device: torch.device,
        augment: Augment,
    ) -> None:
        super().__init__(pairs, _View(reader), _View(reader, augment), normalisation, device)

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Every scene once, in a fixed order, not augmented, one a batch."""
        yield from super().batches(1)


class _View:
    """Decodes a scene and, with ``augment``, augments it."""

    def __init__(self, reader: Reader, augment: Augment | None = None) -> None:
        self.reader, self.augment = reader, augment

    def __call__(self, pair: Pair) -> Shown:
        image, mask = self.reader(pair)
        if self.augment is not None:
            image, mask = self.augment(image, mask)
        return image, mask.long()
