"""What the ways of growing have in common of their hyper-parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from nasbench_grow.base.errors import UserError
from nasbench_grow.contract import ElasticModel, Job, check_choices
from nasbench_grow.structure.space import Structures

Newborn = Literal["initial", "zero", "quiet"]
Cost = Literal["macs", "time"]

CostOf = Callable[[Tensor], float]
"""The cost of structures, shape (structures,): their forward MACs, or the seconds of a training step."""


@dataclass(frozen=True)
class GrowingSettings:
    """Of every way of growing; a subclass has a default of its own for ``periods``."""

    structures: Structures = "both"
    """What is grown: filters and layers, or one of them inside a network that has all of the other."""
    periods: int = 80
    """How often the network is restructured in a run (T), at most once a step."""

    def __post_init__(self) -> None:
        """Refuses a setting outside its range with a UserError."""
        check_choices(self, structures=Structures)
        if self.periods < 1:
            raise UserError(f"periods {self.periods} is out of range: give 1 or more")


@dataclass(frozen=True)
class SolvedSettings(GrowingSettings):
    """Of growing whose price is solved for, so that the cost is what the schedule says."""

    newborn: Newborn = "initial"
    """Whether a newborn structure acts at once, by its initial weights (``initial``), or is joined by zeros, so that
    growing leaves the network's function as it was (``zero``), or only where a normalisation would make it act at full
    strength (``quiet``)."""
    cost: Cost = "macs"
    """What the budget is a share of: the dense network's MACs, or the time of its training step on this device."""
    granularity: int | None = None
    """Widths are rounded to multiples of this; None: of what the set-up says."""

    def __post_init__(self) -> None:
        """Refuses a setting outside its range with a UserError."""
        super().__post_init__()
        check_choices(self, newborn=Newborn, cost=Cost)
        if self.granularity is not None and self.granularity < 1:
            raise UserError(f"granularity {self.granularity} is out of range: give 1 or more, or none")

    def cost_of(self, job: Job, model: ElasticModel) -> CostOf | None:
        """What the budget of a job is counted in; None: MACs.

        Raises:
            UserError: seconds, where nothing measures them.
        """
        if self.cost == "macs":
            return None
        if job.price is None:
            raise UserError("cost=time needs step times, which this run cannot measure; use cost=macs")
        return job.price(model.space, model.dense)
