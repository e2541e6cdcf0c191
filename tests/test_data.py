"""Splits, augmentation, batches and the data folder: on small made-up images, without a network."""

from __future__ import annotations

import errno
import gzip
import struct
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nasbench_grow.base.errors import UserError
from nasbench_grow.data import cache, npm
from nasbench_grow.data.idx import read_idx
from nasbench_grow.data.images import Augmentation, ImageSplit, ImageTrainSplit, Normalisation
from nasbench_grow.data.raw import RawImages
from nasbench_grow.data.splits import balanced_subset, hold_out

PLAIN = Normalisation(mean=(0.0,), std=(1.0,))
label_lists = st.lists(st.integers(0, 4), min_size=1, max_size=60).map(torch.tensor)


def made_up(count: int = 12) -> RawImages:
    """A data set of ``count`` random training images and 4 test images."""
    generator = torch.Generator().manual_seed(count)
    return RawImages(
        torch.randint(256, (count, 3, 4, 4), generator=generator, dtype=torch.uint8),
        (torch.arange(count) % 2).to(torch.uint8),
        torch.randint(256, (4, 3, 4, 4), generator=generator, dtype=torch.uint8),
        (torch.arange(4) % 2).to(torch.uint8),
    )


def train_split(count: int, augmentation: Augmentation) -> ImageTrainSplit:
    """Random 1-channel 6 x 6 images; image i has label i, and no two images are alike."""
    images = torch.randint(1, 256, (count, 1, 6, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return ImageTrainSplit(images, torch.arange(count), PLAIN, augmentation)


# --- splits ---


@given(labels=label_lists, data=st.data())
def test_hold_out_divides_all_samples_and_balances_the_held_out_ones(labels: Tensor, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, len(labels)))
    rest, held = hold_out(labels, count)
    assert len(held) == count
    assert sorted([*rest.tolist(), *held.tolist()]) == list(range(len(labels)))
    chosen, available = labels[held].bincount(minlength=5), labels.bincount(minlength=5)
    # A class has fewer chosen samples than another by two or more only if it has no more to give.
    assert all(chosen[c] == available[c] or chosen[c] >= chosen.max() - 1 for c in range(5))


@given(labels=label_lists, data=st.data())
def test_a_smaller_subset_is_part_of_a_larger_one(labels: Tensor, data: st.DataObject) -> None:
    large = data.draw(st.integers(0, len(labels)))
    small = data.draw(st.integers(0, large))
    assert set(balanced_subset(labels, small).tolist()) <= set(balanced_subset(labels, large).tolist())


def test_the_split_is_the_same_everywhere() -> None:
    _, held = hold_out(torch.arange(1000) % 10, 10)
    assert held.tolist() == [33, 66, 331, 550, 658, 777, 834, 859, 942, 995]


# --- augmentation and batches ---


def augment_one(image: Tensor, padding: int, top: int, left: int, mirrored: bool) -> Tensor:
    """The augmentation of one image, written out pixel by pixel."""
    channels, height, width = image.shape
    result = torch.zeros_like(image)
    for channel in range(channels):
        for row in range(height):
            for column in range(width):
                from_row = row + top - padding
                from_column = (width - 1 - column if mirrored else column) + left - padding
                if 0 <= from_row < height and 0 <= from_column < width:
                    result[channel, row, column] = image[channel, from_row, from_column]
    return result


@given(
    batch=st.integers(1, 4),
    channels=st.integers(1, 3),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    padding=st.integers(0, 4),
    flip=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_augmenting_a_batch_equals_augmenting_each_image(
    batch: int, channels: int, height: int, width: int, padding: int, flip: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (batch, channels, height, width), generator=generator, dtype=torch.uint8)
    augmentation = Augmentation(padding, flip)
    choices = augmentation.draw(batch, generator)
    expected = [
        augment_one(image, padding, top, left, bool(mirrored))
        for image, (top, left, mirrored) in zip(images, choices.tolist(), strict=True)
    ]
    assert torch.equal(augmentation(images, choices), torch.stack(expected))


def test_every_crop_and_both_orientations_are_drawn() -> None:
    choices = Augmentation(padding=1, flip=True).draw(1000, torch.Generator().manual_seed(0))
    assert {tuple(choice) for choice in choices.tolist()} == {
        (top, left, mirrored) for top in range(3) for left in range(3) for mirrored in (0, 1)
    }
    without_flip = Augmentation(padding=1, flip=False).draw(1000, torch.Generator().manual_seed(0))
    assert not without_flip[:, 2].any()


def test_an_epoch_is_a_pure_function_of_epoch_batch_size_and_seed() -> None:
    split = train_split(20, Augmentation(padding=2, flip=True))
    first, again, other_epoch, other_seed = (
        [batch[0] for batch in split.epoch(epoch, 8, seed)] for epoch, seed in [(3, 5), (3, 5), (4, 5), (3, 6)]
    )
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other_epoch[0])
    assert not torch.equal(first[0], other_seed[0])


def test_an_epoch_does_not_touch_the_global_random_state() -> None:
    before = torch.get_rng_state()
    list(train_split(20, Augmentation(padding=2, flip=True)).epoch(0, 8, 0))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("count", "batch_size", "sizes"), [(20, 8, [8, 8]), (16, 8, [8, 8]), (5, 8, [5])])
