"""A user's own folder of images as a task: what is in it, how it is divided, what is trained on."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from nasbench_grow.base.errors import UserError, one_line
from nasbench_grow.contract.task import Recipe, Splits, TrainSplit
from nasbench_grow.data.classification import Classification, choose_train
from nasbench_grow.data.images import Normalisation
from nasbench_grow.data.splits import balanced_order
from nasbench_grow.data.trained_weights import put_weights, read_weights

TRAIN, VAL, TEST = ("train", "training"), ("val", "valid", "validation", "test"), ("test", "testing")
"""Names of the sub-folders of a tree that is divided already; the first one found is taken. Where there is no folder to
validate on, that is the test's task."""

SUITE_AUGMENTATIONS = ("crop", "shift", "none")
"""Crops of random size, mirrored (for photographs); of one size, mirrored (for small images); nothing."""

Sample = tuple[str, int]


@dataclass(frozen=True)
class Tree:
    """The images of a folder, divided."""

    class_names: list[str]
    train: list[Sample]
    val: list[Sample]
    made_split: bool
    """Whether the validation images were held out here, and not by the user."""
    test: list[Sample] | None = None
    """What the finished network is judged by; None: the validation images."""


class OwnImages(Classification):
    """Images of a user's own, one sub-folder a class; a subclass made by :func:`own_images` says which."""

    class_names: ClassVar[list[str]]
    contents_sha256: ClassVar[str]
    """Of the names and sizes of all files, and of their division."""
    augmentation: ClassVar[str]
    title: ClassVar[str]
    """The folder's name."""
    normalisation: ClassVar[Normalisation]
    checkpoint_sha256: ClassVar[str | None]
    not_defining = Classification.not_defining | {"title"}
    _tree: ClassVar[Tree]
    _checkpoint: ClassVar[Path | None]

    def load(self, device: torch.device, train_samples: int | None = None) -> Splits:
        """The splits, decoded when needed, batches on ``device``; where the folder has no images to test on, the
        validation images are the test split too.

        Raises:
            UserError: ``train_samples`` is out of range.
        """
        from nasbench_grow.data.image_folder import FolderSplit, FolderTrainSplit  # imports torchvision

        size, tree = self.input_shape[-1], self._tree
        labels = torch.tensor([label for _, label in tree.train])
        chosen = choose_train(self.name, torch.arange(len(labels)), labels, train_samples)
        # curves are drawn from the first validation images
        order = balanced_order(torch.tensor([label for _, label in tree.val])).tolist()
        val = FolderSplit([tree.val[index] for index in order], size, self.normalisation, device)
        transforms = augmenting(self.augmentation, size)
        return Splits(
            train=FolderTrainSplit(
                [tree.train[index] for index in chosen], size, self.normalisation, device, transforms
            ),
            val=val,
            test=val if tree.test is None else FolderSplit(tree.test, size, self.normalisation, device),
        )

    @classmethod
    def judged_by(cls) -> str:
        """What the images are called that the finished network is judged by."""
        return "validation" if cls._tree.test is None else "test"

    def initialise(self, network: nn.Module, train: TrainSplit) -> None:
        """The weights of the checkpoint, if there is one: a filter that joins later brings its own of these."""
        if self._checkpoint is not None:
            put_weights(network, read_weights(self._checkpoint), self._checkpoint)


def own_images(
    folder: str | Path,
    *,
    image_size: int,
    recipe: Recipe,
    augmentation: str,
    normalisation: Normalisation,
    val_share: float,
    seed: int,
    checkpoint: str | Path | None = None,
) -> type[OwnImages]:
    """The task of a folder of images.

    Args:
        folder: holds a sub-folder for each class, or ``train``, ``val`` and perhaps ``test`` that do.
        image_size: height and width of what the network sees.
        recipe: how to train.
        augmentation: one of :data:`SUITE_AUGMENTATIONS`, or a policy of timm's (``rand-m9-mstd0.5``).
        normalisation: turns pixel values into network inputs.
        val_share: share of each class's images that validates where the folder is not divided.
        seed: of that division.
        checkpoint: a file of trained weights to start from.

    Raises:
        UserError: there is no such folder, it holds no images or fewer than two classes, the parts do not fit each
            other, the policy is unknown, or the checkpoint cannot be read.
    """
    folder = Path(folder)
    tree = read_folder(folder, val_share, seed)
    augmenting(augmentation, image_size)
    digest = None
    if checkpoint is not None:
        checkpoint = Path(checkpoint)
        read_weights(checkpoint)
        digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    details: dict[str, Any] = {
        "num_classes": len(tree.class_names),
        "input_shape": (3, image_size, image_size),
        "class_names": tree.class_names,
        "contents_sha256": _digest(folder, tree),
        "augmentation": augmentation,
        "checkpoint_sha256": digest,
    }
    # A task goes by its name within a process, so that two of one folder need two names.
    whole = json.dumps([details, asdict(recipe), asdict(normalisation)], default=str, sort_keys=True)
    name = f"{folder.resolve().name}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"
    held = f"{len(tree.val)} of them held out by seed {seed}" if tree.made_split else f"{len(tree.val)} validate"
    tested = "" if tree.test is None else f", {len(tree.test)} test"
    images = len(tree.train) + len(tree.val) + len(tree.test or ())
    summary = f"{images:,} images in {len(tree.class_names)} classes, {held}{tested}"
    kept = {"_tree": tree, "_checkpoint": checkpoint}
    attributes = {
        "name": name,
        "title": folder.resolve().name,
        "summary": summary,
        "recipe": recipe,
        "normalisation": normalisation,
        **details,
        **kept,
    }
    return type("OwnImages", (OwnImages,), attributes)


