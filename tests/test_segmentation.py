"""Segmentation: loss, metric, splits, augmentation, and the files of CamVid and VOC."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import jaccard_score
from torch import Tensor, nn

from nasbench_grow.base.errors import UserError
from nasbench_grow.cli import main
from nasbench_grow.contract.task import Task
from nasbench_grow.data.images import ImageSplit, Normalisation
from nasbench_grow.data.scenes import ScaledCrop, turned
from nasbench_grow.data.segmentation import VOID, PolyRecipe
from nasbench_grow.tasks.camvid import CamVid
from nasbench_grow.tasks.landcover import LandCover
from nasbench_grow.tasks.voc import Voc

CPU = torch.device("cpu")
PLAIN = Normalisation(mean=(0.0,) * 3, std=(1.0,) * 3)


class Painter(nn.Module):
    """Gives the class that the red value of a pixel names."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.one_hot((x[:, 0] * 255).round().long(), self.classes).permute(0, 3, 1, 2).float()


def painted(predicted: Tensor) -> Tensor:
    """Images for which :class:`Painter` predicts the given classes."""
    return predicted.unsqueeze(1).expand(-1, 3, -1, -1).to(torch.uint8).contiguous()


# --- loss, metric and recipe ---


def test_mean_iou_of_a_case_worked_by_hand() -> None:
    targets = torch.tensor([[[0, 0, 1], [1, VOID, 2]], [[0, 0, 0], [2, 2, VOID]]])
    predicted = torch.tensor([[[0, 1, 1], [1, 2, 2]], [[0, 0, 3], [2, 0, 7]]])
    # class 0: 3 of 5 + 1; class 1: 2 of 2 + 1; class 2: 2 of 3 + 0; classes 3 and 7 are predicted but nowhere true
    split = ImageSplit(painted(predicted), targets.to(torch.uint8), PLAIN)
    expected = (3 / 6 + 2 / 3 + 2 / 3) / 3
    assert LandCover().evaluate(Painter(8), split, batch_size=1) == pytest.approx(expected, abs=1e-12)


def test_mean_iou_agrees_with_scikit_learn_and_modes_are_restored() -> None:
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(11, (9, 20, 30), generator=generator)
    predicted = torch.where(torch.rand(targets.shape, generator=generator) < 0.6, targets, (targets * 3 + 1) % 11)
    targets[targets == 4] = 5  # absent from the truth, present among the predictions
    targets[torch.rand(targets.shape, generator=generator) < 0.2] = VOID
    network = nn.Sequential(Painter(11), nn.Dropout(0.9))
    network[0].eval()
    found = CamVid().evaluate(network, ImageSplit(painted(predicted), targets.to(torch.uint8), PLAIN), batch_size=4)
    known = targets != VOID
    expected = jaccard_score(targets[known], predicted[known], labels=targets[known].unique(), average="macro")
    assert found == pytest.approx(expected, abs=1e-12)
    assert [module.training for module in network] == [False, True]


def test_a_split_of_void_has_no_mean_iou() -> None:
    split = ImageSplit(painted(torch.zeros(1, 4, 4)), torch.full((1, 4, 4), VOID), PLAIN)
    with pytest.raises(UserError, match="every pixel of the split is void"):
        LandCover().evaluate(Painter(8), split)


def test_the_loss_is_the_mean_over_the_pixels_that_have_a_class() -> None:
    logits = torch.randn(2, 8, 3, 5, requires_grad=True)
    targets = torch.randint(8, (2, 3, 5))
    targets[0] = VOID
    expected = -logits.log_softmax(1)[1].gather(0, targets[1:]).mean()
    torch.testing.assert_close(LandCover().loss(logits, targets), expected)
    loss = LandCover().loss(logits, torch.full((2, 3, 5), VOID))
    loss.backward()
    assert loss.item() == 0 and logits.grad is not None and not logits.grad.any()


