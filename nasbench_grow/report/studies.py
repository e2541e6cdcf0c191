"""The recorded cells that a question asks for, protocol by protocol."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

import pandas as pd

from nasbench_grow.harness.ablations import Question
from nasbench_grow.report.pairs import differences
from nasbench_grow.report.protocol import PROTOCOL, Block


@dataclass(frozen=True)
class Study:
    """A question's cells under one protocol, and everything else that was run under it."""

    question: Question
    own: Block
    """The recorded cells that the question asks for."""
    everything: Block
    """All recorded cells of the protocol: other questions' as well."""

    @cached_property
    def methods(self) -> list[str]:
        """The methods that have a cell, in the question's order."""
        named = dict.fromkeys(name for grid in self.question.grids for name in grid.methods or ())
        return [name for name in named if name in self.own.methods]

    @cached_property
    def budgets(self) -> list[float]:
        """The budgets below that of the dense network, smallest first."""
        return sorted(self.own.budgets)

    @cached_property
    def rows(self) -> list[tuple[str, float]]:
        """Every method and budget that has a cell: the smallest budget first, methods in the question's order."""
        present = set(zip(self.own.cells["method"], self.own.cells["budget"], strict=True))
        order = product(sorted(set(self.own.cells["budget"])), self.methods)
        return [(method, float(budget)) for budget, method in order if (method, budget) in present]

    def differences(self, method: str, other: str, budget: float) -> pd.Series[float]:
        """Test metric of the question's cells of ``method`` minus that of ``other``, by seed; empty for itself."""
        if method == other:
            return pd.Series(dtype=float)
        by_seed = differences(self.everything, method, other, budget)
        return by_seed[by_seed.index.isin(self.own.of(method, budget)["seed"])]


def studies(question: Question, found: list[Block]) -> list[Study]:
    """The protocols of a question that have a record, in its order."""
    blocks = {tuple(getattr(block, name) for name in PROTOCOL): block for block in found}
    result = []
    for protocol, asked in _asked(question).items():
        block = blocks.get(protocol)
        if block is not None:
            keys = zip(block.cells["method"], block.cells["budget"], block.cells["seed"], strict=True)
            own = block.cells[[key in asked for key in keys]]
            if not own.empty:
                result.append(Study(question, replace(block, cells=own), block))
    return result


def asked_cells(question: Question) -> int:
    """How many cells a question asks for."""
    return sum(len(cells) for cells in _asked(question).values())


def _asked(question: Question) -> dict[tuple[object, ...], set[tuple[str, float, int]]]:
    """The method, budget and seed of every cell of a question, by protocol."""
    asked: dict[tuple[object, ...], set[tuple[str, float, int]]] = {}
    for grid in question.grids:
        for task, backbone in product(grid.tasks, grid.backbones):
            cells = asked.setdefault((task, backbone, grid.setup, grid.epochs, grid.train_samples), set())
            cells.update(product(grid.methods or (), grid.budgets, grid.seeds))
    return asked
