"""What methods have in common that train a dense network, prune it, and train what is left."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from nasbench_grow.base.errors import UserError
from nasbench_grow.contract.callback import Callback
from nasbench_grow.contract.job import Job, Stage
from nasbench_grow.contract.method import Method, Run
from nasbench_grow.contract.settings import check_choices, check_positive, check_share
from nasbench_grow.structure.elastic import ElasticModel
from nasbench_grow.structure.selection import select

Start = Literal["scratch", "trained"]


@dataclass(frozen=True)
class PruningSettings:
    """When the network is pruned, and how it trains before and after."""

    start: Start = "scratch"
    """``scratch``: the dense network trains for ``dense_share`` of the epochs, so that the whole run has as many as any
    other method's. ``trained``: the finished network of ``dense`` takes the place of that part, and is billed."""
    dense_share: float = 0.5
    """Share of the epochs before pruning. The recipe's schedule goes on from there, whichever the start."""
    rounds: int = 1
    """In how many steps, of equal MACs, the network is pruned."""
    pruning_share: float = 0.25
    """Share of the epochs over which the rounds are spread, where there are several."""
    tuning_rate: float = 1.0
    """Factor on the recipe's learning rate once the network is pruned."""

    def __post_init__(self) -> None:
        """Refuses a setting outside its range with a UserError."""
        check_choices(self, start=Start)
        check_share(self, "dense_share", "pruning_share")
        check_positive(self, "tuning_rate")
        if self.rounds < 1:
            raise UserError(f"rounds {self.rounds} is out of range: give 1 or more")
        if self.rounds > 1 and self.dense_share + self.pruning_share > 1:
            raise UserError(
                f"dense_share {self.dense_share:g} and pruning_share {self.pruning_share:g} are more than the run; "
                "give two shares that add up to 1 at most"
            )


class Pruning(Method):
    """Train, prune, go on training; a subclass says which filters are worth keeping."""

    family = "pruning"
    Settings = PruningSettings
    takes = "network"

    @property
    def source(self) -> str | None:
        """The dense network's cell, where the start is a trained one."""
        return "dense" if self.settings.start == "trained" else None

    def keys(self, job: Job, model: ElasticModel) -> Tensor:
        """What the structures of the trained network are worth, shape (structures,), as
        :func:`nasbench_grow.select` takes it: infinite for layers that stay. A subclass with a :meth:`run` of its own,
        which prunes as it trains, has no use for it."""
        raise NotImplementedError(f"{self.name} says neither what structures are worth nor how it prunes")

    def prune(self, job: Job, model: ElasticModel, limit: float) -> None:
        """Removes what is worth least until the network costs ``limit`` MACs at most."""
        keys = self.keys(job, model).masked_fill(~model.structures, -float("inf"))
        model.resize(select(model.space, keys, limit, job.granularity))

    def run(self, job: Job) -> Run:
        """Dense training, or what another cell trained; then pruning and training in turn."""
        settings = self.settings
        model = yield from self.dense(job)
        done = settings.dense_share
        for number in range(1, settings.rounds + 1):
            self.prune(job, model, (1 + (job.budget - 1) * number / settings.rounds) * job.dense_macs)
            until = done + settings.pruning_share / settings.rounds if number < settings.rounds else 1.0
            yield from self.tune(job, model, done, until)
            done = until
        return model.network

    def dense(self, job: Job) -> Generator[Stage, None, ElasticModel]:
        """The dense network, trained."""
        if self.settings.start == "trained":
            return job.model(job.source.network())
        model = job.model()
        epochs = self.settings.dense_share * job.epochs
        yield from job.fit(model, epochs=int(epochs) or epochs)  # whole ones, if there are any
        return model

    def tune(
        self, job: Job, model: ElasticModel, since: float, until: float, callback: Callback | None = None
    ) -> Generator[Stage, None, None]:
        """Trains the pruned network, or prunes by a callback as it trains, through a part of the schedule, given in
        shares of it."""
        epochs = (until - since) * job.epochs
        rate = self.settings.tuning_rate
        if self.settings.start == "trained":
            yield from job.fit(model, callback, epochs=epochs, span=(since, until), rate=rate)
        else:
            yield from job.fit(model, callback, epochs=None if until == 1 else epochs, rate=rate)
