"""Where a training run stands in its schedule, whatever the size of its batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor


class Clock:
    """Counts the steps of a schedule: those of the recipe's batch size, of which a larger batch is worth several.

    Attributes:
        start, end: steps done before the batch in hand, and with it.
        scale: size of the batch in hand over the recipe's. The learning rate is multiplied by it: the linear scaling
            rule (Goyal et al., arXiv 1706.02677, section 2.1).
    """

    def __init__(self) -> None:
        self.move_to(0)

    def move_to(self, step: int) -> None:
        """So many steps are done and no batch is in hand."""
        self.start = self.end = step
        self.scale = 1.0

    def draw(self, steps: int = 1, scale: float = 1.0) -> None:
        """A batch is handed over that is worth so many steps."""
        self.start, self.end, self.scale = self.end, self.end + steps, scale

    def pace(
        self, batches: Iterable[tuple[Tensor, Tensor]], steps: int, samples: int, batch_size: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of any size, worth together as many steps as there are batches of the recipe's size in them.

        Args:
            batches: (inputs, targets) pairs.
            steps, samples: what they are worth together, and how many samples they hold.
            batch_size: the recipe's.
        """
        seen = 0
        for inputs, targets in batches:
            before, seen = seen, seen + len(inputs)
            self.draw(steps * seen // samples - steps * before // samples, len(inputs) / batch_size)
            yield inputs, targets
