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


def _proxy(*methods: str, budgets: tuple[float, ...] = (0.25, 0.5, 0.75), seeds: int = 3, epochs: int = 4) -> Grid:
    """Methods on the proxy, where a run takes a minute."""
    return Grid(("cifar10_16px",), ("cifar_resnet20",), budgets, tuple(range(seeds)), epochs, 8_000, methods)


def _variants(*settings: str) -> Grid:
    """``grow`` as it is and with each of the settings changed, at two budgets."""
    return _proxy("grow", *(f"grow[{setting}]" for setting in settings), budgets=(0.25, 0.5))


QUESTIONS = (
    Question(
        "answer",
        "does growing win: the architecture, the training, the price",
        reference="uniform",
        grids=(
            _proxy("uniform", "random", "grow", "retrain", seeds=6),
            _proxy("dense", budgets=(1.0,), seeds=6),
        ),
        form="answer",
    ),
    Question(
        "layers",
        "width before depth",
        reference="grow",
        grids=(_variants("layer_logit=-4", "layer_logit=0", "layer_logit=20"),),
    ),
    Question(
        "resolution",
        "does the ranking hold at full resolution and on all training images",
        reference="uniform",
        grids=(
            Grid(
                ("cifar10",),
                ("cifar_resnet20",),
                (0.25,),
                (0, 1, 2),
                2,
                None,
                ("uniform", "grow", "grow[layer_logit=-4]"),
            ),
        ),
    ),
    Question("newborn", "how a newborn structure starts", reference="grow", grids=(_variants("newborn=quiet"),)),
    Question(
        "schedule",
        "when to grow",
        reference="grow",
        grids=(_variants("growth=0.3,settle=0.4", "settle=0.5"),),
    ),
    Question(
        "evidence",
        "how much the measured worth of a filter counts",
        reference="grow",
        grids=(_variants("selectivity=0", "selectivity=1"),),
    ),
    Question(
        "sampling",
        "how structures are sampled",
        reference="grow",
        grids=(_variants("noise=independent"),),
    ),
    Question(
        "rounding",
        "what rounding widths to multiples of 8, or of 16, costs",
        reference="grow",
        grids=(_variants("granularity=1", "granularity=16"),),
    ),
    Question(
        "length",
        "does it last: four times as many epochs",
        reference="grow",
        grids=(_proxy("uniform", "grow", budgets=(0.25,), epochs=16),),
    ),
    Question(
        "networks",
        "does it carry over: other networks",
        reference="grow",
        grids=(
            Grid(
                ("cifar10_16px",),
                ("cifar_vgg16_bn", "cifar_mobilenetv2"),
                (0.25,),
                (0, 1, 2),
                4,
                2_560,
                ("uniform", "grow"),
            ),
        ),
    ),
    Question(
        "stability",
        "twenty seeds: failures, collapses, missed budgets, spread",
        reference="dense",
        grids=(
            _proxy("dense", budgets=(1.0,), seeds=20),
            _proxy("uniform", "grow", budgets=(0.25,), seeds=20),
            *(
                Grid(("cifar10_16px",), ("cifar_resnet20",), (budget,), tuple(range(20)), 4, 1_280, methods)
                for budget, methods in ((1.0, ("dense",)), (0.25, ("uniform", "grow")))
            ),
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
