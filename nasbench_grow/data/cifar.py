"""Torchvision's folders of CIFAR-10 and CIFAR-100: pickled batches, each with a checksum."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from nasbench_grow.data import cache
from nasbench_grow.data.raw import RawImages

if TYPE_CHECKING:
    from torchvision.datasets import CIFAR10


def read_cifar(kind: type[CIFAR10], folder: Path) -> RawImages:
    """The images of ``torchvision.datasets.CIFAR10`` or ``CIFAR100`` that lie in ``folder``, a data folder.

    Raises:
        UserError: a file is missing, truncated or changed; the line names it.
    """
    from torchvision.datasets.utils import check_integrity

    layout = folder / kind.base_folder
    for name, md5 in [*kind.train_list, *kind.test_list, [kind.meta["filename"], kind.meta["md5"]]]:
        path = layout / name
        if not check_integrity(path, md5):
            fault = "is truncated or changed: wrong checksum" if path.exists() else "is missing"
            raise cache.damaged(f"{path} {fault}", layout)
    parts = [kind(folder, train=train) for train in (True, False)]
    images = [torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous() for part in parts]
    labels = [torch.tensor(part.targets, dtype=torch.uint8) for part in parts]
    return RawImages(images[0], labels[0], images[1], labels[1])