def test_the_learning_rate_falls_as_deeplab_has_it() -> None:
    recipe = PolyRecipe(learning_rate=0.5)
    assert [recipe.learning_rate_at(progress) for progress in (0, 0.5, 1)] == [0.5, 0.5 * 0.5**0.9, 0]
    assert isinstance(LandCover.recipe.for_samples(64), PolyRecipe)


# --- augmentation ---


def test_a_scaled_crop_moves_image_and_mask_alike() -> None:
    rows, columns = torch.meshgrid(torch.arange(40), torch.arange(60), indexing="ij")
    mask = ((columns >= 30) + 2 * (rows >= 20)).to(torch.uint8)
    image = torch.stack([40 + 50 * mask] * 3)
    crop = ScaledCrop(48, 64, (0.1, 0.2, 0.3))
    outside = seen = mirrored = 0
    for seed in range(60):
        torch.manual_seed(seed)
        shown, truth = crop(image, mask)
        assert shown.shape == (3, 48, 64) and truth.shape == (48, 64)
        assert shown.dtype == truth.dtype == torch.uint8
        void = truth == VOID
        assert torch.equal(shown[:, void], torch.tensor([[26], [51], [76]]).expand(3, int(void.sum())).to(torch.uint8))
        colours = 40 + 50 * truth.float()
        wrong = (shown[0].float() - colours).abs()[~void] > 25
        assert wrong.float().mean() < 0.08, "they differ but where resampling mixes colours"
        outside += bool(void.any())
        seen += not void.any()
        mirrored += bool((truth[~void][:1] % 2).item() and not (truth[:, -1] % 2)[~void[:, -1]].any())
    assert outside > 10 and seen > 10 and mirrored > 5, "small and large scales, mirrored and not"


def test_a_tile_is_turned_in_eight_ways_with_its_mask() -> None:
    mask = torch.arange(16, dtype=torch.uint8).view(4, 4)
    ways = set()
    for seed in range(80):
        torch.manual_seed(seed)
        image, truth = turned(torch.stack([mask] * 3), mask)
        assert torch.equal(image[1], truth)
        ways.add(tuple(truth.flatten().tolist()))
    assert len(ways) == 8


# --- files ---


