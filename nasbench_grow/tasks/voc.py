"""PASCAL VOC 2012, segmentation: photographs with a class for each pixel (Everingham et al., 2010)."""

from __future__ import annotations

from pathlib import Path

import torch

from nasbench_grow.base.errors import UserError
from nasbench_grow.contract.task import Splits
from nasbench_grow.data import cache
from nasbench_grow.data.images import Normalisation
from nasbench_grow.data.segmentation import VOID, PolyRecipe, Segmentation, choose_train
from nasbench_grow.data.splits import hold_out

LAYOUT = "VOCdevkit/VOC2012"


class Voc(Segmentation):
    """Torchvision's folder ``VOCdevkit/VOC2012`` of the data folder; 20 kinds of objects and background.

    Training images are those of ``ImageSets/Segmentation/trainaug.txt`` with the masks of ``SegmentationClassAug``
    (Hariharan et al., 2011) where that list is there, else the original ones of ``train.txt``. A fixed tenth of them
    validates; the original validation images are the test split.
    """

    name = "voc"
    summary = "PASCAL VOC 2012 photographs, 513x513 px crops, 21 classes, from a folder of yours"
    num_classes = 21
    input_shape = (3, 513, 513)
    recipe = PolyRecipe(batch_size=16, learning_rate=0.05, momentum=0.9, weight_decay=1e-4)
    normalisation = Normalisation(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))

    def fetch(self) -> Path:
        """The folder that holds the data; raises UserError where it is missing."""
        folder = cache.data_folder() / LAYOUT
        if not folder.is_dir():
            raise UserError(
                f"no {self.name} in {cache.data_folder()}: {folder} is missing; put torchvision's folder VOCdevkit "
                f"there (VOCSegmentation with download=True makes it), or set {cache.FOLDER_VARIABLE}"
            )
        return folder

    def load(self, device: torch.device, train_samples: int | None = None) -> Splits:
        """The splits, decoded when needed, batches on ``device``.

        Raises:
            UserError: the folder or a list is missing or empty, an image is in two lists, or ``train_samples`` is out
                of range.
        """
        from nasbench_grow.data.scenes import FileSplit, FileTrainSplit, Reader, ScaledCrop  # imports torchvision

        folder = self.fetch()
        augmented = (folder / "ImageSets/Segmentation/trainaug.txt").is_file()
        listed = names(folder, "trainaug" if augmented else "train")
        tested = names(folder, "val")
        both = sorted(set(listed) & set(tested))
        if both:
            raise UserError(
                f"{folder} lists {both[0]} for training and for testing (val.txt); take the images of val.txt out of "
                "the training list"
            )
        train, val = hold_out(torch.zeros(len(listed), dtype=torch.int64), len(listed) // 10)
        train = choose_train(self.name, train, train_samples)

        def files(chosen: list[str], masks: str) -> list[tuple[Path, Path]]:
            return [(folder / "JPEGImages" / f"{name}.jpg", folder / masks / f"{name}.png") for name in chosen]

        pairs = files(listed, "SegmentationClassAug" if augmented else "SegmentationClass")
        rest = (Reader(self.num_classes, VOID), self.normalisation, device)
        augment = ScaledCrop(*self.input_shape[1:], self.normalisation.mean)
        return Splits(
            train=FileTrainSplit([pairs[number] for number in train], *rest, augment),
            val=FileSplit([pairs[number] for number in val], *rest),
            test=FileSplit(files(tested, "SegmentationClass"), *rest),
        )


def names(folder: Path, part: str) -> list[str]:
    """The images of a list, one a line; raises UserError if the list is missing or empty."""
    path = folder / "ImageSets" / "Segmentation" / f"{part}.txt"
    if not path.is_file():
        raise UserError(f"{path} is missing; torchvision's folder VOCdevkit holds it: put the whole folder there")
    found = path.read_text(encoding="utf-8").split()
    if not found:
        raise UserError(f"{path} lists no image; write one name a line, or replace the file")
    return found
