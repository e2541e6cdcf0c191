"""The pixels and labels of a labelled image data set, as they are before any split or normalisation."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class RawImages:
    """A data set in memory: images uint8 (n, channels, height, width), labels uint8 (n,), or (n, height, width) where
    every pixel has one."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """The four tensors by name."""
        return {name: tensor.contiguous() for name, tensor in vars(self).items()}

    def sha256(self) -> str:
        """Checksum of the contents: the same whichever file format they came from."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.tensors().items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.cpu().numpy().data)
        return digest.hexdigest()
