"""CIFAR-10 averaged over 2 x 2 pixels: a quarter of the cost, the same images, classes and splits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from nasbench_grow.contract.task import Recipe
from nasbench_grow.data.images import Augmentation, Normalisation
from nasbench_grow.data.raw import RawImages
from nasbench_grow.tasks.cifar10 import Cifar10


class Cifar10At16Pixels(Cifar10):
    """The splits of ``cifar10``, each image 16 x 16 pixels; fetched and kept as ``cifar10``."""

    name = "cifar10_16px"
    summary = "CIFAR-10 averaged to 16x16 px, 10 classes: the proxy on which the dynamics of growing are studied"
    input_shape = (3, 16, 16)
    normalisation = Normalisation(mean=Cifar10.normalisation.mean, std=(0.2381, 0.2347, 0.2536))
    augmentation = Augmentation(padding=2, flip=True)
    recipe = Recipe(batch_size=128, learning_rate=0.4, momentum=0.9, weight_decay=5e-4, warmup=0.25)
    """For runs of some ten epochs, chosen on validation: the best rate, of 0.1 to 0.8, of narrow ResNet-20s; narrow
    VGG-16s, which have no skip connections, bear it after so long a warm-up."""

    def read(self) -> RawImages:
        """The images of ``cifar10``, halved in width and height."""
        raw = Cifar10().read()
        return replace(raw, train_images=halve(raw.train_images), test_images=halve(raw.test_images))

    def fetch(self) -> Path:
        """Make sure that ``cifar10`` is on this machine; returns the file or folder that holds it."""
        return Cifar10().fetch()


def halve(images: Tensor) -> Tensor:
    """The mean of every 2 x 2 pixels, rounded half up: uint8 (n, channels, 2 h, 2 w) to uint8 (n, channels, h, w)."""
    sums = torch.zeros_like(images[..., ::2, ::2], dtype=torch.int16)  # a float copy would take four times the memory
    for row in (0, 1):
        for column in (0, 1):
            sums += images[..., row::2, column::2]
    return ((sums + 2) // 4).to(torch.uint8)
