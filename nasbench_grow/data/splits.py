"""Fixed, class-balanced choices of samples: the same on every machine and with every version of PyTorch."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sized
from typing import Self

import numpy as np
import torch
from torch import Tensor

from nasbench_grow.base.errors import UserError

SPLIT_SEED = 2007_15353
"""Seed of every split and subset; never a run's seed, so that all runs see the same samples."""


def balanced_order(labels: Tensor, seed: int = SPLIT_SEED) -> Tensor:
    """All indices in an order of which every beginning is as class-balanced as the data allow.

    The samples of each class are shuffled, then dealt in turn, one of each class; a class that runs out is passed over.
    A shorter beginning is thus a subset of a longer one.

    Args:
        labels: class of each sample, shape (n,), any integer type.
        seed: seed of the shuffle.
    Returns:
        int64 indices, shape (n,).
    """
    # RandomState's stream is frozen by NumPy's compatibility policy; torch.randperm's is not.
    shuffled = np.random.RandomState(seed).permutation(len(labels))
    classes = labels.cpu().numpy()[shuffled]
    by_class = np.argsort(classes, kind="stable")
    _, first, sizes = np.unique(classes[by_class], return_index=True, return_counts=True)
    turn = np.empty(len(labels), dtype=np.int64)
    turn[by_class] = np.arange(len(labels)) - np.repeat(first, sizes)
    return torch.from_numpy(shuffled[np.argsort(turn, kind="stable")].astype(np.int64))


def balanced_subset(labels: Tensor, count: int, seed: int = SPLIT_SEED) -> Tensor:
    """Ascending indices of ``count`` samples (at most all), as class-balanced as the data allow."""
    return balanced_order(labels, seed)[:count].sort().values


def hold_out(labels: Tensor, count: int, seed: int = SPLIT_SEED) -> tuple[Tensor, Tensor]:
    """Divide the samples into the remaining ones and ``count`` class-balanced held-out ones.

    Returns:
        (remaining, held out): two disjoint, ascending index tensors that together cover all samples.
    """
    order = balanced_order(labels, seed)
    return order[count:].sort().values, order[:count].sort().values


def held_out_count(samples: int, share: float, least: int) -> int:
    """How many training samples a search is judged on: the share of them, but at least one.

    Args:
        samples: training samples in all.
        share: of them, above 0 and below 1.
        least: samples that must be left to train on.
    Raises:
        UserError: ``share`` is out of range, or fewer are left.
    """
    if not 0 < share < 1:
        raise UserError(f"a search cannot hold out {share:g} of the training samples; give a share above 0 and below 1")
    count = max(1, round(share * samples))
    if samples - count < least:
        raise UserError(
            f"holding out {count} of {samples} training samples for the search leaves {samples - count}, but a batch "
            f"needs {least}; train on more samples, or hold out a smaller share than {share:g}"
        )
    return count


class ChosenSamples(Sized):
    """What training splits of single samples share: epochs of whole batches, and dividing by a fixed choice."""

    @abstractmethod
    def classes(self) -> Tensor:
        """Class of each sample, any integer type, shape (n,); all the same where a sample has no one class."""

    @abstractmethod
    def only(self, chosen: Tensor) -> Self:
        """The same split with the samples of these numbers alone, int64."""

    def steps_per_epoch(self, batch_size: int) -> int:
        """Number of batches of an epoch: whole ones only, but at least one."""
        return max(1, len(self) // batch_size)

    def hold_out(self, share: float, batch_size: int = 1) -> tuple[Self, Self]:
        """What is left to train on and what a search is judged on: a fixed, class-balanced share of the samples.

        Raises:
            UserError: ``share`` is not between 0 and 1, or less than a batch is left.
        """
        count = held_out_count(len(self), share, batch_size)
        rest, held = hold_out(self.classes(), count)
        return self.only(rest), self.only(held)
