"""CamVid: 701 road scenes with a class for each pixel (Brostow, Fauqueur and Cipolla, 2009)."""

from __future__ import annotations

from pathlib import Path

import torch

from nasbench_grow.base.errors import UserError
from nasbench_grow.contract.task import Splits
from nasbench_grow.data import cache
from nasbench_grow.data.images import ImageSplit, Normalisation
from nasbench_grow.data.segmentation import PolyRecipe, Segmentation, choose_train

PARTS = ("train", "val", "test")
VOID_IN_FILES = 11
KINDS = (".png", ".jpg", ".jpeg")


class CamVid(Segmentation):
    """The folder ``camvid`` of the data folder, divided as the SegNet tutorial divides it: 367 train, 101 validate,
    233 test.

    ``train/NAME.png`` (or .jpg) has its classes in ``trainannot/NAME.png``, 0 to 10, 11 where it has none; likewise for
    ``val`` and ``test``. By number: sky, building, pole, road, pavement, tree, sign, fence, car, pedestrian, bicyclist.
    """

    name = "camvid"
    summary = "701 road scenes, 480x360 px, 11 classes, from a folder of yours"
    num_classes = 11
    input_shape = (3, 360, 480)
    recipe = PolyRecipe(batch_size=8, learning_rate=0.05, momentum=0.9, weight_decay=1e-4)
    normalisation = Normalisation(mean=(0.409, 0.423, 0.430), std=(0.307, 0.312, 0.307))

    def fetch(self) -> Path:
        """The folder that holds the scenes; raises UserError where it is missing: no source gives them out."""
        folder = cache.data_folder() / self.name
        for part in (*PARTS, *(f"{part}annot" for part in PARTS)):
            if not (folder / part).is_dir():
                raise UserError(
                    f"no {self.name} in {folder.parent}: {folder / part} is missing; put the folders of the SegNet "
                    f"tutorial's CamVid there, or set {cache.FOLDER_VARIABLE}"
                )
        return folder

    def load(self, device: torch.device, train_samples: int | None = None) -> Splits:
        """The splits, in memory on ``device``.

        Raises:
            UserError: a folder or file is missing, empty or not as it should be, or ``train_samples`` is out of range.
        """
        from nasbench_grow.data.scenes import MemoryTrainSplit, Reader, ScaledCrop, read_all  # imports torchvision

        folder = self.fetch()
        reader = Reader(self.num_classes, VOID_IN_FILES)
        _, height, width = self.input_shape
        parts = {part: pairs(folder, part) for part in PARTS}
        chosen = choose_train(self.name, torch.arange(len(parts["train"])), train_samples)
        parts["train"] = [parts["train"][number] for number in chosen]
        scenes = {part: read_all(found, reader, height, width) for part, found in parts.items()}
        train, val, test = ((images.to(device), masks.to(device)) for images, masks in scenes.values())
        augment = ScaledCrop(height, width, self.normalisation.mean)
        return Splits(
            train=MemoryTrainSplit(*train, self.normalisation, augment),
            val=ImageSplit(*val, self.normalisation),
            test=ImageSplit(*test, self.normalisation),
        )


def pairs(folder: Path, part: str) -> list[tuple[Path, Path]]:
    """Files of the images of a part, by name, and of their masks; raises UserError if there is no image."""
    images = sorted(path for path in (folder / part).iterdir() if path.suffix.lower() in KINDS)
    if not images:
        raise UserError(f"{folder / part} holds no image ({', '.join(KINDS)}); put the images of that part there")
    return [(path, folder / f"{part}annot" / f"{path.stem}.png") for path in images]
