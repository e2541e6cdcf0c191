"""ImageNet (ILSVRC 2012): 1.28 million photographs in 1,000 classes (Russakovsky et al., 2015)."""

from __future__ import annotations

from pathlib import Path

import torch

from nasbench_grow.base.errors import UserError
from nasbench_grow.contract.task import Recipe, Splits
from nasbench_grow.data import cache
from nasbench_grow.data.classification import Classification, choose_train
from nasbench_grow.data.images import Normalisation
from nasbench_grow.data.splits import balanced_order, hold_out


class ImageNet(Classification):
    """The folders ``imagenet/train`` and ``imagenet/val`` of the data folder, one sub-folder a class.

    10,000 training images (a tenth of a smaller tree) validate; the original validation images are the test split.
    """

    name = "imagenet"
    summary = "1.28 million photographs, 224x224 px, 1,000 classes, from a folder of yours"
    num_classes = 1_000
    input_shape = (3, 224, 224)
    recipe = Recipe(batch_size=256, learning_rate=0.1, momentum=0.9, weight_decay=1e-4)
    normalisation = Normalisation(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    val_samples = 10_000

    def fetch(self) -> Path:
        """The folder that holds the images; raises UserError where it is missing: they cannot be downloaded freely."""
        folder = cache.data_folder() / self.name
        for part in ("train", "val"):
            if not (folder / part).is_dir():
                raise UserError(
                    f"no {self.name} in {folder.parent}: {folder / part} is missing; put the images there, one "
                    f"sub-folder a class (image-net.org gives them out), or set {cache.FOLDER_VARIABLE}"
                )
        return folder

    def load(self, device: torch.device, train_samples: int | None = None) -> Splits:
        """The splits, decoded when needed, batches on ``device``.

        Raises:
            UserError: the folders are missing or of different classes, a class is empty, there are more than 1,000
                classes, or ``train_samples`` is out of range.
        """
        from nasbench_grow.data.image_folder import FolderSplit, FolderTrainSplit, read_tree  # imports torchvision

        folder = self.fetch()
        (classes, images), (test_classes, test) = (read_tree(folder / part) for part in ("train", "val"))
        unpaired = sorted(set(classes) ^ set(test_classes))
        if unpaired:
            there, absent = ("train", "val") if unpaired[0] in classes else ("val", "train")
            raise UserError(
                f"{folder / there} has the class {unpaired[0]!r}, {folder / absent} has not; both need the same "
                "sub-folders"
            )
        if len(classes) > self.num_classes:
            raise UserError(
                f"{folder / 'train'} has {len(classes)} classes, but {self.name} has at most {self.num_classes}; "
                "remove sub-folders"
            )
        labels = torch.tensor([label for _, label in images])
        train, val = hold_out(labels, min(self.val_samples, len(images) // 10))
        train = choose_train(self.name, train, labels, train_samples)
        val = val[balanced_order(labels[val])]  # curves are drawn from the first of them

        size, normalisation = self.input_shape[-1], self.normalisation
        return Splits(
            train=FolderTrainSplit([images[index] for index in train], size, normalisation, device),
            val=FolderSplit([images[index] for index in val], size, normalisation, device),
            test=FolderSplit(test, size, normalisation, device),
        )
