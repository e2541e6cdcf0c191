"""Successive halving: many networks train a little, the best third of them trains on, and so on until few are left.

Jamieson and Talwalkar, *Non-stochastic Best Arm Identification and Hyperparameter Optimization*, AISTATS 2016 (arXiv
1502.07943); Li, Jamieson, DeSalvo, Rostamizadeh, Talwalkar, *Hyperband*, JMLR 2018 (arXiv 1603.06560, algorithm 1),
where one such tournament is a bracket, a third goes on (``reduction``, their eta of 3) and a network that goes on is
not begun anew. ``brackets`` is how many of Hyperband's there are, from the one that begins with most networks and the
shortest training; as many as ``rungs`` is Hyperband. Ours: one bracket, three rungs, of which the last ends after
half of the run's epochs (``longest``, their R), and ``total``, which the brackets share equally and which says how
many networks they begin with. All train by one schedule of the length of the longest training, so a network that goes
on goes on in it. NNI has no such strategy for architectures; the networks are drawn as those of ``random_search``.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from nasbench_grow import ElasticModel, UserError, extract
from nasbench_grow.contract import DivergedError, Job, Run, Stage, check_positive, check_share
from nasbench_grow.growing.multi_trial import NniSearch, which

if TYPE_CHECKING:
    from nasbench_grow.growing.nni_space import GrowableSpace

TRIES = 20
"""A draw that is among those so far is drawn again, so often at most."""


@dataclass(frozen=True)
class HalvingSettings:
    """How many networks train for how long."""

    total: float = 3.0
    """MACs that the search may spend, in multiples of one dense training by the whole recipe."""
    longest: float = 0.5
    """Share of the run's epochs that the networks of the last rung have trained."""
    reduction: int = 3
    """One of so many goes on from a rung to the next, to train so many times as long."""
    rungs: int = 3
    """How often the networks of the first bracket are judged."""
    brackets: int = 1
    """How many tournaments there are; each has a rung less than the one before, and begins with longer training."""

    def __post_init__(self) -> None:
        """Refuses a setting outside its range with a UserError."""
        check_share(self, "longest")
        check_positive(self, "total")
        if self.reduction < 2:
            raise UserError(f"reduction {self.reduction} is out of range: give 2 or more")
        if self.rungs < 1:
            raise UserError(f"rungs {self.rungs} is out of range: give 1 or more")
        if not 1 <= self.brackets <= self.rungs:
            raise UserError(
                f"brackets {self.brackets} is out of range: give 1 to as many as there are rungs, {self.rungs}"
            )


@dataclass
class Arm:
    """A network in a tournament."""

    present: Tensor
    """Shape (structures,), bool."""
    model: ElasticModel


class SuccessiveHalving(NniSearch):
    """Stops most networks early."""

    name = "successive_halving"
    summary = "random networks, of which the best third trains on at every rung, the best trained from the start"
    citation = "Jamieson and Talwalkar, Non-stochastic Best Arm Identification, arXiv 1502.07943"
    Settings = HalvingSettings

    def run(self, job: Job) -> Run:
        """The tournaments, then the best of their winners from the start."""
        space, draws = self.space(job), np.random.RandomState(job.seed)
        drawn: set[tuple[bool, ...]] = set()
        winners: list[tuple[float, Tensor]] = []
        for bracket in range(self.settings.brackets):
            lengths = self.lengths(job, bracket)
            beginners = self.beginners(job, lengths)
            arms = (new_arm(job, space, draws, drawn) for _ in range(beginners))
            winner = yield from self.tournament(job, arms, beginners, lengths)
            winners += [] if winner is None else [winner]
        if not winners:
            raise DivergedError(f"the training loss of all {len(drawn)} networks became infinite or NaN")
        return (yield from self.train(job, space, max(winners, key=lambda winner: winner[0])[1]))

    def lengths(self, job: Job, bracket: int) -> list[float]:
        """Epochs that a network has trained at the end of each rung of a bracket; a rung in which a short run would not
        train a single step is left out."""
        settings = self.settings
        longest = settings.longest * job.epochs
        rungs = [longest * settings.reduction ** (rung - settings.rungs) for rung in range(bracket + 1, settings.rungs)]
        return [*(length for length in rungs if job.trial_macs(1, length) > job.trial_macs(1, 0)), longest]

    def beginners(self, job: Job, lengths: list[float]) -> int:
        """The most networks that a bracket can begin with, so that it costs no more than its part of the total.

        Raises:
            UserError: there is not enough for one.
        """
        macs = round(job.budget * job.dense_macs)
        parts = [end - begin for begin, end in zip([0.0, *lengths], lengths, strict=False)]
        prices = [job.trial_macs(macs, part) for part in parts]
        limit = self.settings.total * job.dense_train_macs / self.settings.brackets

        def cost(number: int) -> int:
            survivors = [max(1, number // self.settings.reduction**rung) for rung in range(len(prices))]
            return sum(left * price for left, price in zip(survivors, prices, strict=True))

        if cost(1) > limit:
            raise UserError(
                f"total {self.settings.total:g} is not enough for {self.settings.brackets} brackets whose longest "
                f"training is {self.settings.longest:g} of the run; give a larger total or a smaller longest"
            )
        number = 1
        while cost(number + 1) <= limit:
            number += 1
        return number

    def tournament(
        self, job: Job, arms: Iterable[Arm], beginners: int, lengths: list[float]
    ) -> Generator[Stage, None, tuple[float, Tensor] | None]:
        """Trains and judges the arms rung by rung; the best of the last rung with its score, None if all diverged. Held
        and kept are only those that may still go on."""
        longest, begin = lengths[-1], 0.0
        ranked: list[tuple[float, Arm]] = []
        for rung, end in enumerate(lengths, 1):
            ranked, span = [], (begin / longest, end / longest)
            for arm in arms:
                try:
                    yield from job.fit(arm.model, epochs=end - begin, span=span, searching=True)
                except DivergedError:
                    job.let_go(arm.model)
                    continue
                ranked = sorted([*ranked, (job.score(arm.model.network), arm)], key=lambda each: -each[0])
                if len(ranked) > max(1, beginners // self.settings.reduction**rung):
                    job.let_go(ranked.pop()[1].model)
            arms, begin = [arm for _, arm in ranked], end
        for _, arm in ranked:
            job.let_go(arm.model)
        return (ranked[0][0], ranked[0][1].present) if ranked else None


def new_arm(job: Job, space: GrowableSpace, draws: np.random.RandomState, drawn: set[tuple[bool, ...]]) -> Arm:
    """A network that is drawn at random, if possible none of those ``drawn``, to which it is added."""
    for _ in range(TRIES):
        sample: dict[str, object] = {}
        space.random(sample, draws)
        present = space.present(sample)
        if which(space, present) not in drawn:
            break
    drawn.add(which(space, present))
    return Arm(present, job.model(extract(space.structures, space.dense, present)))
