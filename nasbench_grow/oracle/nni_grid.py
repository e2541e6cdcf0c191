"""The oracle's grid as a search space for NNI's strategies."""

from __future__ import annotations

from typing import Any

from nni.mutable import Categorical, SampleValidationError
from nni.nas.nn.pytorch import ModelSpace

from nasbench_grow.oracle.grid import DEPTHS, WIDTHS, Architecture
from nasbench_grow.oracle.table import KEYS, Table

Sample = dict[str, Any]


class GridSpace(ModelSpace):
    """The networks of a table within a budget. A sample is a width and a depth for each stage.

    A sample that is not among them is moved to the nearest one that is, as
    :class:`nasbench_grow.growing.nni_space.GrowableSpace` brings samples to its budget: by steps of the grid, and of
    those as near to the one that costs most.
    """

    def __init__(self, table: Table, budget: float) -> None:
        super().__init__()
        self.within = sorted(table.within(budget), key=lambda each: -table.query(*each).macs)
        choices = [*map(list, WIDTHS), *[list(DEPTHS)] * len(WIDTHS)]
        for key, values in zip(KEYS[:-1], choices[:-1], strict=True):
            self.add_mutable(Categorical(values, label=key))
        self.add_mutable(_Last(choices[-1], KEYS[-1], self))

    @staticmethod
    def network(sample: Sample) -> Architecture:
        """The network of a sample."""
        numbers = tuple(sample[key] for key in KEYS)
        return Architecture(numbers[:3], numbers[3:])

    def nearest(self, sample: Sample) -> Sample:
        """The sample, or that of the network within the budget that is nearest to it."""
        wanted = self.network(sample)
        found = min(self.within, key=lambda each: _steps(wanted, each))
        return dict(zip(KEYS, (*found.widths, *found.depths), strict=True))


def _steps(one: Architecture, other: Architecture) -> int:
    """How many steps of the grid lie between two networks."""
    widths = sum(
        abs(choices.index(here) - choices.index(there))
        for choices, here, there in zip(WIDTHS, one.widths, other.widths, strict=True)
    )
    return widths + sum(abs(here - there) for here, there in zip(one.depths, other.depths, strict=True))


class _Last(Categorical):
    """The last dimension, which moves the sample when it is validated: NNI 3.0 records what it has validated."""

    def __init__(self, values: list[int], label: str, space: GridSpace) -> None:
        super().__init__(values, label=label)
        self.nearest = space.nearest

    def check_contains(self, sample: Sample) -> SampleValidationError | None:
        """What is wrong with the sample's value, if anything; moves the sample."""
        problem = super().check_contains(sample)
        if problem is None:
            sample.update(self.nearest(sample))
        return problem