def test_an_epoch_has_whole_batches_only_unless_there_is_but_one(count: int, batch_size: int, sizes: list[int]) -> None:
    split = train_split(count, Augmentation(padding=0, flip=False))
    batches = list(split.epoch(0, batch_size, 0))
    assert [len(labels) for _, labels in batches] == sizes
    assert split.steps_per_epoch(batch_size) == len(sizes)
    drawn = torch.cat([labels for _, labels in batches]).tolist()
    assert len(set(drawn)) == len(drawn)


def test_no_batch_but_the_first_brings_numbers_from_python_for_which_a_gpu_would_stop() -> None:
    class Made(TorchDispatchMode):
        """Notes the operators that run."""

        def __init__(self) -> None:
            super().__init__()
            self.names: list[str] = []

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.names.append(str(function))
            return function(*args, **(kwargs or {}))

    images = torch.zeros(6, 3, 4, 4, dtype=torch.uint8)
    normalisation = Normalisation((0.25, 0.5, 0.625), (0.5, 0.5, 0.125))
    split = ImageTrainSplit(images, torch.zeros(6, dtype=torch.uint8), normalisation, Augmentation(1, flip=True))
    batches = split.epoch(0, 2, seed=0)
    next(batches)
    with Made() as made:
        next(batches)
    assert "aten.gather.default" in made.names
    assert "aten.lift_fresh.default" not in made.names


def test_labels_stay_with_their_images() -> None:
    split = train_split(20, Augmentation(padding=0, flip=False))
    for images, labels in split.epoch(0, 4, 0):
        torch.testing.assert_close(images, split.images[labels] / 255)


def test_evaluation_batches_are_normalised_complete_and_in_order() -> None:
    raw = made_up(10)
    split = ImageSplit(raw.train_images, raw.train_labels, Normalisation((0.4, 0.5, 0.6), (0.1, 0.2, 0.3)))
    images, labels = (torch.cat(parts) for parts in zip(*split.batches(4), strict=True))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.4, 0.5, 0.6), (0.1, 0.2, 0.3)))
    torch.testing.assert_close(images, (raw.train_images / 255 - mean) / std)
    assert labels.tolist() == raw.train_labels.tolist()
    assert labels.dtype == torch.int64


# --- the data folder ---


def source_of(images: RawImages, name: str = "made up") -> cache.Source:
    return cache.Source(name, lambda work: images)


def failing(message: str) -> cache.Source:
    def fetch(work: Path) -> RawImages:
        (work / "half-a-download").write_bytes(b"x")
        raise cache.SourceError(message)

    return cache.Source("broken", fetch)


