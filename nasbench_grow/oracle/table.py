"""The table of the grid's trained networks, and what one asks of it: quality, cost, the best of a budget, regret.

::

    table = Table.load()
    table.query(widths=(8, 24, 64), depths=(1, 2, 3), epoch=4)
    table.best(budget=0.25)

Validation accuracy, MACs and seconds stand for every epoch, test accuracy for the last one alone, as nowhere in this
suite a decision can be made on test. Metrics are means over the seeds that were trained: one for most networks, three
for those on the Pareto front of validation accuracy and MACs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from nasbench_grow.base.errors import UserError
from nasbench_grow.oracle.grid import Architecture, architecture

FILE = Path(__file__).parents[2] / "results" / "oracle" / "resnet20.csv"
WHOLE = FILE.with_stem("resnet20_all_samples")
"""Some of the same networks, trained on all samples."""
KEYS = [f"{axis}_{stage}" for axis in ("width", "depth") for stage in (1, 2, 3)]
COLUMNS = [*KEYS, "seed", "epoch", "val", "test", "macs", "params", "train_macs", "seconds"]


@dataclass(frozen=True)
class Entry:
    """What is known of one network after some epochs of its training."""

    val: float
    """Validation accuracy, 0 to 1."""
    test: float
    """Test accuracy, 0 to 1; NaN before the last epoch."""
    macs: int
    """Forward MACs of one image."""
    params: int
    train_macs: int
    """MACs of the training so far."""
    seconds: float
    """Wall-clock time of the training so far, evaluations left out."""
    seeds: int
    """Trainings that the metrics are means of."""


class Table:
    """The grid as far as it is trained.

    Args:
        frame: a row for each network, seed and epoch, with the columns :data:`COLUMNS`.
    """

    def __init__(self, frame: pd.DataFrame) -> None:
        self.frame = frame
        seeds = frame.groupby([*KEYS, "epoch"])["seed"].nunique().rename("seeds")
        self._means = frame.groupby([*KEYS, "epoch"])[COLUMNS[8:]].mean().join(seeds)

    @classmethod
    def load(cls, path: str | Path = FILE) -> Table:
        """The table of a file; without a name, the one that comes with the suite.

        Raises:
            UserError: no such file, or it is no table.
        """
        try:
            frame = pd.read_csv(path)
        except (OSError, ValueError) as error:
            raise UserError(f"no table can be read of {str(path)!r} ({error}); write one with `make oracle`") from error
        missing = sorted(set(COLUMNS) - set(frame.columns))
        if missing:
            raise UserError(f"{str(path)!r} is no table: it lacks {missing[0]!r}; give one that `make oracle` wrote")
        return cls(frame)

    @cached_property
    def epochs(self) -> int:
        """Epochs of a whole training."""
        return int(self.frame["epoch"].max())

    @property
    def architectures(self) -> list[Architecture]:
        """The networks of the table."""
        return list(self._entries)

    @cached_property
    def dense_macs(self) -> int:
        """MACs of the widest and deepest network of the grid, which is ResNet-20 itself."""
        return int(self.frame["macs"].max())

    def query(self, widths: Sequence[int], depths: Sequence[int], epoch: int | None = None) -> Entry:
        """What is known of a network after ``epoch`` epochs (None: all).

        Args:
            widths: filters of each of the three stages.
            depths: residual blocks of each.
            epoch: from 1.

        Raises:
            UserError: the grid has no such network or epoch, or it is not trained yet.
        """
        asked = architecture(widths, depths)
        epoch = self.epochs if epoch is None else epoch
        if epoch not in range(1, self.epochs + 1):
            raise UserError(f"epoch {epoch} is out of range: give one from 1 to {self.epochs}, or none for the last")
        if asked not in self._entries:
            raise UserError(f"the network of {asked} is not in the table yet; `make oracle` goes on with it")
        return self._entries[asked][epoch - 1]

    @cached_property
    def _entries(self) -> dict[Architecture, list[Entry]]:
        """The entries of every network, epoch by epoch."""
        found: dict[Architecture, list[Entry]] = {}
        for row in self._means.reset_index().sort_values("epoch").to_dict("records"):
            named = Architecture(*(tuple(int(row[key]) for key in keys) for keys in (KEYS[:3], KEYS[3:])))
            entry = Entry(
                val=row["val"],
                test=row["test"],
                macs=int(row["macs"]),
                params=int(row["params"]),
                train_macs=int(row["train_macs"]),
                seconds=row["seconds"],
                seeds=int(row["seeds"]),
            )
            found.setdefault(named, []).append(entry)
        return found

    def within(self, budget: float) -> list[Architecture]:
        """The networks that cost at most ``budget``, a share of ResNet-20's MACs.

        Raises:
            UserError: there is none.
        """
        found = [each for each in self.architectures if self._entries[each][-1].macs <= budget * self.dense_macs]
        if not found:
            least = min(entries[-1].macs for entries in self._entries.values()) / self.dense_macs
            raise UserError(f"no network of the table costs at most {budget:g} of ResNet-20; give {least:.3f} or more")
        return found

    def best(self, budget: float) -> Architecture:
        """The network with the highest validation accuracy of those that cost at most ``budget``."""
        return max(self.within(budget), key=lambda each: self.query(*each).val)

    def regret(self, found: Architecture, budget: float) -> float:
        """By how much a network's validation accuracy is below that of the best one of the ``budget``, 0 to 1."""
        return self.query(*self.best(budget)).val - self.query(*found).val

    def front(self) -> list[Architecture]:
        """The networks than which none is as good in validation for no more MACs, the cheapest first."""
        best, found = -math.inf, []
        for each in sorted(self.architectures, key=lambda each: (self.query(*each).macs, -self.query(*each).val)):
            if self.query(*each).val > best:
                best = self.query(*each).val
                found.append(each)
        return found
