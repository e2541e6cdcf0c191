"""From a folder of images to a network that ships, and what `run --save` and `--tensorboard` leave."""

from __future__ import annotations

import importlib.util
import json
import random
import re
import shlex
import shutil
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import nasbench_grow
from nasbench_grow.base.errors import UserError
from nasbench_grow.cli import main
from nasbench_grow.contract import Recipe
from nasbench_grow.data.image_folder import FolderSplit
from nasbench_grow.data.images import Normalisation
from nasbench_grow.data.own_images import augmenting, own_images, read_folder
from nasbench_grow.harness import onnx_file
from nasbench_grow.harness.own_cell import OwnRun, own_cell
from nasbench_grow.harness.store import Store
from nasbench_grow.report.statistics import wilson

MODELS = """
from torch import nn


def tiny(num_classes=2, in_chans=3):
    return nn.Sequential(
        nn.Conv2d(in_chans, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes),
    )


def two():
    return tiny(2)


def no_module():
    return 3


def fails(num_classes):
    return {}[num_classes]
"""
CLASSES = ("ant", "bee", "cow")


def paint(folder: Path, count: int, shade: int, generator: torch.Generator) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        pixels = torch.randint(80, (18, 20, 3), generator=generator, dtype=torch.uint8) + shade
        Image.fromarray(pixels.numpy()).save(folder / f"{number:02}.png")


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three classes of 20, 16 and 12 small images, and a module with models in the folder of the call."""
    generator = torch.Generator().manual_seed(0)
    for place, (name, count) in enumerate(zip(CLASSES, (20, 16, 12), strict=True)):
        paint(tmp_path / "photos" / name, count, 80 * place, generator)
    (tmp_path / "own_models_of_a_test.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [str(tmp_path), *__import__("sys").path])
    return tmp_path / "photos"


def call(*more: str, out: str = "small") -> int:
    words = ["grow", "--model", "own_models_of_a_test:tiny", "--data", "photos", "--out", out, "--image-size", "16"]
    return main([*words, "--epochs", "2", "--batch-size", "8", "--learning-rate", "0.05", "--device", "cpu", *more])


def content(path: Path) -> tuple[dict[str, str], dict[str, bytes]]:
    """What a saved file holds; the order of its header's entries is left to chance."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name).numpy().tobytes() for name in file.keys()}  # noqa: SIM118
        return file.metadata(), tensors


