"""Retraining: the architecture that ``grow`` found in the same cell, trained from scratch by the recipe.

Beside ``uniform`` it tells whether the architecture is good, beside ``grow`` whether growing into it costs accuracy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from torch import nn

from nasbench_grow.base.errors import UserError
from nasbench_grow.baselines.grow import Grow
from nasbench_grow.contract.method import Job
from nasbench_grow.contract.training import FixedNetwork
from nasbench_grow.structure.architecture import rebuild


class Retrain(FixedNetwork):
    """Trains what another method arrived at; ``retrain[...]`` takes the architecture of ``grow[...]``."""

    name = "retrain"
    summary = "the architecture that grow found, trained from scratch"
    source = "Liu et al., Rethinking the Value of Network Pruning, arXiv 1810.05270"
    version = Grow.version
    architecture_from = Grow.name

    @classmethod
    def variant(cls, settings: Mapping[str, str]) -> type[Self]:
        """The retraining of a variant of ``grow``."""
        giver = Grow.variant(settings).name
        attributes = {
            "__module__": cls.__module__,
            "name": cls.name + giver.removeprefix(Grow.name),
            "architecture_from": giver,
        }
        return type(cls.__name__, (cls,), attributes)

    def choose(self, job: Job) -> nn.Module:
        """The architecture with fresh weights, cut from the dense network's as those of ``uniform`` and ``random``."""
        if job.architecture is None:
            raise UserError(
                f"{self.name} trains the architecture of a finished cell; give its text as job.architecture"
            )
        return rebuild(job.architecture, job.build())
