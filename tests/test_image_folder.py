"""Trees of image files: the task ``imagenet`` on small ones, and what may be wrong with a tree."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from nasbench_grow.base.errors import UserError
from nasbench_grow.cli import main
from nasbench_grow.data.image_folder import FolderSplit, FolderTrainSplit
from nasbench_grow.data.images import Normalisation
from nasbench_grow.tasks.imagenet import ImageNet

CPU = torch.device("cpu")
PLAIN = Normalisation(mean=(0.0,) * 3, std=(1.0,) * 3)
CLASSES = ("cat", "dog", "owl")


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree of 3 classes, 20 training and 4 test images each, of many sizes; the network sees 32 x 32 pixels."""
    monkeypatch.setenv("NASBENCH_GROW_DATA", str(tmp_path))
    monkeypatch.setattr(ImageNet, "input_shape", (3, 32, 32))
    generator = torch.Generator().manual_seed(0)
    for part, count in (("train", 20), ("val", 4)):
        for kind in CLASSES:
            folder = tmp_path / "imagenet" / part / kind
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = torch.randint(256, (40 + number, 60 - number, 3), generator=generator, dtype=torch.uint8)
                Image.fromarray(pixels.numpy()).save(folder / f"{number:02}.jpeg")
    return tmp_path / "imagenet"


def test_a_tree_is_split_by_class_and_the_original_validation_images_test(tree: Path) -> None:
    splits = ImageNet().load(CPU)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (54, 6, 12)
    assert sorted(label for _, label in splits.val.samples) == [0, 0, 1, 1, 2, 2]  # type: ignore[attr-defined]
    assert {label for _, label in splits.val.samples[:3]} == {0, 1, 2}, "the first ones stand for all"  # type: ignore[attr-defined]
    assert len(ImageNet().load(CPU, train_samples=9).train) == 9
    (images, labels), *rest = splits.test.batches(8)
    assert images.shape == (8, 3, 32, 32) and images.dtype == torch.float32
    assert torch.cat([labels, *(more for _, more in rest)]).tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_an_epoch_is_the_same_for_any_number_of_workers_and_another_for_another_seed(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = ImageNet().load(CPU).train
    assert train.steps_per_epoch(8) == 6
    epochs = []
    for cores, epoch, seed in ((1, 0, 0), (3, 0, 0), (3, 1, 0), (3, 0, 1)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: range(cores))
        batches = list(train.epoch(epoch, 8, seed))
        assert len(batches) == 6
        epochs.append(torch.cat([images for images, _ in batches]))
    same, *others = (torch.equal(epochs[0], epoch) for epoch in epochs[1:])
    assert same and not any(others)


def test_evaluation_shows_the_resized_centre(tmp_path: Path) -> None:
    pixels = torch.zeros(64, 128, 3, dtype=torch.uint8)
    pixels[:, 64:] = 200  # dark on the left, bright on the right
    Image.fromarray(pixels.numpy()).save(tmp_path / "halves.png")
    ((images, _),) = FolderSplit([(str(tmp_path / "halves.png"), 0)], 28, PLAIN, CPU).batches(4)
    seen = images[0] * 255
    assert seen[:, :, :12].max() == 0 and seen[:, :, 16:].min() == 200, "the border is in the middle"


def test_training_crops_differ_from_draw_to_draw_and_may_be_mirrored(tmp_path: Path) -> None:
    ramp = torch.arange(64, dtype=torch.uint8).mul(4).expand(64, 64).unsqueeze(-1).repeat(1, 1, 3)
    Image.fromarray(ramp.numpy()).save(tmp_path / "ramp.png")
    split = FolderTrainSplit([(str(tmp_path / "ramp.png"), 0)] * 40, 16, PLAIN, CPU)
    ((images, _),) = split.epoch(0, 40, 0)
    slopes = images[:, 0, 0, -1] - images[:, 0, 0, 0]
    assert 5 < int((slopes < 0).sum()) < 35, "half of them mirrored"
    assert len({round(float(slope), 3) for slope in slopes.abs()}) > 10, "crops of many sizes"


def empty_a_class(tree: Path) -> None:
    for image in (tree / "train" / "dog").iterdir():
        image.unlink()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda tree: shutil.rmtree(tree), "no imagenet in .*imagenet/train is missing"),
        (empty_a_class, "train/dog holds no image"),
        (lambda tree: shutil.rmtree(tree / "val" / "owl"), "train has the class 'owl', .*val has not"),
        (lambda tree: [shutil.rmtree(tree / "val" / kind) for kind in CLASSES], "val holds no class"),
        (lambda tree: (tree / "train" / "dog" / "x").mkdir(), None),
    ],
    ids=["missing", "empty class", "unpaired class", "no class", "a folder too deep is passed over"],
)
def test_a_bad_tree_is_refused_in_one_line(tree: Path, spoil: Callable[[Path], object], words: str | None) -> None:
    spoil(tree)
    if words is None:
        ImageNet().load(CPU)
        return
    with pytest.raises(UserError, match=words) as caught:
        ImageNet().load(CPU)
    assert "\n" not in str(caught.value)


def test_an_image_that_cannot_be_read_is_named(tree: Path) -> None:
    (tree / "val" / "dog" / "01.jpeg").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"val/dog/01\.jpeg cannot be read as an image") as caught:
        list(ImageNet().load(CPU).test.batches(4))
    assert "\n" not in str(caught.value)


def test_more_samples_than_there_are_is_refused(tree: Path) -> None:
    with pytest.raises(UserError, match=r"train_samples is 55, but imagenet needs 3 \(one a class\) to 54 \(all\)"):
        ImageNet().load(CPU, train_samples=55)


def test_growing_runs_end_to_end_on_a_tree(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cell = ["run", "--method", "grow", "--task", "imagenet", "--backbone", "cifar_resnet20"]
    cell += ["--budget", "0.5", "--seed", "0", "--epochs", "2"]
    folder = ["--results", str(tmp_path / "results")]
    assert main([*cell, *folder, "--dry-run"]) == 0
    assert "to do" in capsys.readouterr().out
    assert not (tmp_path / "results" / "records").exists()
    assert main([*cell, *folder]) == 0
    assert "ok: test accuracy" in capsys.readouterr().out
