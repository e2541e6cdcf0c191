"""The questions about growing that ``docs/ablations.md`` answers, each with the cells that answer it.

Changing a question is editing its entry here, running ``make ablations`` and giving its name a section in the document.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nasbench_grow.harness.grids import Grid, Profile


@dataclass(frozen=True)
class Question:
    """What is to be found out, by comparing the methods (or variants) of some grids with a reference."""

    name: str
    """Names the profile ``ablation-<name>`` and the tables and figures."""
    title: str
    reference: str
    """The method that the others are compared with, seed by seed."""
    grids: tuple[Grid, ...]
    """Methods are named as in records; one that ignores the budget stands in a grid of its own, at budget 1."""
    form: Literal["variants", "answer", "stability"] = "variants"
    """How it is reported: variants of a method, the three comparisons of growing with the rest, or the spread."""

    @property
    def profile(self) -> Profile:
        """The cells, as ``nasbench-grow reproduce`` takes them."""
        return Profile(f"ablation-{self.name}", self.title, self.grids)


def _proxy(*methods: str, budgets: tuple[float, ...] = (0.25, 0.5, 0.75), seeds: tuple[int, ...] = (0, 1, 2)) -> Grid:
    """Methods on the proxy, where one run takes a minute or two."""
    return Grid(("cifar10_16px",), ("cifar_resnet20",), budgets, seeds, 4, 10_000, methods)


_TWO_BUDGETS = (0.25, 0.5)
_SIX_SEEDS = tuple(range(6))
_TWENTY_SEEDS = tuple(range(20))

QUESTIONS = (
    Question(
        "answer",
        "does growing win: the architecture, the training, the price",
        reference="uniform",
        grids=(
            _proxy("dense", budgets=(1.0,), seeds=_SIX_SEEDS),
            _proxy("uniform", "random", "grow", "retrain", seeds=_SIX_SEEDS),
        ),
        form="answer",
    ),
    Question(
        "layers",
        "how reluctantly a layer is taken away",
        reference="grow",
        grids=(_proxy("grow", "grow[layer_logit=0]", "grow[layer_logit=-2]", budgets=_TWO_BUDGETS),),
    ),
    Question(
        "schedule",
        "how fast the network grows to its budget",
        reference="grow",
        grids=(_proxy("grow", "grow[growth=0.05]", "grow[growth=0.2]", "grow[growth=0.4]", budgets=_TWO_BUDGETS),),
    ),
    Question(
        "newborn",
        "how newborn filters start",
        reference="grow",
        grids=(_proxy("grow", "grow[newborn=fresh]", budgets=_TWO_BUDGETS),),
    ),
    Question(
        "evidence",
        "how much the measured worth of a filter counts",
        reference="grow",
        grids=(_proxy("grow", "grow[selectivity=0]", "grow[selectivity=1]", budgets=_TWO_BUDGETS),),
    ),
    Question(
        "rounding",
        "what rounding widths to multiples of 8 costs",
        reference="grow",
        grids=(_proxy("grow", "grow[granularity=1]", budgets=_TWO_BUDGETS),),
    ),
    Question(
        "stability",
        "twenty seeds: failures, collapses, missed budgets, spread",
        reference="dense",
        grids=(
            _proxy("dense", budgets=(1.0,), seeds=_TWENTY_SEEDS),
            _proxy("grow", budgets=(0.5,), seeds=_TWENTY_SEEDS),
        ),
        form="stability",
    ),
)

PROFILES = (
    *(question.profile for question in QUESTIONS),
    Profile(
        "ablations",
        "all questions of docs/ablations.md (cells that two of them share are run once)",
        tuple(grid for question in QUESTIONS for grid in question.grids),
    ),
)
