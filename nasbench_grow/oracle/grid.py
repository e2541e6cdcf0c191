"""What is tabulated: ResNet-20s of three widths and three depths a stage, and how each of them is trained."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

from nasbench_grow.base.errors import UserError
from nasbench_grow.harness.cell import Cell, make_cell

WIDTHS = ((8, 12, 16), (16, 24, 32), (32, 48, 64))
"""Of each stage the filters that all of its channel groups may have."""
DEPTHS = (1, 2, 3)
"""Residual blocks that each stage may have."""
LASTING = (0, 1, 1)
"""Blocks of each stage that no network can do without, because they change the resolution."""

EPOCHS = 12
TRAIN_SAMPLES = 15_000


class Architecture(NamedTuple):
    """A network of the grid: filters and residual blocks of each stage."""

    widths: tuple[int, ...]
    depths: tuple[int, ...]

    def __str__(self) -> str:
        return f"widths {'-'.join(map(str, self.widths))}, depths {'-'.join(map(str, self.depths))}"

    @property
    def method(self) -> str:
        """The method that trains it."""
        layers = "-".join(str(depth - lasting) for depth, lasting in zip(self.depths, LASTING, strict=True))
        return f"by_stage[layers={layers},widths={'-'.join(map(str, self.widths))}]"

    def cell(self, seed: int) -> Cell:
        """The cell in which it is trained."""
        return make_cell(
            method=self.method,
            task="cifar10_16px",
            backbone="cifar_resnet20",
            budget=1.0,
            seed=seed,
            epochs=EPOCHS,
            train_samples=TRAIN_SAMPLES,
            setup="cpu-bf16",
        )


GRID = tuple(
    Architecture(widths, depths) for widths, depths in product(product(*WIDTHS), product(DEPTHS, repeat=len(WIDTHS)))
)
"""All of them: 27 times 27."""
_KNOWN = frozenset(GRID)


def architecture(widths: Sequence[int], depths: Sequence[int]) -> Architecture:
    """The network of the grid with these widths and depths.

    Raises:
        UserError: there is none.
    """
    found = Architecture(tuple(widths), tuple(depths))
    if found not in _KNOWN:
        choices = "; ".join(f"stage {stage}: {', '.join(map(str, each))}" for stage, each in enumerate(WIDTHS, 1))
        raise UserError(
            f"the table has no network of {found}; give a width for each stage ({choices}) and a depth for each, "
            f"from {DEPTHS[0]} to {DEPTHS[-1]}"
        )
    return found
