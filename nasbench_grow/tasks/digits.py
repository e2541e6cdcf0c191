"""Handwritten digits, 8 x 8 pixels: tiny, real and part of scikit-learn, so that it needs no download."""

from __future__ import annotations

import torch

from nasbench_grow.contract import Recipe
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
        from sklearn.datasets import load_digits

        bunch = load_digits()
        # Ink comes in 17 steps, 0 to 16: spread them over the range of a byte.
        images = torch.from_numpy(bunch.images).mul(255 / 16).round().to(torch.uint8).unsqueeze(1)
        labels = torch.from_numpy(bunch.target).to(torch.uint8)
        train, test = hold_out(labels, TEST_SAMPLES)
        return RawImages(images[train], labels[train], images[test], labels[test])
