"""Tasks whose data lie in the data folder: put there by hand, or fetched when first needed."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Generic, TypeVar, cast

from nasbench_grow.contract.task import Task
from nasbench_grow.data import cache
from nasbench_grow.data.classification import ImageClassification
from nasbench_grow.data.raw import Raw, RawImages

_R = TypeVar("_R", bound=Raw)


class Stored(Task, Generic[_R]):
    """A data set that is read from the folder that its authors give out if the user has it, else fetched once and
    kept."""

    kind: ClassVar[type[Raw]]
    """What the data set consists of."""
    contents_sha256: ClassVar[str | None]
    """Checksum of the contents, whichever source they came from (see :meth:`Raw.sha256`); None where the sources' own
    checksums must do."""
    layout: ClassVar[str]
    """The authors' sub-folder of the data folder."""
    by_hand: ClassVar[str]
    """What the user can do if no source works, as a clause."""
    not_defining = Task.not_defining | {"layout", "by_hand"}

    @abstractmethod
    def read_layout(self, folder: Path) -> _R:
        """Read the authors' layout under the data folder ``folder``; raises UserError naming a bad or missing file."""

    @abstractmethod
    def sources(self) -> Sequence[cache.Source]:
        """The ways to fetch the data set, in the order to try them."""

    def read(self) -> _R:
        """The contents, fetched if need be; raises UserError where they cannot be had or are damaged."""
        return self._find()[1]

    def fetch(self) -> Path:
        """Make sure that the data set is on this machine and whole; returns the file or folder that holds it."""
        return self._find()[0]

    def _find(self) -> tuple[Path, _R]:
        """Where the data set lies, and its checked contents."""
        folder = cache.data_folder()
        path = folder / self.layout
        if not path.is_dir():
            kind = cast("type[_R]", self.kind)
            return cache.kept(self.name, kind, self.contents_sha256, self.sources(), self.by_hand)
        contents = self.read_layout(folder)
        cache.check(path, contents, self.name, self.contents_sha256)
        return path, contents


class StoredImages(Stored[RawImages], ImageClassification):
    """Labelled images, in torchvision's folder layout or fetched."""

    kind = RawImages
