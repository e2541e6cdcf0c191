"""The oracle's grid as a search space for NNI's strategies."""

from __future__ import annotations

from nni.mutable import Categorical
from nni.nas.nn.pytorch import ModelSpace

from nasbench_grow.growing.nni_space import Budget, Sample
from nasbench_grow.oracle.grid import DEPTHS, WIDTHS, Architecture
from nasbench_grow.oracle.table import KEYS, Table


class GridSpace(ModelSpace):
    """The networks of a table within a budget. A sample is a width and a depth for each stage.

    A sample that is not among them is moved to the nearest one that is, as
    :class:`nasbench_grow.growing.nni_space.GrowableSpace` brings samples to its budget: by steps of the grid, and of
    those as near to the one that costs most.
    """

    def __init__(self, table: Table, budget: float) -> None:
        super().__init__()
        self._known: dict[Architecture, Architecture] = {}
        self.within = sorted(table.within(budget), key=lambda each: -table.query(*each).macs)
        for key, choices in zip(KEYS, (*WIDTHS, *[DEPTHS] * len(WIDTHS)), strict=True):
            self.add_mutable(Categorical(choices, label=key))
        self.add_mutable(Budget(budget, self.nearest))  # after all others: it changes their values

    @staticmethod
    def network(sample: Sample) -> Architecture:
        """The network of a sample."""
        numbers = tuple(sample[key] for key in KEYS)
        return Architecture(numbers[:3], numbers[3:])

    def nearest(self, sample: Sample) -> Sample:
        """The sample, or that of the network within the budget that is nearest to it."""
        found = self._nearest(self.network(sample))
        return dict(zip(KEYS, (*found.widths, *found.depths), strict=True))

    def _nearest(self, wanted: Architecture) -> Architecture:
        if wanted not in self._known:
            self._known[wanted] = min(self.within, key=lambda each: _steps(wanted, each))
        return self._known[wanted]


def _steps(one: Architecture, other: Architecture) -> int:
    """How many steps of the grid lie between two networks."""
    widths = sum(
        abs(choices.index(here) - choices.index(there))
        for choices, here, there in zip(WIDTHS, one.widths, other.widths, strict=True)
    )
    return widths + sum(abs(here - there) for here, there in zip(one.depths, other.depths, strict=True))