def read_folder(folder: Path, val_share: float, seed: int) -> Tree:
    """The images of a folder and their division; see :func:`own_images`."""
    from nasbench_grow.data.image_folder import read_tree  # imports torchvision

    if not folder.is_dir():
        raise UserError(f"no folder {str(folder)!r}; give the folder that holds the images, one sub-folder a class")
    train, val = (
        next((folder / name for name in names if _holds_folders(folder / name)), None) for names in (TRAIN, VAL)
    )
    if train is None and val is not None:
        raise UserError(f"{folder} has {val.name!r}, but no 'train' beside it; give the folder that holds both")
    if train is None or val is None:
        class_names, samples = read_tree(folder if train is None else train)
        _check_classes(folder, class_names)
        parts = _divided(samples, val_share, seed)
        return Tree(class_names, *parts, made_split=True)
    class_names, samples = read_tree(train)
    _check_classes(train, class_names)
    test = next((folder / name for name in TEST if name != val.name and _holds_folders(folder / name)), None)
    return Tree(
        class_names,
        samples,
        _part(val, train, class_names),
        made_split=False,
        test=None if test is None else _part(test, train, class_names),
    )


def _part(folder: Path, train: Path, class_names: list[str]) -> list[Sample]:
    """The images of a part, with the numbers that their classes have in the part that is trained on."""
    from nasbench_grow.data.image_folder import read_tree  # imports torchvision

    names, samples = read_tree(folder)
    unknown = sorted(set(names) - set(class_names))
    if unknown:
        raise UserError(f"{folder} has the class {unknown[0]!r}, {train} has not; give both the same sub-folders")
    places = [class_names.index(name) for name in names]
    return [(path, places[label]) for path, label in samples]


def _holds_folders(folder: Path) -> bool:
    """Whether a folder is a part of a divided tree; one called ``train`` may as well hold the images of trains."""
    return folder.is_dir() and any(entry.is_dir() for entry in folder.iterdir())


def _check_classes(folder: Path, class_names: Sequence[str]) -> None:
    if len(class_names) < 2:
        raise UserError(
            f"{folder} holds one class, {class_names[0]!r}, so that there is nothing to tell apart; give a folder "
            "with one sub-folder of images for each of two classes or more"
        )


def _divided(samples: Sequence[Sample], share: float, seed: int) -> tuple[list[Sample], list[Sample]]:
    """Training and validation images: of each class the share, at least one image of each where it has two."""
    if not 0 < share < 1:
        raise UserError(f"the share of validation images {share:g} is out of range: give one above 0 and below 1")
    random_state = np.random.RandomState(seed)  # a stream that NumPy keeps as it is
    labels = np.array([label for _, label in samples])
    held: set[int] = set()
    for label in np.unique(labels):
        own = random_state.permutation(np.flatnonzero(labels == label))
        held |= set(own[: min(len(own) - 1, max(1, round(share * len(own))))].tolist())
    if not held:
        raise UserError("every class has one image, so that none is left to validate on; give more images")
    parts = [[sample for at, sample in enumerate(samples) if (at in held) is wanted] for wanted in (False, True)]
    return parts[0], parts[1]


def augmenting(name: str, size: int) -> list[Any]:
    """The transforms of an augmentation, from a PIL image to one of ``size``.

    Raises:
        UserError: the suite has no such augmentation, and timm no such policy.
    """
    from timm.data import auto_augment
    from torchvision.transforms import v2

    from nasbench_grow.data.image_folder import RESIZE

    whole = round(RESIZE * size)  # as the evaluation shows it
    crop = [v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip()]
    if name == "crop":
        return crop
    if name == "shift":
        return [v2.Resize(whole, antialias=True), v2.RandomCrop(size), v2.RandomHorizontalFlip()]
    if name == "none":
        return [v2.Resize(whole, antialias=True), v2.CenterCrop(size)]
    kinds = {"rand": auto_augment.rand_augment_transform, "augmix": auto_augment.augment_and_mix_transform}
    make = kinds.get(name.partition("-")[0], auto_augment.auto_augment_transform)
    try:
        policy = make(name, {"translate_const": max(1, int(size * 0.45)), "img_mean": (124, 116, 104)})
    except Exception as error:  # timm asserts, and looks names up in dicts
        raise UserError(
            f"unknown augmentation {name!r} ({one_line(error)}): choose {', '.join(SUITE_AUGMENTATIONS)}, or a policy "
            "of timm's such as rand-m9-mstd0.5, augmix-m5-w4 or original"
        ) from error
    return [*crop, _Seeded(policy)]


class _Seeded:
    """A transform that draws from Python's and NumPy's generators, with both seeded by PyTorch's."""

    def __init__(self, transform: Any) -> None:
        self.transform = transform

    def __call__(self, image: Any) -> Any:
        seed = int(torch.randint(2**31, ()))
        random.seed(seed)
        np.random.seed(seed)
        return self.transform(image)


def _digest(folder: Path, tree: Tree) -> str:
    """A digest of the files' names, sizes and parts; their contents would take long to read."""
    digest = hashlib.sha256()
    for part, samples in (("train", tree.train), ("val", tree.val), ("test", tree.test or ())):
        for path, label in samples:
            digest.update(f"{part} {label} {os.path.relpath(path, folder)} {os.path.getsize(path)}\n".encode())
    return digest.hexdigest()
