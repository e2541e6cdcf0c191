"""NetAdapt: in each iteration every layer proposes to become narrower, is fine-tuned for a moment and judged; one wins.

Yang, Howard, Chen, Zhang, Go, Sandler, Sze, Adam, *NetAdapt: Platform-Aware Neural Network Adaptation for Mobile
Applications*, ECCV 2018 (arXiv 1804.03230), its algorithm 1: each iteration has to save a given amount of the resource,
here MACs. For every layer the largest width is found that saves enough, its filters of the largest L2 norm stay, the
network is fine-tuned shortly on the training samples that are not held out, and that of the best score on those held
out goes on. At the end it is fine-tuned on all of them. Published (the authors' code, MobileNet on CIFAR-10 by MACs):
30 iterations at most, the first saves 0.025 of the MACs, each 0.96 of what the one before does, 500 steps of short
fine-tuning at a hundredth of the first learning rate, widths in multiples of 8, proposals judged on the training
images; their long fine-tuning has that rate, too, where here the recipe's one schedule goes on, as after any pruning.

Ours: the first saving is such that 30 iterations end at the budget (0.028 for half the MACs); the length of the short
trainings follows from ``total`` (theirs, 500 steps for each of 14 layers and the judging, come to some three of their
trainings of 150 epochs), so that a short run has short ones (one step at least); a group of coupled filters is one
layer; of equal scores the smaller network wins; where no layer alone can save enough, less is asked for. Layers
themselves stay: they are not what the method searches.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import torch
from torch import Tensor

from nasbench_grow import Space, UserError
from nasbench_grow.contract import (
    Callback,
    ElasticModel,
    Job,
    Pruning,
    PruningSettings,
    Run,
    Stage,
    check_positive,
    check_share,
)

UNSPENT = 0.01
"""Share of the dense MACs that a proposal may leave of the budget before its width is rounded less."""


@dataclass(frozen=True)
class Settings(PruningSettings):
    """How many iterations there are, and how long a proposal is fine-tuned."""

    iterations: int = 30
    """In how many the budget is reached; fewer where widths are coarse."""
    decay: float = 0.96
    """What an iteration has to save, as a share of what the one before had to."""
    total: float = 3.0
    """What all iterations together cost, in trainings of the dense network; more where a step each is too much."""
    short_rate: float = 0.01
    """Learning rate of the short fine-tuning, as a share of the recipe's highest."""

    def __post_init__(self) -> None:
        """Refuses a setting outside its range with a UserError."""
        super().__post_init__()
        check_share(self, "decay")
        check_positive(self, "iterations", "total", "short_rate")


class Proposal(Callback):
    """Short fine-tuning of other structures: the model takes them up before the first step."""

    def __init__(self, present: Tensor) -> None:
        self.present = present

    def before_step(self, model: ElasticModel, step: int, steps: int) -> None:
        """Nothing happens from the second step on."""
        model.resize(self.present)


def savings(budget: float, settings: Settings) -> list[float]:
    """What each iteration has to save, as a share of the dense MACs; together all that is beyond the budget."""
    parts = [settings.decay**number for number in range(settings.iterations)]
    return [(1 - budget) * part / sum(parts) for part in parts]


def width_within(space: Space, present: Tensor, index: int, limit: float, floor: float, granularity: int) -> int | None:
    """The largest width below the present one by which group ``index`` alone brings the network to ``limit`` MACs.

    Args:
        space: the configuration space.
        present: the structures of the network, shape (structures,), bool.
        index: of the group.
        limit: MACs at most.
        floor: MACs that are left by a width of finer granularity, where one is.
        granularity: widths above it are multiples of it.

    Returns:
        None where even one filter is too much.
    """
    counts, layers = space.counts(present)
    for width in range(int(counts[index]) - 1, 0, -1):
        if width % granularity and width > granularity:
            continue
        macs = space.macs_of([*counts[:index], width, *counts[index + 1 :]], layers)
        if macs <= limit:
            if macs < floor and granularity > 1:
                return width_within(space, present, index, limit, floor, granularity // 2)
            return width
    return None


def proposals(model: ElasticModel, limit: float, floor: float, granularity: int) -> list[Tensor]:
    """For each group that can do it, the structures by which it alone brings the network to ``limit`` MACs: its filters
    of the largest L2 norm stay. Those of less than ``floor`` MACs are left out if there are others."""
    space, present = model.space, model.structures
    norms = model.filter_sums(lambda weight: weight.detach().square()).cpu().masked_fill(~present, -torch.inf)
    found = []
    for index, group in enumerate(space.groups):
        width = width_within(space, present, index, limit, floor, granularity)
        if width is not None:
            narrower = present.clone()
            ranking = torch.argsort(norms[group.structures], descending=True, stable=True)
            narrower[group.start + ranking[width:]] = False
            found.append(narrower)
    return [narrower for narrower in found if space.macs(narrower) >= floor] or found


def short_steps(job: Job, groups: int, settings: Settings) -> int:
    """Steps of each short fine-tuning by which all iterations, the judging included, cost what they may.

    In each iteration every group is tried, and the best fine-tuned once more, at the MACs that are left by then.
    """
    _, judged = job.search_splits
    allowed = settings.total * job.dense_train_macs
    left, networks = 1.0, 0.0
    for saving in savings(job.budget, settings):
        left -= saving
        networks += left * job.dense_macs
    scores = groups * networks * len(judged)
    return max(1, int((allowed - scores) / (3 * (groups + 1) * networks * job.recipe.batch_size)))


class NetAdapt(Pruning):
    """Narrows one group at a time, whichever the held-out samples miss least."""

    name = "netadapt"
    summary = "iterations that narrow the one layer whose narrowing costs least on held-out samples, then fine-tune"
    citation = "Yang et al., NetAdapt: Platform-Aware Neural Network Adaptation, arXiv 1804.03230"
    Settings = Settings

    def run(self, job: Job) -> Run:
        """Dense training, the iterations, long fine-tuning."""
        model = yield from self.dense(job)
        yield from self.adapt(job, model)
        yield from self.tune(job, model, since=self.settings.dense_share)
        return model.network

    def adapt(self, job: Job, model: ElasticModel) -> Generator[Stage, None, None]:
        """Brings the model to the budget, iteration by iteration."""
        settings: Settings = self.settings
        target = job.budget * job.dense_macs
        rest, _ = job.search_splits
        epochs = short_steps(job, len(model.space.groups), settings) / rest.steps_per_epoch(job.recipe.batch_size)
        highest = job.recipe.warmup, job.recipe.warmup  # a span of one learning rate

        def iteration(saving: float) -> Generator[Stage, None, float | None]:
            options: list[Tensor] = []
            while not options:
                limit = max(target, model.macs - saving)
                options = proposals(model, limit, target - UNSPENT * job.dense_macs, job.granularity)
                if not options:
                    saving /= 2
                if saving < 1:
                    raise UserError(f"budget {job.budget:g} is out of reach: every layer has one filter; give more")
            scored = []
            for present in options:
                score = yield from job.trial(
                    model, Proposal(present), epochs=epochs, span=highest, rate=settings.short_rate
                )
                scored.append((score, -model.space.macs(present), present))
            best = max(scored, key=lambda each: each[:2])[2]
            yield from job.fit(
                model, Proposal(best), epochs=epochs, span=highest, rate=settings.short_rate, searching=True
            )
            return saving * settings.decay if model.macs > target else None

        if model.macs > target:
            yield from job.rounds(model, iteration, savings(job.budget, settings)[0] * job.dense_macs)