def write_scene(image: Path, mask: Path, height: int, width: int, classes: int, void: int, seed: int) -> None:
    """A photograph whose red value is ten times its class, and the mask, a palette image with some void."""
    for path in (image, mask):
        path.parent.mkdir(parents=True, exist_ok=True)
    draws = np.random.default_rng(seed)
    truth = np.repeat(np.repeat(draws.integers(classes, size=(height // 8, width // 8)), 8, 0), 8, 1).astype(np.uint8)
    Image.fromarray(np.stack([10 * truth] * 3, -1)).save(image)
    truth[:2] = void
    palette = Image.fromarray(truth)
    palette.putpalette(list(range(256)) * 3)
    palette.save(mask)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with a small CamVid and a small VOC; no pip and no network."""
    folder = tmp_path / "data"
    monkeypatch.setenv("NASBENCH_GROW_DATA", str(folder))
    monkeypatch.setattr(CamVid, "input_shape", (3, 48, 64))
    monkeypatch.setattr(Voc, "input_shape", (3, 33, 33))
    for part, count in (("train", 6), ("val", 2), ("test", 3)):
        for number in range(count):
            files = folder / "camvid" / part / f"{number}.png", folder / "camvid" / f"{part}annot" / f"{number}.png"
            write_scene(*files, 48, 64, 11, 11, number)
    voc = folder / "VOCdevkit" / "VOC2012"
    lists = {"train": [f"a{number}" for number in range(10)], "val": ["b0", "b1", "b2"]}
    (voc / "ImageSets" / "Segmentation").mkdir(parents=True)
    for part, names in lists.items():
        (voc / "ImageSets" / "Segmentation" / f"{part}.txt").write_text("\n".join(names) + "\n")
        for number, name in enumerate(names):
            mask = voc / "SegmentationClass" / f"{name}.png"
            write_scene(voc / "JPEGImages" / f"{name}.jpg", mask, 40, 48 + 8 * number, 21, VOID, number)
    return folder


def test_camvid_is_read_with_its_own_splits_and_void(data: Path) -> None:
    assert CamVid().fetch() == data / "camvid"
    splits = CamVid().load(CPU)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (6, 2, 3)
    ((images, targets),) = splits.test.batches(8)
    assert images.shape == (3, 3, 48, 64) and images.dtype == torch.float32
    assert targets.shape == (3, 48, 64) and targets.dtype == torch.int64
    assert (targets[:, :2] == VOID).all() and targets[:, 2:].max() <= 10
    assert len(CamVid().load(CPU, train_samples=2).train) == 2


def test_voc_holds_a_tenth_out_and_evaluates_images_at_their_own_size(data: Path) -> None:
    splits = Voc().load(CPU)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (9, 1, 3)
    sizes = [(images.shape, targets.shape) for images, targets in splits.test.batches(16)]
    assert sizes == [((1, 3, 40, width), (1, 40, width)) for width in (48, 56, 64)]
    images, targets = next(splits.train.epoch(0, 4, seed=0))
    assert images.shape == (4, 3, 33, 33) and targets.shape == (4, 33, 33) and targets.dtype == torch.int64
    smaller, larger = (Voc().load(CPU, train_samples=count).train.samples for count in (2, 5))  # type: ignore[attr-defined]
    assert len(smaller) == 2 and set(smaller) < set(larger)


def test_voc_prefers_the_augmented_list(data: Path) -> None:
    voc = data / "VOCdevkit" / "VOC2012"
    shutil.copytree(voc / "SegmentationClass", voc / "SegmentationClassAug")
    (voc / "ImageSets" / "Segmentation" / "trainaug.txt").write_text("a1\na2\na3\n")
    train = Voc().load(CPU).train
    assert sorted(mask for _, mask in train.samples) == [  # type: ignore[attr-defined]
        voc / "SegmentationClassAug" / f"a{number}.png" for number in (1, 2, 3)
    ]


@pytest.mark.parametrize("task", [CamVid(), Voc()], ids=lambda task: task.name)
def test_an_epoch_is_a_pure_function_of_its_arguments(task: Task, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = task.load(CPU).train
    assert train.steps_per_epoch(4) == len(train) // 4
    epochs = []
    for cores, epoch, seed in ((1, 0, 0), (2, 0, 0), (2, 1, 0), (2, 0, 1)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: range(cores))
        torch.manual_seed(cores)
        before = torch.get_rng_state()
        batches = list(train.epoch(epoch, 4, seed))
        assert len(batches) == len(train) // 4 and torch.equal(before, torch.get_rng_state())
        epochs.append([torch.cat(part) for part in zip(*batches, strict=True)])
    same, *others = (all(map(torch.equal, epochs[0], epoch)) for epoch in epochs[1:])
    assert same and not any(others)


def repaint(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    with Image.open(path) as image:
        pixels = np.array(image)
    Image.fromarray(change(pixels)).save(path)


def value(number: int) -> Callable[[np.ndarray], np.ndarray]:
    def change(pixels: np.ndarray) -> np.ndarray:
        pixels[5, 7] = number
        return pixels

    return change


CAMVID_FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, "no camvid in .*camvid/train is missing; put the folders"),
    "no images": (
        lambda folder: [path.unlink() for path in (folder / "val").iterdir()],
        r"camvid/val holds no image \(\.png, \.jpg, \.jpeg\); put",
    ),
    "no mask": (
        lambda folder: (folder / "valannot" / "1.png").unlink(),
        r"valannot/1\.png is missing, though there is .*val/1\.png; add it",
    ),
    "class": (
        lambda folder: repaint(folder / "testannot" / "2.png", value(12)),
        r"testannot/2\.png holds the class 12; allowed are 0 to 10 and 11 \(void\): correct",
    ),
    "mask size": (
        lambda folder: repaint(folder / "trainannot" / "0.png", lambda pixels: pixels[:40]),
        r"trainannot/0\.png has 64x40 pixels, but .*train/0\.png has 64x48; both need the same size",
    ),
    "colours": (
        lambda folder: repaint(folder / "trainannot" / "0.png", lambda pixels: np.stack([pixels] * 3, -1)),
        r"trainannot/0\.png has the colour mode RGB, but a mask needs one byte a pixel",
    ),
    "size": (
        lambda folder: [repaint(folder / part / "0.png", lambda pixels: pixels[8:]) for part in ("test", "testannot")],
        r"test/0\.png has 64x40 pixels instead of 64x48; resize",
    ),
    "unreadable": (
        lambda folder: (folder / "train" / "3.png").write_bytes(b"no image"),
        r"train/3\.png cannot be read as an image",
    ),
    "unreadable mask": (
        lambda folder: (folder / "trainannot" / "3.png").write_bytes(b"no image"),
        r"trainannot/3\.png cannot be read as an image",
    ),
}
VOC_FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, "no voc in .*VOC2012 is missing; put torchvision's folder VOCdevkit"),
    "no list": (lambda folder: (folder / "ImageSets/Segmentation/val.txt").unlink(), r"val\.txt is missing"),
    "empty list": (
        lambda folder: (folder / "ImageSets/Segmentation/train.txt").write_text("\n"),
        r"train\.txt lists no image; write",
    ),
    "in both lists": (
        lambda folder: (folder / "ImageSets/Segmentation/val.txt").write_text("a3\n"),
        r"lists a3 for training and for testing",
    ),
    "no image": (lambda folder: (folder / "JPEGImages/b1.jpg").unlink(), r"JPEGImages/b1\.jpg is missing"),
    "no mask": (lambda folder: (folder / "SegmentationClass/b1.png").unlink(), r"Class/b1\.png is missing"),
    "class": (
        lambda folder: repaint(folder / "SegmentationClass/b2.png", value(21)),
        r"b2\.png holds the class 21; allowed are 0 to 20 and 255 \(void\)",
    ),
    "mask size": (
        lambda folder: repaint(folder / "SegmentationClass/b0.png", lambda pixels: pixels[:, :40]),
        r"b0\.png has 40x40 pixels, but .*b0\.jpg has 48x40",
    ),
    "unreadable": (lambda folder: (folder / "JPEGImages/b0.jpg").write_bytes(b"x"), r"b0\.jpg cannot be read"),
}


@pytest.mark.parametrize("fault", CAMVID_FAULTS)
def test_a_bad_camvid_is_refused_in_one_line(fault: str, data: Path) -> None:
    spoil, words = CAMVID_FAULTS[fault]
    spoil(data / "camvid")
    with pytest.raises(UserError, match=words) as caught:
        CamVid().load(CPU)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fault", VOC_FAULTS)
def test_a_bad_voc_is_refused_in_one_line(fault: str, data: Path) -> None:
    spoil, words = VOC_FAULTS[fault]
    spoil(data / "VOCdevkit" / "VOC2012")
    with pytest.raises(UserError, match=words) as caught:
        list(Voc().load(CPU).test.batches(1))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("train_samples", [0, 7])
def test_train_samples_out_of_range_is_bad_input(train_samples: int, data: Path) -> None:
    with pytest.raises(UserError, match=f"train_samples is {train_samples}, but camvid needs 1 to 6"):
        CamVid().load(CPU, train_samples)


def test_bad_data_end_the_run_with_exit_code_2(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (data / "camvid" / "trainannot" / "3.png").unlink()
    words = ["--method", "dense", "--task", "camvid", "--backbone", "deeplabv3plus_thin"]
    arguments = ["run", *words, "--budget", "1", "--seed", "0", "--epochs", "1", "--results", str(tmp_path / "results")]
    assert main(arguments) == 2
    assert "trainannot/3.png is missing" in capsys.readouterr().err