def test_a_folder_of_images_becomes_a_network_that_ships(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("--tensorboard", "board", "--augmentation", "shift") == 0
    said = capsys.readouterr()
    assert "48 images in 3 classes, 9 of them held out by seed 0" in said.err
    assert "epoch 2/2: loss" in said.err and "accuracy" in said.err and "MACs 0." in said.err and "left" in said.err

    from own_models_of_a_test import tiny  # type: ignore[import-not-found]

    network: Any = nasbench_grow.load("small/model.safetensors", model=tiny(3))
    assert network.class_names == list(CLASSES)
    (key,) = (path.stem for path in Path("small/run/records").glob("*.json"))
    record = Store("small/run").record(key)
    assert record is not None and record["status"] == "ok"
    example = torch.zeros(1, 3, 16, 16)
    assert nasbench_grow.count_macs(network, example) == record["macs"] < 0.6 * record["dense_macs"]

    page = Path("small/README.md").read_text()
    low, high = wilson(record["val_metric"], 9)
    assert f"({100 * low:.1f} to {100 * high:.1f}, 95% interval over 9 images)" in page
    for words in (
        "`ant`, `bee`, `cow`",
        f"{record['params']:,}",
        f"{record['macs']:,}",
        "held out by seed 0",
        "latency",
    ):
        assert words in page
    assert "--augmentation shift" in page and "from own_models_of_a_test import tiny" in page

    table = pd.read_csv("small/history.csv")
    assert list(table["epoch"]) == [1, 2]
    assert table["width:0"].iloc[-1] == network[0].out_channels
    assert table["macs"].iloc[-1] == record["macs"]
    assert Path("small/growth.png").read_bytes().startswith(b"\x89PNG")

    import onnxruntime

    session = onnxruntime.InferenceSession("small/model.onnx")
    images = torch.rand(5, 3, 16, 16)
    with torch.no_grad():
        wanted = network(images)
    (found,) = session.run(None, {"input": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), wanted, atol=1e-4, rtol=1e-4)

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator("board").Reload()
    assert {"loss", "val_metric", "macs", "width/0"} <= set(board.Tags()["scalars"])
    assert [event.value for event in board.Scalars("macs")] == list(table["macs"])

    before = content(Path("small/model.safetensors"))
    monkeypatch.setattr(onnx_file, "find_spec", lambda name: None)
    assert call("--augmentation", "shift") == 0, "a finished run is not run again"
    assert content(Path("small/model.safetensors")) == before
    assert "epoch 1/2" not in capsys.readouterr().err
    assert call("--augmentation", "crop") == 2
    assert "'small' holds the network of another run" in capsys.readouterr().err


def test_an_interrupted_run_goes_on_to_the_same_network(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = ("--augmentation", "rand-m9-mstd0.5", "--method", "uniform")
    assert call(*policy, out="whole") == 0
    write = Store.write_history

    def interrupted(self: Store, key: str, epochs: list[dict[str, Any]]) -> None:
        if len(epochs) == 2:
            raise KeyboardInterrupt
        write(self, key, epochs)

    with monkeypatch.context() as patched:
        patched.setattr(Store, "write_history", interrupted)
        assert call(*policy) == 130
    assert "go on from the last finished epoch with: nasbench-grow grow --model" in capsys.readouterr().err
    assert not Path("small/model.safetensors").exists()
    torch.rand(3), random.random(), np.random.rand()
    assert call(*policy) == 0
    one, other = (json.loads(next(Path(out, "run/records").glob("*.json")).read_text()) for out in ("whole", "small"))
    assert one["weights_sha256"] == other["weights_sha256"] and one["val_metric"] == other["val_metric"]
    assert content(Path("whole/model.safetensors")) == content(Path("small/model.safetensors"))


def test_trained_weights_are_what_filters_arrive_with(photos: Path) -> None:
    from own_models_of_a_test import tiny

    trained = tiny(7)  # of seven classes: the last layer starts afresh
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in trained.state_dict().items()}}, "t.pth")
    save_file(trained.state_dict(), "t.safetensors")
    for file in ("t.pth", "t.safetensors"):
        asked = OwnRun("own_models_of_a_test:tiny", "photos", image_size=16, checkpoint=file, device="cpu")
        _, task = own_cell(asked)
        network = tiny(3)
        before = network[8].weight.clone()
        task().initialise(network, None)  # type: ignore[arg-type]
        assert torch.equal(network[0].weight, trained[0].weight) and torch.equal(network[8].weight, before)
    assert call("--checkpoint", "t.pth", "--learning-rate", "1e-12", "--method", "grow[structures=filters]") == 0
    network = nasbench_grow.load("small/model.safetensors", model=tiny(3))
    rows = {tuple(row.flatten().tolist()) for row in trained[0].weight.detach().round(decimals=4)}
    kept = [tuple(row.flatten().tolist()) for row in network[0].weight.detach().round(decimals=4)]
    assert kept and set(kept) <= rows
    assert "each filter and layer that joins" in Path("small/README.md").read_text()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--data", "absent"], "no folder 'absent'; give the folder"),
        (["--data", "empty"], "empty holds no class"),
        (["--data", "lonely"], "lonely holds one class, 'ant'"),
        (["--data", "hollow"], "hollow/bee holds no image"),
        (["--data", "unlike"], "unlike/val has the class 'dog'"),
        (["--data", "untested"], "untested/test has the class 'dog'"),
        (["--model", "resnet9000"], "unknown backbone 'resnet9000'; did you mean"),
        (["--model", "own_models_of_a_test:absent"], "has no attribute 'absent'"),
        (["--model", "no_such_module:f"], "No module named 'no_such_module'"),
        (["--model", "own_models_of_a_test:fails"], r"cannot be made \(KeyError: 3\)"),
        (["--model", "own_models_of_a_test:no_module"], "gives a int"),
        (["--model", "own_models_of_a_test:two"], r"gives \[1, 2\] for one image, but photos has 3 classes"),
        (["--model", "vgg11", "--image-size", "1"], "does not take images of 1 x 1 pixels"),
        (["--image-size", "0"], "image size 0 is out of range"),
        (["--batch-size", "1"], "batch size 1 is out of range"),
        (["--learning-rate", "0"], "learning rate 0 is out of range"),
        (["--learning-rate", "nan"], "learning rate nan is out of range"),
        (["--budget", "1.5"], "budget 1.5 is out of range"),
        (["--epochs", "0"], "epochs 0 is out of range"),
        (["--seed", "-1"], "seed -1 is out of range"),
        (["--val-share", "1"], "share of validation images 1 is out of range"),
        (["--device", "tpu"], "unknown device 'tpu': choose auto, cpu, cuda"),
        (["--augmentation", "mixup"], "unknown augmentation 'mixup'"),
        (["--method", "grown"], "unknown method 'grown'; did you mean 'grow'"),
        (["--checkpoint", "absent.pth"], "no checkpoint 'absent.pth'"),
        (["--checkpoint", "photos/ant/00.png"], r"checkpoint 'photos/ant/00.png' cannot be read"),
        (["--checkpoint", "other.pth"], "does not fit the Sequential: '0.weight' is of shape"),
        (["--checkpoint", "nothing.pth"], "holds no weights"),
        (["--out", "photos/ant/00.png"], "cannot make the folder"),
    ],
    ids=str,
)
def test_bad_input_is_one_line(photos: Path, more: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    shutil.copytree(photos / "ant", "lonely/ant")
    shutil.copytree(photos / "ant", "hollow/ant")
    Path("hollow/bee").mkdir()
    shutil.copytree(photos, "unlike/train")
    shutil.copytree(photos / "ant", "unlike/val/dog")
    shutil.copytree(photos, "untested/train")
    shutil.copytree(photos, "untested/val")
    shutil.copytree(photos / "ant", "untested/test/dog")
    torch.save(nn.Sequential(nn.Conv2d(3, 4, 3)).state_dict(), "other.pth")
    torch.save({"epoch": 3}, "nothing.pth")
    assert call(*more) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("nasbench-grow: error: ") and "\n" not in said
    assert re.search(words, said), said


def test_a_divided_folder_is_taken_as_it_is_and_other_tools_folders_are_passed_over(photos: Path) -> None:
    shutil.copytree(photos, "divided/train")
    shutil.copytree(photos / "cow", "divided/valid/cow")
    Path("divided/train/.ipynb_checkpoints").mkdir()
    tree = read_folder(Path("divided"), 0.2, 0)
    assert tree.class_names == list(CLASSES) and not tree.made_split
    assert (len(tree.train), {label for _, label in tree.val}) == (48, {2}), "classes by name, not by place"


def test_images_to_test_on_judge_the_finished_network(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for part in ("train", "val", "test"):
        shutil.copytree(photos, Path("three") / part)
    shutil.rmtree("three/test/bee")  # 20 + 12 images of the first and the last class are left
    assert call("--data", "three", "--method", "uniform") == 0
    said = capsys.readouterr()
    assert "128 images in 3 classes, 48 validate, 32 test" in said.err and "ok: test accuracy" in said.out
    (path,) = Path("small/run/records").glob("*.json")
    record = Store("small/run").record(path.stem)
    assert record is not None
    page = Path("small/README.md").read_text()
    for part, metric, images in (("test", "test_metric", 32), ("validation", "val_metric", 48)):
        assert f"| {part} accuracy | {100 * record[metric]:.4g}" in page
        assert f"interval over {images} images" in page
        assert record[metric] * images == pytest.approx(round(record[metric] * images), abs=1e-4)


def test_classes_may_be_called_like_parts(photos: Path) -> None:
    for part in ("train", "test"):
        shutil.copytree(photos / "ant", Path("transport") / part)
    assert read_folder(Path("transport"), 0.2, 0).class_names == ["test", "train"]
    shutil.copytree(photos, "tested/val")
    shutil.copytree(photos, "tested/test")
    with pytest.raises(UserError, match="tested has 'val', but no 'train' beside it"):
        read_folder(Path("tested"), 0.2, 0)


def test_images_of_any_depth_are_shown_alike(tmp_path: Path) -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    files = {
        "grey.png": Image.fromarray(ramp),
        "deep.png": Image.fromarray(ramp.astype(np.uint16) * 257),
        "colour.png": Image.fromarray(ramp).convert("RGB"),
        "clear.png": Image.fromarray(ramp).convert("RGBA"),
        "palette.png": Image.fromarray(ramp).convert("P"),
    }
    for name, image in files.items():
        image.save(tmp_path / name)
    plain = Normalisation((0.0,) * 3, (1.0,) * 3)
    split = FolderSplit([(str(tmp_path / name), 0) for name in files], 14, plain, torch.device("cpu"))
    ((images, _),) = split.batches(8)
    assert (images - images[0]).abs().max() <= 1 / 255 and images[0].std() > 0.2


def test_a_pruning_method_and_a_vision_transformer_ship(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(onnx_file, "find_spec", lambda name: None)
    assert call("--method", "l1", "--epochs", "1", out="pruned") == 0
    assert "`l1`" in Path("pruned/README.md").read_text()
    said = capsys.readouterr().err
    assert "epoch 1/1: " in said and "\nepoch 2: " in said, "it trains, prunes and trains again"
    assert call("--model", "test_vit", "--image-size", "32", "--method", "uniform", "--epochs", "1") == 0
    network: Any = nasbench_grow.load("small/model.safetensors")
    with torch.inference_mode():
        assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 3)
    assert network.class_names == list(CLASSES)


def test_a_split_holds_out_of_every_class_and_is_the_seeds(photos: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    paint(photos / "rare", 2, 0, generator)
    paint(photos / "single", 1, 0, generator)
    trees = [read_folder(photos, 0.25, seed) for seed in (0, 0, 1)]
    counts = [[label for _, label in part].count for part in (trees[0].train, trees[0].val)]
    assert [[count(label) for label in range(5)] for count in counts] == [[15, 12, 9, 1, 1], [5, 4, 3, 1, 0]]
    assert trees[0] == trees[1] != trees[2]
    assert not {path for path, _ in trees[0].train} & {path for path, _ in trees[0].val}


def test_another_file_or_setting_is_another_run(photos: Path) -> None:
    def key(**changes: Any) -> str:
        return own_cell(
            OwnRun(**{"model": "own_models_of_a_test:tiny", "data": "photos", "image_size": 16, **changes})
        )[0].run_key()

    keys = [
        key(),
        key(image_size=18),
        key(augmentation="none"),
        key(learning_rate=0.1),
        key(seed=1),
        key(val_share=0.5),
    ]
    assert key() == keys[0]
    (photos / "ant" / "00.png").unlink()
    assert len({*keys, key()}) == 7


@pytest.mark.parametrize("name", ["crop", "shift", "none", "rand-m9-mstd0.5", "augmix-m5-w4", "original"])
def test_augmentations_give_images_of_the_size_and_are_pytorchs_draws(name: str) -> None:
    pixels = torch.randint(256, (30, 50, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    image = Image.fromarray(pixels.numpy())

    def shown() -> list[bytes]:
        found = []
        for seed in range(4):
            torch.manual_seed(seed)
            view = image
            for transform in augmenting(name, 16):
                view = transform(view)
            assert view.size == (16, 16)
            found.append(view.tobytes())
        return found

    assert shown() == shown()
    assert (len(set(shown())) > 1) == (name != "none")


def test_onnx_says_what_is_missing_and_what_cannot_be_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, example = tmp_path / "model.onnx", torch.zeros(1, 4)

    class Asks(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if float(x.sum()) > 0 else -x

    assert "cannot be exported" in onnx_file.write_onnx(Asks(), example, path) and not path.exists()
    monkeypatch.setattr(onnx_file, "_difference", lambda *_: 0.1)
    assert "differ from the network's by 1.0e-01" in onnx_file.write_onnx(nn.Linear(4, 2), example, path)
    assert not path.exists()
    monkeypatch.setattr(onnx_file, "find_spec", lambda name: None)
    said = onnx_file.write_onnx(nn.Linear(4, 2), example, path)
    assert (
        said
        == "model.onnx was not written: it needs onnx and onnxscript; install with: pip install 'nasbench-grow[onnx]'"
    )


def test_tensorboard_that_is_missing_is_one_line(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "nasbench_grow.harness.board.find_spec", lambda name: None if name == "tensorboard" else found(name)
    )
    assert call("--tensorboard", "board") == 2
    assert "--tensorboard needs the package tensorboard; install it with" in capsys.readouterr().err


def test_a_cell_is_saved_like_a_run_on_ones_own_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    cell = ["run", "--method", "uniform", "--task", "digits", "--backbone", "cifar_resnet20", "--budget", "0.25"]
    cell += ["--seed", "0", "--epochs", "1", "--train-samples", "64", "--save", "saved", "--tensorboard", "board"]
    monkeypatch.setattr(onnx_file, "find_spec", lambda name: None)
    for again in range(2):
        shutil.rmtree("saved", ignore_errors=True)
        shutil.rmtree("board", ignore_errors=True)
        assert main(cell) == 0
        assert list(Path("board").iterdir()), f"round {again}: a finished cell's epochs are shown too"
    names = {path.name for path in Path("saved").iterdir()}
    assert names == {"model.safetensors", "README.md", "history.csv", "growth.png", "run.json"}
    network = nasbench_grow.load("saved/model.safetensors")
    with torch.inference_mode():
        assert network(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    for weights in Path("results/weights").iterdir():
        weights.unlink()
    assert main(cell) == 2
    assert "has the record of uniform digits" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("share", "n", "low", "high"), [(0.0, 10, 0.0, 0.27753), (1.0, 10, 0.72247, 1.0), (0.5, 100, 0.40383, 0.59617)]
)
def test_the_interval_of_a_share_is_wilsons(share: float, n: int, low: float, high: float) -> None:
    assert wilson(share, n) == pytest.approx((low, high), abs=1e-5)


def test_normalisation_and_size_are_the_models(photos: Path) -> None:
    _, task = own_cell(OwnRun("test_vit", "photos", device="cpu"))
    assert task.input_shape == (3, 160, 160)
    assert task.normalisation.mean == (0.5, 0.5, 0.5)
    _, task = own_cell(OwnRun("test_vit", "photos", image_size=32, device="cpu"))
    assert task.input_shape == (3, 32, 32)


def test_the_readmes_command_is_one_and_its_network_loads_as_it_says(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[1] / "README.md").read_text()
    (command,) = re.findall(r"^nasbench-grow (grow .*)$", page, re.M)
    (loading,) = (code for code in re.findall(r"```python\n(.*?)```", page, re.S) if "class_names" in code)
    monkeypatch.setattr(onnx_file, "find_spec", lambda name: None)
    small = ["--image-size", "16", "--epochs", "1", "--batch-size", "16", "--device", "cpu", "--method", "uniform"]
    assert main([*shlex.split(command.replace("resnet50", "cifar_resnet20")), *small]) == 0
    assert "model.onnx was not written: it needs onnx" in capsys.readouterr().out
    exec(textwrap.dedent(loading), {})
    assert capsys.readouterr().out == "['ant', 'bee', 'cow']\n"


def test_own_images_can_be_made_without_the_command(photos: Path) -> None:
    task = own_images(
        photos,
        image_size=8,
        recipe=Recipe(),
        augmentation="none",
        normalisation=Normalisation((0.0,) * 3, (1.0,) * 3),
        val_share=0.25,
        seed=0,
    )
    splits = task().load(torch.device("cpu"))
    ((images, labels),) = splits.val.batches(64)
    assert images.shape == (12, 3, 8, 8) and sorted(labels.tolist()) == [0] * 5 + [1] * 4 + [2] * 3
    shades = [images[labels == label].mean() for label in range(3)]
    assert shades == sorted(shades), "labels stand with their images"
