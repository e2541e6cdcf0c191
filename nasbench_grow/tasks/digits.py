"""Handwritten digits, 8 x 8 pixels: tiny, real and part of scikit-learn, so that it needs no download."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from nasbench_grow.base.errors import UserError
from nasbench_grow.contract.task import Recipe
from nasbench_grow.data.classification import ImageClassification
from nasbench_grow.data.images import Augmentation, Normalisation
from nasbench_grow.data.raw import RawImages
from nasbench_grow.data.splits import hold_out

TEST_SAMPLES = 300


class Digits(ImageClassification):
    """1,797 images in 10 classes; 1,197 train, 300 validate, 300 test."""

    name = "digits"
    summary = "1,797 handwritten digits, 8x8 px, 10 classes, offline"
    num_classes = 10
    input_shape = (1, 8, 8)
    recipe = Recipe(batch_size=32, learning_rate=0.05)
    normalisation = Normalisation(mean=(0.3047,), std=(0.3758,))
    augmentation = Augmentation(padding=1, flip=False)
    val_samples = 300

    def read(self) -> RawImages:
        """The images that scikit-learn ships, with a class-balanced test split held out."""
        table = torch.from_numpy(np.loadtxt(_table_path(), delimiter=",", dtype=np.uint8))
        # Ink comes in 17 steps, 0 to 16: spread them over the range of a byte.
        images = table[:, :64].view(-1, 1, 8, 8).mul(255 / 16).round().to(torch.uint8)
        labels = table[:, 64]
        train, test = hold_out(labels, TEST_SAMPLES)
        return RawImages(images[train], labels[train], images[test], labels[test])


def _table_path() -> Path:
    """The table that ``sklearn.datasets.load_digits`` reads: 64 pixels and the class in each row."""
    # Importing sklearn.datasets takes seconds, as it brings SciPy and pandas along; the file alone takes milliseconds.
    sklearn = find_spec("sklearn")
    if sklearn is None or sklearn.origin is None:
        raise UserError("the task digits needs scikit-learn, which is not installed; install it with pip")
    return Path(sklearn.origin).parent / "datasets" / "data" / "digits.csv.gz"
