"""Fixed, class-balanced choices of samples: the same on every machine and with every version of PyTorch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

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
