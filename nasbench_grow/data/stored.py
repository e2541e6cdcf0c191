"""Image classification tasks whose images lie in the data folder: put there by hand, or fetched when first needed."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from nasbench_grow.data import cache
from nasbench_grow.data.classification import ImageClassification
from nasbench_grow.data.raw import RawImages


class StoredImages(ImageClassification):
    """A data set that is read from torchvision's folder layout if the user has it, else fetched once and kept."""

    contents_sha256: ClassVar[str | None]
    """Checksum of the images and labels, whichever source they came from (see :meth:`RawImages.sha256`); None where
    the sources' own checksums must do."""
    layout: ClassVar[str]
    """Torchvision's sub-folder of the data folder."""
    by_hand: ClassVar[str]
    """What the user can do if no source works, as a clause."""

    @abstractmethod
    def read_layout(self, folder: Path) -> RawImages:
        """Read torchvision's layout under the data folder ``folder``; raises UserError naming a bad or missing file."""

    @abstractmethod
    def sources(self) -> Sequence[cache.Source]:
        """The ways to fetch the data set, in the order to try them."""

    def read(self) -> RawImages:
        """All images and labels, fetched if need be; raises UserError where they cannot be had or are damaged."""
        return self._find()[1]

    def fetch(self) -> Path:
        """Make sure that the data set is on this machine and whole; returns the file or folder that holds it."""
        return self._find()[0]

    def _find(self) -> tuple[Path, RawImages]:
        """Where the data set lies, and its checked contents."""
        folder = cache.data_folder()
        path = folder / self.layout
        if not path.is_dir():
            return cache.kept(self.name, self.contents_sha256, self.sources(), self.by_hand)
        images = self.read_layout(folder)
        cache.check(path, images, self.name, self.contents_sha256)
        return path, images
