"""What methods have in common that prune a trained network and train on."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from nasbench_grow.base.errors import UserError
from nasbench_grow.contract.callback import Callback
from nasbench_grow.contract.job import Job
from nasbench_grow.contract.method import Method, Run
from nasbench_grow.contract.settings import check_choices, check_positive, check_share
from nasbench_grow.contract.stage import Stage
from nasbench_grow.structure.elastic import ElasticModel
from nasbench_grow.structure.selection import select

Start = Literal["scratch", "trained"]


@dataclass(frozen=True)
class PruningSettings:
    """How the network trains before and after it is pruned."""

    start: Start = "scratch"
    """``scratch``: the dense network trains for ``dense_share`` of the epochs, so that the whole run has as many as any
    other method's. ``trained``: the finished network of ``dense`` takes the place of that part, and is billed."""
    dense_share: float = 0.5
    """Share of the epochs before pruning. The recipe's schedule goes on from there, whichever the start."""
    tuning_rate: float = 1.0
    """Factor on the recipe's learning rate from then on; papers often fine-tune at a tenth or hundredth of the first
    rate. 1: the schedule goes on or, after a full training, is rewound to there (Renda et al., arXiv 2003.02389)."""

    def __post_init__(self) -> None:
        """Refuses a setting outside its range with a UserError."""
        check_choices(self, start=Start)
        check_share(self, "dense_share")
        check_positive(self, "tuning_rate")


class Pruning(Method):
    """A method that begins with a trained dense network."""

    family: ClassVar[Literal["control", "pruning"]] = "pruning"
    Settings: ClassVar[type[Any]] = PruningSettings
    takes = "network"

    @property
    def source(self) -> str | None:
        """The dense network's cell, where the start is a trained one."""
        return "dense" if self.settings.start == "trained" else None

    def dense(self, job: Job) -> Generator[Stage, None, ElasticModel]:
        """The dense network, trained."""
        if self.settings.start == "trained":
            return job.model(job.source.network())
        model = job.model()
        epochs = self.settings.dense_share * job.epochs
        yield from job.fit(model, epochs=int(epochs) or epochs)  # whole ones, if there are any
        return model

    def tune(
        self, job: Job, model: ElasticModel, callback: Callback | None = None, *, since: float, until: float = 1.0
    ) -> Generator[Stage, None, None]:
        """Trains on through a part of the schedule, given in shares of it; the callback may prune on the way."""
        epochs, rate = (until - since) * job.epochs, self.settings.tuning_rate
        if self.settings.start == "trained":
            yield from job.fit(model, callback, epochs=epochs, span=(since, until), rate=rate)
        else:
            yield from job.fit(model, callback, epochs=None if until == 1 else epochs, rate=rate)


@dataclass(frozen=True)
class RoundsSettings(PruningSettings):
    """In how many rounds the network is pruned."""

    rounds: int = 1
    """In how many steps, of equal MACs, the network is pruned."""
    pruning_share: float = 0.25
    """Share of the epochs over which the rounds are spread, where there are several."""

    def __post_init__(self) -> None:
        """Refuses a setting outside its range with a UserError."""
        super().__post_init__()
        check_share(self, "pruning_share")
        if self.rounds < 1:
            raise UserError(f"rounds {self.rounds} is out of range: give 1 or more")
        if self.rounds > 1:
            check_within_run(self, "dense_share", "pruning_share")


class PruneAndTune(Pruning):
    """Train, prune, go on training; a subclass says how it prunes."""

    Settings = RoundsSettings

    @abstractmethod
    def prune(self, job: Job, model: ElasticModel, limit: float) -> None:
        """Removes filters of the trained network until it costs ``limit`` MACs at most (see :func:`cut`)."""

    def run(self, job: Job) -> Run:
        """Dense training, or what another cell trained; then pruning and training in turn."""
        settings = self.settings
        model = yield from self.dense(job)
        done = settings.dense_share
        for number in range(1, settings.rounds + 1):
            self.prune(job, model, (1 + (job.budget - 1) * number / settings.rounds) * job.dense_macs)
            until = done + settings.pruning_share / settings.rounds if number < settings.rounds else 1.0
            yield from self.tune(job, model, since=done, until=until)
            done = until
        return model.network


def cut(model: ElasticModel, keys: Tensor, limit: float, granularity: int) -> None:
    """Removes what of the network has the lowest keys until it costs ``limit`` MACs at most.

    Args:
        model: what is cut.
        keys: shape (structures,), as :func:`nasbench_grow.select` takes them: infinite for layers that stay.
        limit: MACs of the network for one input.
        granularity: of the widths.
    """
    there = keys.cpu().masked_fill(~model.structures, -float("inf"))
    model.resize(select(model.space, there, limit, granularity))


def check_within_run(settings: object, first: str, then: str) -> None:
    """Raise UserError unless these two settings, shares of the run one after the other, fit into it."""
    one, other = getattr(settings, first), getattr(settings, then)
    if one + other > 1 + 1e-9:
        raise UserError(
            f"{first} {one:g} and {then} {other:g} are more than the run; give two shares that add up to 1 at most"
        )
