"""CIFAR-100: 60,000 colour photographs of 32 x 32 pixels in 100 classes (Krizhevsky, 2009)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nasbench_grow.contract import Recipe
from nasbench_grow.data import cache, torchvision_download
from nasbench_grow.data.cifar import read_cifar
from nasbench_grow.data.images import Augmentation, Normalisation
from nasbench_grow.data.raw import RawImages
from nasbench_grow.data.stored import StoredImages


class Cifar100(StoredImages):
    """45,000 images train, 5,000 of the original training images validate, the original 10,000 test; fine labels."""

    name = "cifar100"
    summary = "60,000 colour photographs, 32x32 px, 100 classes"
    num_classes = 100
    input_shape = (3, 32, 32)
    recipe = Recipe(batch_size=128, learning_rate=0.1, momentum=0.9, weight_decay=5e-4)
    normalisation = Normalisation(mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762))
    augmentation = Augmentation(padding=4, flip=True)
    val_samples = 5_000
    contents_sha256 = None
    layout = "cifar-100-python"
    by_hand = "put torchvision's folder cifar-100-python there, or connect to the network"

    def read_layout(self, folder: Path) -> RawImages:
        """Read ``cifar-100-python`` with torchvision, after checking each of its files."""
        from torchvision.datasets import CIFAR100

        return read_cifar(CIFAR100, folder)

    def sources(self) -> Sequence[cache.Source]:
        """The authors' own archive; no package brings the images along."""
        return [torchvision_download.source("CIFAR100", "169 MB", self.read_layout)]
