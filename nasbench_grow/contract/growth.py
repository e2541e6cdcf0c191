"""What methods have in common that grow the widths of a network on a schedule while it trains.

All of them begin with a narrow network of all layers and end with the network of ``uniform``: the same share of filters
in every channel group, at the budget. So the difference to that control is the growing alone, and the difference
between two of them is how newborn filters start.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from nasbench_grow.base.errors import UserError
from nasbench_grow.contract.callback import Callback
from nasbench_grow.contract.job import Job
from nasbench_grow.contract.method import Method, Run
from nasbench_grow.contract.settings import check_share
from nasbench_grow.structure.elastic import ElasticModel
from nasbench_grow.structure.selection import select, uniform_keys
from nasbench_grow.structure.space import Space


@dataclass(frozen=True)
class GrowthSettings:
    """From which network, when and in how many steps it grows; by default as ``grow`` does."""

    seed_share: float = 0.25
    """Width of the first network, as a share of the last one's in every channel group; at least one filter."""
    steps: int = 10
    """Growth steps, evenly over the time of growth; each adds the same number of filters."""
    begin: float = 0.0
    """Share of the run before the network grows."""
    growth: float = 0.05
    """Share of the run over which it grows; the last step is at the end of it."""

    def __post_init__(self) -> None:
        """Refuses a setting outside its range with a UserError."""
        check_share(self, "seed_share", "growth")
        if self.steps < 1:
            raise UserError(f"steps {self.steps} is out of range: give 1 or more")
        if not 0 <= self.begin < 1:
            raise UserError(f"begin {self.begin:g} is out of range: it is a share, 0 <= begin < 1")
        if self.begin + self.growth >= 1:
            raise UserError(
                f"begin {self.begin:g} and growth {self.growth:g} leave nothing of the run to train the last network; "
                "give two shares that add up to less than 1"
            )

    def stages(self) -> list[tuple[float, float]]:
        """When each network begins to train and how wide it is, from the first one (0, ``seed_share``) to the last one
        (..., 1): shares of the run, rising, and of the last network's widths."""
        done = [step / self.steps for step in range(self.steps + 1)]
        widths = [self.seed_share + (1 - self.seed_share) * share for share in done]
        return [(0.0, widths[0])] + [
            (self.begin + self.growth * share, width) for share, width in zip(done[1:], widths[1:], strict=True)
        ]


class Widening(Callback):
    """Makes a network wider, stage by stage; a subclass says how newborn filters start, and what else they need.

    Which stage it is follows from the step alone, so there is nothing here to resume.

    Args:
        job: the cell.
        model: to be grown; becomes the first stage's network.
        settings: whose :meth:`GrowthSettings.stages` are gone through.
    """

    def __init__(self, job: Job, model: ElasticModel, settings: GrowthSettings) -> None:
        self.job, self.settings = job, settings
        self.begins = [begin for begin, _ in settings.stages()]
        last = target(job, model.space)
        self.networks = [self.structures(model.space, last, share) for _, share in settings.stages()]
        """The structures of each stage, shape (structures,), bool."""
        model.resize(self.networks[0])

    def structures(self, space: Space, last: Tensor, share: float) -> Tensor:
        """The structures of a stage: all layers of the last network, and of each group's filters the first ones.

        Args:
            space: the configuration space.
            last: structures of the last network, shape (structures,).
            share: of its widths.
        """
        present = last.clone()
        for group in space.groups:
            filters = torch.nonzero(last[group.structures]).flatten()
            present[group.start + filters[max(1, round(share * len(filters))) :]] = False
        return present

    def stage(self, step: int, steps: int) -> int:
        """Number of the stage, from 0, that ``step`` of ``steps`` trains; the last one trains for a step at least."""
        return sum(step >= min(round(begin * steps), steps - 1) for begin in self.begins[1:])

    def before_step(self, model: ElasticModel, step: int, steps: int) -> None:
        """The growth steps."""
        model.resize(self.networks[self.stage(step, steps)], self.start)

    def start(self, model: ElasticModel, before: Tensor, after: Tensor) -> None:
        """Sets the entries of newborn filters, and what else must change with them, in ``model.dense``.

        Here nothing: they have the initial weights of the dense network. ``model.network`` is still the network of
        ``before``, with the very weights that ``model.dense`` has: run it on what ``job.calibrate`` gives, which is
        billed, if gradients are needed.

        Args:
            model: in the middle of :meth:`~nasbench_grow.contract.ElasticModel.resize`.
            before, after: its structures, shape (structures,), bool.
        """


def target(job: Job, space: Space) -> Tensor:
    """The structures of ``uniform`` at the job's budget, shape (structures,), bool."""
    return select(space, uniform_keys(space), job.budget * space.macs(space.full()), job.granularity)


class Growth(Method):
    """One training in which the network becomes wider; a subclass names the callback that does it."""

    family: ClassVar[Any] = "growing"
    Settings: ClassVar[type[Any]] = GrowthSettings
    Callback: ClassVar[type[Widening]] = Widening
    """Makes the network wider: takes job, model and settings."""

    def run(self, job: Job) -> Run:
        """One training, through all of the recipe's schedule."""
        model = job.model()
        yield from job.fit(model, self.Callback(job, model, self.settings))
        return model.network