def visible(folder: Path) -> list[str]:
    """What lies in the folder, apart from the empty lock file."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def test_a_fetched_data_set_reads_back_the_same(tmp_path: Path) -> None:
    path = tmp_path / "set.safetensors"
    cache.fetch_once(path, made_up().sha256(), [source_of(made_up())], "")
    assert cache.load(path, RawImages).sha256() == made_up().sha256()
    assert visible(tmp_path) == ["set.safetensors"]


def test_the_next_source_is_tried_when_one_fails_or_gives_something_else(tmp_path: Path) -> None:
    path = tmp_path / "set.safetensors"
    cache.fetch_once(path, made_up().sha256(), [failing("no route"), source_of(made_up(14)), source_of(made_up())], "")
    assert cache.load(path, RawImages).sha256() == made_up().sha256()


def test_when_all_sources_fail_one_line_says_why_and_nothing_is_left(tmp_path: Path) -> None:
    sources = [failing("no\nroute"), source_of(made_up(14), "mirror")]
    with pytest.raises(UserError) as caught:
        cache.fetch_once(tmp_path / "set.safetensors", made_up().sha256(), sources, "copy it by hand")
    message = str(caught.value)
    assert str(tmp_path) in message and "broken: no route" in message and "copy it by hand" in message
    assert "mirror: the contents have the wrong checksum" in message
    assert "\n" not in message
    assert visible(tmp_path) == []


def test_an_interrupted_fetch_leaves_nothing(tmp_path: Path) -> None:
    def interrupted(work: Path) -> RawImages:
        (work / "half-a-download").write_bytes(b"x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.fetch_once(tmp_path / "set.safetensors", "", [cache.Source("slow", interrupted)], "")
    assert visible(tmp_path) == []


def test_a_killed_fetch_does_not_stand_in_the_way(tmp_path: Path) -> None:
    left_behind = tmp_path / ".set.safetensors.fetching"
    left_behind.mkdir()
    (left_behind / "set.safetensors").write_bytes(b"half")
    cache.fetch_once(tmp_path / "set.safetensors", made_up().sha256(), [source_of(made_up())], "")
    assert visible(tmp_path) == ["set.safetensors"]


def test_a_full_disk_is_reported_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache, "save_file", full)
    with pytest.raises(UserError, match="No space left on device"):
        cache.fetch_once(tmp_path / "set.safetensors", made_up().sha256(), [source_of(made_up())], "")
    assert visible(tmp_path) == []


def test_two_fetches_at_the_same_time_fetch_once(tmp_path: Path) -> None:
    fetches = []
    both_started = threading.Barrier(2)

    def slow(work: Path) -> RawImages:
        fetches.append(work)
        return made_up()

    def one() -> None:
        both_started.wait()
        cache.fetch_once(tmp_path / "set.safetensors", made_up().sha256(), [cache.Source("slow", slow)], "")

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fetches) == 1


def test_a_truncated_data_set_is_named(tmp_path: Path) -> None:
    path = tmp_path / "set.safetensors"
    cache.fetch_once(path, made_up().sha256(), [source_of(made_up())], "")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"set\.safetensors is truncated"):
        cache.load(path, RawImages)


def test_the_data_folder_is_the_named_one_and_must_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NASBENCH_GROW_DATA", str(tmp_path))
    assert cache.data_folder() == tmp_path
    monkeypatch.setenv("NASBENCH_GROW_DATA", str(tmp_path / "absent"))
    with pytest.raises(UserError, match=r"NASBENCH_GROW_DATA is .*absent"):
        cache.data_folder()


def test_the_default_data_folder_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NASBENCH_GROW_DATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.data_folder() == tmp_path / ".cache" / "nasbench-grow"
    assert cache.data_folder().is_dir()


# --- npm ---


def fake_npm(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put an executable ``npm`` with the given shell script first on the search path."""
    folder.mkdir()
    (folder / "npm").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_npm_archives_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_npm(tmp_path / "bin", "printf abc > package-1.0.0.tgz", monkeypatch)
    right = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    (tmp_path / "one").mkdir()
    assert npm.pack("package@1.0.0", right, tmp_path / "one").read_bytes() == b"abc"
    (tmp_path / "two").mkdir()
    with pytest.raises(cache.SourceError, match=f"has SHA-256 {right} instead of {'0' * 64}"):
        npm.pack("package@1.0.0", "0" * 64, tmp_path / "two")


def test_failures_of_npm_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_npm(tmp_path / "bin", "echo no such host >&2; exit 3", monkeypatch)
    with pytest.raises(cache.SourceError, match="exit code 3: no such host"):
        npm.pack("package@1.0.0", "", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(cache.SourceError, match="npm is not installed"):
        npm.pack("package@1.0.0", "", tmp_path)


# --- IDX files ---


def idx_bytes(values: Tensor) -> bytes:
    head = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    return head + values.numpy().tobytes()


@pytest.mark.parametrize("name", ["values-idx3-ubyte", "values-idx3-ubyte.gz"])
def test_idx_files_are_read(tmp_path: Path, name: str) -> None:
    values = torch.arange(24, dtype=torch.uint8).view(2, 3, 4)
    content = idx_bytes(values)
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert torch.equal(read_idx(tmp_path / name), values)


@pytest.mark.parametrize("name", ["values-idx3-ubyte", "values-idx3-ubyte.gz"])
@pytest.mark.parametrize("kept", [0, 3, 9, 30])
def test_truncated_idx_files_are_named(tmp_path: Path, name: str, kept: int) -> None:
    content = idx_bytes(torch.arange(24, dtype=torch.uint8).view(2, 3, 4))
    content = gzip.compress(content) if name.endswith(".gz") else content
    (tmp_path / name).write_bytes(content[:kept])
    with pytest.raises(ValueError, match=name):
        read_idx(tmp_path / name)
