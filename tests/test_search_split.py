"""The part of the training samples that a search is judged on, and the order that calibration walks them in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from nasbench_grow.base.errors import UserError
from nasbench_grow.contract.task import Split, TrainSplit
from nasbench_grow.data.decoding import DecodedTrainSplit
from nasbench_grow.data.image_folder import FolderTrainSplit
from nasbench_grow.data.images import Augmentation, ImageTrainSplit, Normalisation
from nasbench_grow.data.scenes import FileTrainSplit, MemoryTrainSplit, Reader, turned
from nasbench_grow.data.text import TextTrainSplit
from nasbench_grow.tasks.digits import Digits

CPU = torch.device("cpu")
PLAIN = Normalisation(mean=(0.0,) * 3, std=(1.0,) * 3)
COUNT = 40
LABELS = torch.arange(COUNT) // 10
"""Of images sorted by their four classes, as a tree of folders gives them."""
PIXELS = torch.arange(1, COUNT + 1, dtype=torch.uint8)
"""Image i is 3 x 3 pixels of the value i + 1, so that it can be told from the others however it is cropped."""


def images() -> Tensor:
    return PIXELS.view(-1, 1, 1, 1).repeat(1, 3, 3, 3)


def in_memory(_: Path) -> TrainSplit:
    return ImageTrainSplit(images(), LABELS, PLAIN, Augmentation(padding=1, flip=True))


def scenes_in_memory(_: Path) -> TrainSplit:
    def marked(image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        image = image.clone()
        image[:, 0, 0] = 0  # an augmentation that can be seen
        return image, mask

    return MemoryTrainSplit(images(), LABELS.view(-1, 1, 1).expand(-1, 3, 3), PLAIN, marked)


def decoded(_: Path) -> TrainSplit:
    def view(number: int) -> tuple[Tensor, Tensor]:
        return images()[number], LABELS[number]

    def augmented(number: int) -> tuple[Tensor, Tensor]:
        image, label = view(number)
        image[:, 0, 0] = 0
        return image, label

    return DecodedTrainSplit(range(COUNT), view, augmented, PLAIN, CPU)


def in_folders(folder: Path) -> TrainSplit:
    files = [(str(folder / f"{number}.png"), int(label)) for number, label in enumerate(LABELS)]
    for (path, _), image in zip(files, images(), strict=True):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    return FolderTrainSplit(files, 3, PLAIN, CPU)


def scenes_in_files(folder: Path) -> TrainSplit:
    pairs = [(folder / f"{number}.png", folder / f"{number}-mask.png") for number in range(COUNT)]
    for (path, mask), image, label in zip(pairs, images(), LABELS, strict=True):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
        Image.fromarray(np.full((3, 3), int(label), dtype=np.uint8)).save(mask)
    return FileTrainSplit(pairs, Reader(4, 255), PLAIN, CPU, turned)


MAKERS = [in_memory, scenes_in_memory, decoded, in_folders, scenes_in_files]
every_kind = pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
with_classes = pytest.mark.parametrize("make", [in_memory, in_folders], ids=lambda make: make.__name__)
Make = Callable[[Path], TrainSplit]


def shown(batches: Any) -> list[int]:
    """The images of some batches by their middle pixel, which no augmentation here moves away."""
    return [round(float(image[0, 1, 1]) * 255) - 1 for images, _ in batches for image in images]


def numbers(split: Split) -> list[int]:
    return shown(split.batches(7))


@every_kind
def test_the_two_parts_are_disjoint_and_together_all_samples(make: Make, tmp_path: Path) -> None:
    rest, held = make(tmp_path).hold_out(0.2, batch_size=8)
    assert (len(rest), len(held)) == (32, 8)
    assert len(numbers(held)) == 8
    assert sorted(numbers(rest) + numbers(held)) == list(range(COUNT))


@every_kind
def test_no_epoch_of_the_rest_has_a_sample_that_is_held_out(make: Make, tmp_path: Path) -> None:
    rest, held = make(tmp_path).hold_out(0.2, batch_size=8)
    drawn = [shown(rest.epoch(epoch, 8, seed)) for epoch, seed in ((0, 0), (1, 0), (0, 1))]
    assert all(len(set(epoch)) == len(rest) for epoch in drawn)
    assert not {number for epoch in drawn for number in epoch} & set(numbers(held))


@every_kind
def test_the_choice_is_the_same_each_time_and_leaves_the_split_as_it_was(make: Make, tmp_path: Path) -> None:
    split = make(tmp_path)
    before = numbers(split)
    first, second = (numbers(split.hold_out(0.25)[1]) for _ in range(2))
    assert first == second
    assert numbers(split) == before and len(split) == COUNT


@every_kind
def test_what_is_held_out_is_not_augmented(make: Make, tmp_path: Path) -> None:
    _, held = make(tmp_path).hold_out(0.2)
    for batch, _ in held.batches(3):
        assert all(len(image.unique()) == 1 for image in batch)


@with_classes
def test_what_is_held_out_has_every_class_alike(make: Make, tmp_path: Path) -> None:
    rest, held = make(tmp_path).hold_out(0.2)
    assert LABELS[numbers(held)].bincount().tolist() == [2, 2, 2, 2]
    assert LABELS[numbers(rest)].bincount().tolist() == [8, 8, 8, 8]


@with_classes
def test_calibration_sees_every_class_from_the_beginning(make: Make, tmp_path: Path) -> None:
    order = numbers(make(tmp_path))
    assert sorted(order) == list(range(COUNT))
    for beginning in (4, 8, 20):
        assert set(LABELS[order[:beginning]].bincount().tolist()) == {beginning // 4}


def test_labels_stay_with_their_images() -> None:
    for part in in_memory(Path()).hold_out(0.2):
        for batch, labels in part.batches(5):
            assert labels.tolist() == LABELS[shown([(batch, labels)])].tolist()


def test_digits_are_held_out_of_the_training_images_that_are_kept() -> None:
    train = Digits().load(CPU, train_samples=100).train
    rest, held = train.hold_out(0.2, batch_size=32)
    assert (len(rest), len(held)) == (80, 20)
    assert torch.cat([labels for _, labels in held.batches(50)]).bincount().tolist() == [2] * 10


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, 2.0])
def test_a_share_out_of_range_is_bad_input(share: float) -> None:
    with pytest.raises(UserError, match=f"cannot hold out {share:g} of the training samples; give a share above 0"):
        in_memory(Path()).hold_out(share)


def test_a_batch_must_be_left_to_train_on() -> None:
    rest, _ = in_memory(Path()).hold_out(0.2, batch_size=32)
    assert rest.steps_per_epoch(32) == 1
    with pytest.raises(
        UserError, match=r"holding out 8 of 40 .* leaves 32, but a batch needs 33; train on more"
    ) as caught:
        in_memory(Path()).hold_out(0.2, batch_size=33)
    assert "\n" not in str(caught.value)


def test_a_small_share_holds_out_one_sample() -> None:
    assert len(in_memory(Path()).hold_out(0.001)[1]) == 1


# --- texts ---


def targets(split: Split) -> list[int]:
    return [word for _, words in split.batches(1) for word in words.flatten().tolist()]


def test_the_last_sequences_of_a_text_are_held_out() -> None:
    rest, held = TextTrainSplit(torch.arange(23), sequence=4).hold_out(0.3, batch_size=2)  # 6 sequences: 2 held out
    assert isinstance(rest, TextTrainSplit)
    assert (len(rest), len(held)) == (4, 2)
    assert targets(rest) == list(range(1, 17))
    assert targets(held) == list(range(17, 23)), "every word is predicted once, in one of the two"
    assert next(held.batches(1))[0].tolist() == [[0, 16, 17, 18, 19]]
    drawn = torch.cat([words for _, words in rest.epoch(0, 2, seed=0)]).flatten()
    assert drawn.max() <= 16 and len(drawn.unique()) == len(drawn)


def test_a_text_must_leave_a_batch_of_sequences() -> None:
    text = TextTrainSplit(torch.arange(23), sequence=4)
    assert text.hold_out(0.3, batch_size=2)[0].steps_per_epoch(2) == 1
    with pytest.raises(UserError, match="leaves 4, but a batch needs 5; train on more samples"):
        text.hold_out(0.3, batch_size=4)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 20])
@pytest.mark.parametrize("sequence", [1, 4, 20, 35])
def test_a_text_is_refused_where_nothing_could_be_trained_on_and_only_there(batch_size: int, sequence: int) -> None:
    for length in range(2, 3 + 2 * batch_size * (sequence + 1), 1 + sequence // 8):
        text = TextTrainSplit(torch.arange(length), sequence)
        left = TextTrainSplit(text.words[: (len(text) - 1) * sequence + 1], sequence)  # a hundredth is one sequence
        if left.steps_per_epoch(batch_size) >= 1:
            assert torch.equal(text.hold_out(0.01, batch_size)[0].words, left.words)
        else:
            with pytest.raises(UserError, match="a batch needs"):
                text.hold_out(0.01, batch_size)
