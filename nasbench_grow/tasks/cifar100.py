"""CIFAR-100: 60,000 colour photographs of 32 x 32 pixels in 100 classes (Krizhevsky, 2009)."""

from __future__ import annotations

from collections.abc import Sequence

from nasbench_grow.data import cache, torchvision_download
from nasbench_grow.data.cifar import Cifar
from nasbench_grow.data.images import Normalisation


class Cifar100(Cifar):
    """45,000 images train, 5,000 of the original training images validate, the original 10,000 test; fine labels."""

    name = "cifar100"
    summary = "60,000 colour photographs, 32x32 px, 100 classes"
    num_classes = 100
    normalisation = Normalisation(mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762))
    contents_sha256 = None
    dataset = "CIFAR100"
    layout = "cifar-100-python"
    by_hand = "put torchvision's folder cifar-100-python there, or connect to the network"

    def sources(self) -> Sequence[cache.Source]:
        """The authors' own archive; no package brings the images along."""
        return [torchvision_download.source(self.dataset, "169 MB", self.read_layout)]
