"""Fashion-MNIST: 70,000 grey pictures of clothes in 10 classes (Xiao, Rasul and Vollgraf, 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor
from torch.nn import functional as F

from nasbench_grow.contract.task import Recipe
from nasbench_grow.data import cache, torchvision_download
from nasbench_grow.data.idx import read_idx
from nasbench_grow.data.images import Augmentation, Normalisation
from nasbench_grow.data.raw import RawImages
from nasbench_grow.data.stored import StoredImages

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts the files."""


class FashionMnist(StoredImages):
    """55,000 images train, 5,000 of the original training images validate, the original 10,000 test; 28 x 28 pixels
    with a black border of 2."""

    name = "fashion_mnist"
    summary = "70,000 grey pictures of clothes, 28x28 px padded to 32x32, 10 classes"
    num_classes = 10
    input_shape = (1, 32, 32)
    recipe = Recipe(batch_size=128, learning_rate=0.1, momentum=0.9, weight_decay=5e-4)
    normalisation = Normalisation(mean=(0.2860,), std=(0.3530,))
    augmentation = Augmentation(padding=4, flip=True)
    val_samples = 5_000
    contents_sha256 = "3a5a7d3903a1d7c542a6727bdfb617566483ced61ab3f0b6db2d71b472d5ffd6"
    layout = "FashionMNIST/raw"
    by_hand = (
        "put torchvision's folder FashionMNIST/raw there, connect to the network, or install Debian's package "
        "(apt-get install dataset-fashion-mnist)"
    )

    def read_layout(self, folder: Path) -> RawImages:
        """Read ``FashionMNIST/raw``, whose files may be gzipped or not."""
        try:
            return read_files(folder / self.layout)
        except ValueError as error:
            raise cache.damaged(str(error), folder / self.layout) from error

    def sources(self) -> Sequence[cache.Source]:
        """Debian's package where it is installed, then torchvision's download."""
        return [
            cache.Source("Debian package dataset-fashion-mnist", read_debian),
            torchvision_download.source("FashionMNIST", "31 MB", self.read_layout),
        ]


def read_debian(_work: Path) -> RawImages:
    """Read the files of Debian's package; raises SourceError if it is not installed or damaged."""
    if not DEBIAN_FOLDER.is_dir():
        raise cache.SourceError("not installed")
    try:
        return read_files(DEBIAN_FOLDER)
    except ValueError as error:
        raise cache.SourceError(str(error)) from error


def read_files(folder: Path) -> RawImages:
    """Read the four IDX files of ``folder`` and pad the images; raises ValueError naming a bad or missing file."""

    def read(stem: str) -> Tensor:
        plain, packed = folder / stem, folder / f"{stem}.gz"
        if not plain.exists() and not packed.exists():
            raise ValueError(f"{plain} is missing")
        return read_idx(plain if plain.exists() else packed)

    def images(stem: str) -> Tensor:
        return F.pad(read(stem), (2, 2, 2, 2)).unsqueeze(1)

    return RawImages(
        images("train-images-idx3-ubyte"),
        read("train-labels-idx1-ubyte"),
        images("t10k-images-idx3-ubyte"),
        read("t10k-labels-idx1-ubyte"),
    )
