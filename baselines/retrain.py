"""Retraining: the architecture that another method found in the same cell, trained from scratch by the recipe.

Beside ``uniform`` it tells whether the architecture is good, beside the method itself whether arriving at it while
training costs accuracy. What finding it took is billed as well.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from nasbench_grow import rebuild
from nasbench_grow.contract import FixedNetwork, Job, MethodName, check_types

GROW = MethodName("grow")


@dataclass(frozen=True)
class RetrainSettings:
    """Whose architecture is trained."""

    of: MethodName = GROW
    """The method that found it, in the cell that is the same otherwise."""

    def __post_init__(self) -> None:
        """Refuses a setting of another type with a UserError."""
        check_types(self)


class Retrain(FixedNetwork):
    """Trains what another method arrived at; ``retrain[of=grow[growth=0.3]]`` takes the architecture of a variant."""

    name = "retrain"
    summary = "the architecture that grow (or another method) found, trained from scratch"
    family = "control"
    citation = "Liu et al., Rethinking the Value of Network Pruning, arXiv 1810.05270"
    Settings = RetrainSettings
    takes = "architecture"

    @property
    def source(self) -> str:
        """The cell whose architecture is trained."""
        return str(self.settings.of)

    def choose(self, job: Job) -> nn.Module:
        """The architecture with fresh weights, cut from the dense network's as those of ``uniform`` and ``random``."""
        return rebuild(job.source.architecture, job.build())
