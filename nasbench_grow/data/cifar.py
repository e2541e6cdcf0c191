"""What CIFAR-10 and CIFAR-100 share: image size, recipe, augmentation, and torchvision's folders of pickled batches."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch

from nasbench_grow.contract.task import Recipe
from nasbench_grow.data import cache
from nasbench_grow.data.images import Augmentation
from nasbench_grow.data.raw import RawImages
from nasbench_grow.data.stored import StoredImages


class Cifar(StoredImages):
    """45,000 images train, 5,000 of the original training images validate, the original 10,000 test."""

    input_shape = (3, 32, 32)
    recipe = Recipe(batch_size=128, learning_rate=0.1, momentum=0.9, weight_decay=5e-4)
    augmentation = Augmentation(padding=4, flip=True)
    val_samples = 5_000
    dataset: ClassVar[str]
    """The class of ``torchvision.datasets`` that reads the folder."""

    def read_layout(self, folder: Path) -> RawImages:
        """Read the folder with torchvision, after checking each of its files."""
        import torchvision.datasets
        from torchvision.datasets.utils import check_integrity

        kind = getattr(torchvision.datasets, self.dataset)
        layout = folder / self.layout
        for name, md5 in [*kind.train_list, *kind.test_list, [kind.meta["filename"], kind.meta["md5"]]]:
            path = layout / name
            if not check_integrity(path, md5):
                fault = "is truncated or changed: wrong checksum" if path.exists() else "is missing"
                raise cache.damaged(f"{path} {fault}", layout)
        parts = [kind(folder, train=train) for train in (True, False)]
        images = [torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous() for part in parts]
        labels = [torch.tensor(part.targets, dtype=torch.uint8) for part in parts]
        return RawImages(images[0], labels[0], images[1], labels[1])
