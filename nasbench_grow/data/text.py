"""Texts as streams of word numbers, and the splits that a language model is trained and evaluated on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from nasbench_grow.base.errors import UserError
from nasbench_grow.contract.task import Batch
from nasbench_grow.data.raw import RawText
from nasbench_grow.data.splits import held_out_count


def encode(texts: Mapping[Path, Sequence[str]], vocabulary: Sequence[str]) -> list[Tensor]:
    """The words of each text as their numbers in ``vocabulary``, int32.

    Args:
        texts: words by the file that they come from, which the error names.

    Raises:
        UserError: a word is not in the vocabulary.
    """
    number = {word: index for index, word in enumerate(vocabulary)}
    for path, words in texts.items():
        strange = next((word for word in words if word not in number), None)
        if strange is not None:
            raise UserError(
                f"{path} has the word {strange!r}, which is not among the {len(number)} of the training text; write "
                "<unk> for it, or add it to the training text"
            )
    return [torch.tensor([number[word] for word in words], dtype=torch.int32) for words in texts.values()]


def raw_text(texts: Sequence[Tensor], vocabulary: Sequence[str]) -> RawText:
    """The three encoded texts (train, val, test) with their vocabulary."""
    train, val, test = texts
    return RawText(train, val, test, torch.frombuffer(bytearray("\n".join(vocabulary).encode()), dtype=torch.uint8))


class TextSplit:
    """A text that is evaluated: one stream, each sequence going on where the last one ended.

    Args:
        words: numbers of the words, shape (n,), on the device where batches are wanted.
        sequence: number of time steps of a sequence (T).
    """

    def __init__(self, words: Tensor, sequence: int) -> None:
        self.words = words.long()
        self.sequence = sequence

    def __len__(self) -> int:
        """Number of sequences; the last one may be shorter."""
        return -(-(len(self.words) - 1) // self.sequence)

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Every word but the first is predicted once: inputs (1, 1 + t), targets (1, t), one sequence a batch whatever
        ``batch_size`` is, because each needs the state that the one before it left."""
        for start in range(0, len(self.words) - 1, self.sequence):
            yield _batch(self.words.unsqueeze(0), start, self.sequence)


class TextTrainSplit(TextSplit):
    """A text that is trained on: as many parallel streams as a batch has rows (truncated back-propagation)."""

    def steps_per_epoch(self, batch_size: int) -> int:
        """Number of batches of an epoch: whole sequences only."""
        return (len(self.words) // batch_size - 1) // self.sequence

    def hold_out(self, share: float, batch_size: int = 1) -> tuple[TextTrainSplit, TextSplit]:
        """The text up to a sequence's end to train on, and the last sequences, which a search is judged on. Each word
        is predicted in one of the two; the last one read of the first part is where the second begins.

        Raises:
            UserError: ``share`` is not between 0 and 1, or less is left than a batch of sequences.
        """
        count = held_out_count(len(self), share, sequences_of_batch(batch_size, self.sequence))
        cut = (len(self) - count) * self.sequence
        return TextTrainSplit(self.words[: cut + 1], self.sequence), TextSplit(self.words[cut:], self.sequence)

    def epoch(self, epoch: int, batch_size: int, seed: int) -> Iterator[Batch]:
        """Inputs (batch, 1 + T), targets (batch, T): the text is cut into ``batch_size`` pieces of equal length, which
        are read in parallel from their beginnings. Every epoch is the same, whatever ``epoch`` and ``seed``: a text
        has one order."""
        length = len(self.words) // batch_size
        streams = self.words[: length * batch_size].view(batch_size, length)
        for step in range(self.steps_per_epoch(batch_size)):
            yield _batch(streams, step * self.sequence, self.sequence)


def sequences_of_batch(batch_size: int, sequence: int) -> int:
    """How many sequences of ``sequence`` words, read as one stream, a text needs for one batch of parallel ones."""
    return -(-(batch_size * (sequence + 1) - 1) // sequence)


def _batch(streams: Tensor, start: int, sequence: int) -> Batch:
    """Some time steps of every stream and the words that follow; a first column says whether the stream goes on."""
    targets = streams[:, start + 1 : start + 1 + sequence]
    goes_on = torch.full_like(streams[:, :1], int(start > 0))
    return torch.cat([goes_on, streams[:, start : start + targets.shape[1]]], dim=1), targets
