"""The adaptive batch: as a network gets smaller, its batch grows, so that a step takes the memory of a dense one.

The memory is that of the activations kept for the backward pass, the bound what the dense network takes with the
recipe's batch. The learning rate follows the batch in proportion (:class:`nasbench_grow.contract.clock.Clock`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from nasbench_grow.contract.task import Batch
from nasbench_grow.harness.measure import activation_bytes

LARGEST = 16
"""Times the recipe's batch: a seed network of one filter a layer would take more than there are samples."""
MULTIPLE = 8
"""Batches are multiples of this many samples."""


class AdaptiveBatch:
    """The batch size that suits a network.

    Args:
        dense: the network whose memory is the bound.
        example: one input with a batch axis of 1.
        recipe: the batch size that the dense network has, which no network goes below.
    """

    def __init__(self, dense: nn.Module, example: Tensor, recipe: int) -> None:
        self.example, self.recipe = example, recipe
        self.bound = recipe * activation_bytes(dense, example)
        self._last: tuple[nn.Module, int] = dense, recipe

    def size(self, network: nn.Module) -> int:
        """Samples whose activations take as much memory as the bound; measured once for each network object."""
        if network is not self._last[0]:
            samples = int(self.bound / activation_bytes(network, self.example)) // MULTIPLE * MULTIPLE
            self._last = network, max(self.recipe, min(samples, LARGEST * self.recipe))
        return self._last[1]

    def regrouped(
        self, batches: Iterator[Batch], samples: int, in_training: Callable[[], nn.Module]
    ) -> Iterator[Batch]:
        """The samples of ``batches``, so many together, in batches that suit the network in training before each."""
        return regrouped(batches, samples, lambda: self.size(in_training()))


def regrouped(batches: Iterator[Batch], samples: int, size: Callable[[], int]) -> Iterator[Batch]:
    """The same samples in the same order in batches of another size.

    Args:
        batches: inputs and targets.
        samples: how many they hold together.
        size: asked before each batch. The last two share evenly what is left, so that none is much smaller.
    """
    held: list[Batch] = []
    left = samples
    while left > 0:
        wanted = size()
        if wanted < left < 2 * wanted:
            wanted = -(-left // 2)
        wanted = min(wanted, left)
        while sum(len(targets) for _, targets in held) < wanted:
            held.append(next(batches))
        inputs, targets = (torch.cat(parts) for parts in zip(*held, strict=True))
        yield inputs[:wanted], targets[:wanted]
        held = [(inputs[wanted:], targets[wanted:])]
        left -= wanted
