"""What a data set consists of, as it is kept on disk: before any normalisation, independent of the file format."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Raw:
    """A data set in memory: the fields of a subclass are its tensors."""

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name."""
        return {name: tensor.contiguous() for name, tensor in vars(self).items()}

    def sha256(self) -> str:
        """Checksum of the contents: the same whichever file format they came from."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.tensors().items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.cpu().numpy().data)
        return digest.hexdigest()


@dataclass(frozen=True)
class RawImages(Raw):
    """Labelled images: images uint8 (n, channels, height, width), labels uint8 (n,), or (n, height, width)
    where every pixel has one."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


@dataclass(frozen=True)
class RawText(Raw):
    """A text as the numbers of its words, int32 (n,); ``vocabulary`` holds the words in UTF-8, one a line, uint8."""

    train: Tensor
    val: Tensor
    test: Tensor
    vocabulary: Tensor
