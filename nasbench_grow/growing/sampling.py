"""Growing that learns: a network grows to its budget, is sampled for a while, and keeps what lowered the loss.

Every structure has a logit s, and is present with the probability sigmoid(beta (s - price)) (section 3.2 of the paper).
The filters of a group cannot be told apart at birth, so they share one logit: what is learnt is each group's width and
each layer's presence. Once a period a sample of the scheduled cost begins to train. From the end of growth on several
more of the same cost are sampled from the weights as they are, and their losses on one batch compared; the logits move
along their score functions, an estimate of the gradient of the expected loss (Williams 1992, REINFORCE), as far as that
estimate is surely off zero.

The paper differentiates the loss by gates sigmoid(beta s) instead. Behind every group that a convolution and its
normalisation take in, the gates of the group have gradients that add up to zero, whatever its width is worth: that
signal cannot compare groups (``docs/method.md``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nasbench_grow.base.errors import UserError
from nasbench_grow.contract import ElasticModel, Job, check_positive, check_share
from nasbench_grow.growing.growing import LARGEST_STEP, Growing, Masks, logistic_quantiles
from nasbench_grow.growing.settings import CostOf, SolvedSettings
from nasbench_grow.structure.selection import select
from nasbench_grow.structure.space import Space

ERRORS = 2.0
"""Half the width of the interval in which a slope is known to lie, in standard errors: one of 95 %."""


@dataclass(frozen=True)
class SamplingSettings(SolvedSettings):
    """Hyper-parameters of growing. Times are shares of the run, so that they fit runs of any length."""

    growth: float = 0.05
    """Share of the run over which the network grows from the seed to its budget."""
    search: float = 0.15
    """Share of the run, after growth, over which networks are compared; then the structure stays."""
    periods: int = 30
    """How often the network is sampled during the search, at most once a step; while it grows, at the same pace."""
    compared: float = 0.025
    """Share of the run's training that comparing samples may cost; at least two are compared once a period."""
    travel: float = 8.0
    """How far a logit moves in a run if its structure alone decided the loss."""
    layer_start: float = 0.0
    """Logit that layers start with, as groups start at 0: below 0 a layer is rather absent, as in the seed."""
    beta_start: float = 4.0
    """Temperature beta of a structure that was never present."""
    beta_growth: float = 4.0
    """gamma, the factor by which the temperature of a structure rises that is present in every period."""

    def __post_init__(self) -> None:
        """Refuses a setting outside its range with a UserError."""
        super().__post_init__()
        check_share(self, "growth", "search", "compared")
        check_positive(self, "travel", "beta_start", "beta_growth")
        if self.commit >= 1:
            raise UserError(
                f"growth {self.growth:g} and search {self.search:g} leave nothing of the run to train what was found; "
                "give two shares that add up to less than 1"
            )

    @property
    def commit(self) -> float:
        """Share of the run after which the structure is no longer sampled, but stays."""
        return self.growth + self.search

    def samples(self, steps: int) -> int:
        """How many networks are compared once a period, in a run of so many steps: an even number."""
        forward_passes = 3 * self.compared * steps / min(self.periods, self.search * steps)
        return max(2, 2 * round(forward_passes / 2))


def begin(job: Job, settings: SamplingSettings, *, placebo: bool = False) -> tuple[ElasticModel, Growing]:
    """The seed of a dense backbone, and what grows it."""
    model = job.model()
    granularity, cost_of = settings.granularity or job.granularity, settings.cost_of(job, model)
    samples = settings.samples(job.total_steps)
    masks = SampledMasks(model.space, settings, job.budget, samples, granularity, job.seed, cost_of, placebo=placebo)
    return model, Growing(model, masks, job.total_steps, round(settings.periods / settings.search), settings.newborn)


class SampledMasks(Masks):
    """A logit for the width of every group and for every layer.

    Args:
        space, budget, seed, cost_of: as in :class:`~nasbench_grow.growing.growing.Masks`.
        settings: the hyper-parameters.
        samples: networks that are compared once a period, an even number.
        granularity: of the widths (:func:`nasbench_grow.structure.selection.allowed_width`).
        placebo: what one structure learns goes to another: as much changes, but nothing is known.

    Attributes:
        start: the logits before anything is learnt, shape (groups + layers,), in the order of the space.
        ages: the share of the time until commit in which each structure was present, same shape.
        moments: sums over the networks compared of (advantage x score), same shape; an advantage is how far a loss is
            below the mean of its period, in standard deviations.
        weights: sums of squared scores, same shape.
    """

    def __init__(
        self,
        space: Space,
        settings: SamplingSettings,
        budget: float,
        samples: int,
        granularity: int,
        seed: int = 0,
        cost_of: CostOf | None = None,
        *,
        placebo: bool = False,
    ) -> None:
        super().__init__(space, settings.structures, budget, cost_of, seed)
        self.settings, self.samples, self.granularity = settings, samples, granularity
        groups, layers = len(space.groups), len(space.layers)
        self.start = torch.cat([torch.zeros(groups), self._layer_logits()])
        self.ages, self.moments, self.weights = (torch.zeros(groups + layers) for _ in range(3))
        self.places = torch.arange(groups + layers)
        if placebo:
            for part in (torch.arange(groups), groups + torch.nonzero(self.start[groups:].isfinite()).flatten()):
                self.places[part] = part[_derangement(len(part), self.generator)]
        self.progress = 0.0
        self.scores = torch.zeros(0, groups + layers)
        self.asked: list[Tensor] = []
        self.committed = False

    @property
    def temperatures(self) -> Tensor:
        """beta_i = beta_0 * gamma^(t_i / T), t_i of T periods those in which structure i was present (section 3.2)."""
        return self.settings.beta_start * self.settings.beta_growth**self.ages

    @property
    def logits(self) -> Tensor:
        """s, shape (groups + layers,): from the start along what is believed, further as the search goes on."""
        searched = (self.progress - self.settings.growth) / self.settings.search
        return self.start + self.settings.travel * min(1.0, max(0.0, searched)) * self.believed[self.places]

    @property
    def believed(self) -> Tensor:
        """The slope of the advantage along each score, 1 for a structure that alone decides the loss; or rather the end
        of its interval that is nearest to 0. Its standard error is 1 by the root of the sum of the squared scores."""
        slopes = self.moments / self.weights.clamp(min=1e-12)
        return slopes.sign() * (slopes.abs() - ERRORS / self.weights.sqrt()).clamp(min=0)

    def _layer_logits(self) -> Tensor:
        """Logits that layers start with, shape (layers,): infinite for plain layers, which stay, if filters are grown.

        Without a skip connection, what follows a layer is trained for its output or for its input; weights that have to
        serve both serve neither, and prefer what is most like the average sample.
        """
        sampled, start = self.settings.structures == "layers", self.settings.layer_start
        return torch.tensor([start if sampled or layer.bypass is None else torch.inf for layer in self.space.layers])

    def target(self, progress: float) -> float:
        """Linear from the seed's cost to the budget."""
        return self.seed_cost + (self.budget - self.seed_cost) * min(1.0, progress / self.settings.growth)

    def resample(self, progress: float) -> Tensor:
        """Samples the structures that train next and, once the network has grown, those that are compared."""
        if self.committed:
            return self.present
        settings = self.settings
        elapsed, self.progress = progress - self.progress, progress
        target = min(self.target(progress), self.cost + LARGEST_STEP)
        grown = progress >= settings.growth and target == self.target(progress)
        if grown and progress >= settings.commit:
            self.committed, self.aimed = True, target
            self.present = self._structures(torch.zeros(len(self.start)), target)
            return self.present
        cost, noise = self.cost, self._draw() / self.temperatures
        self.present = self._structures(noise, target)
        if self.cost <= cost and target < self.target(progress):  # the next filter costs more than the largest step
            target = self.target(progress)
            self.present = self._structures(noise, target)
        self.ages += self._there(self.present) * elapsed / settings.commit
        self.aimed = target
        if grown:
            half = [self._draw() for _ in range(self.samples // 2)]
            drawn = [sign * noise for noise in half for sign in (1, -1)]  # mirrored: what is even in it cancels out
            self.asked = [self._structures(noise / self.temperatures, target) for noise in drawn]
            self.scores = torch.stack([self._score(*pair) for pair in zip(drawn, self.asked, strict=True)])
        return self.present

    def _draw(self) -> Tensor:
        """Logistic noise: s + noise / beta > 0 with the probability sigmoid(beta s). Shape (groups + layers,)."""
        return torch.logit(torch.rand(len(self.start), generator=self.generator), eps=1e-6)

    def learn(self, losses: Tensor) -> None:
        """Adds the evidence of the networks compared (losses of shape (samples,)); none where one is no number."""
        if not losses.isfinite().all():
            return
        advantages = (losses.mean() - losses) / losses.std(correction=0).clamp(min=1e-12)
        self.moments += (advantages[:, None] * self.scores).sum(0)
        self.weights += self.scores.square().sum(0)

    def _structures(self, noise: Tensor, target: float) -> Tensor:
        """The structures whose logit, ``noise`` added, is above the price at which all cost ``target``."""
        space, groups = self.space, len(self.space.groups)
        logits = self.logits + noise
        keys = torch.full((len(space),), -torch.inf)
        for group, logit in zip(space.groups, logits[:groups], strict=True):
            keys[group.structures] = logit + logistic_quantiles(group.size)  # the first filters, so that they live long
        limit = target * self.dense_cost
        keys[self.ungrown] = torch.inf
        if self.settings.structures != "filters":
            keys[space.filters :] = self._layer_keys(logits[groups:], limit)
        return select(space, keys, limit, self.granularity, self.own_cost)

    def _layer_keys(self, logits: Tensor, limit: float) -> Tensor:
        """Infinite for the layers whose logit, noise included, is positive, and the next ones where the widest filters
        would not spend the budget; where layers alone are grown, the price decides."""
        if self.settings.structures == "layers":
            return logits
        widest = self.space.full()
        widest[self.space.filters :] = logits > 0
        for layer in torch.argsort(logits, descending=True).tolist():
            if self.cost_of(widest) >= limit:
                break
            widest[self.space.filters + layer] = True
        return torch.where(widest[self.space.filters :], torch.inf, -torch.inf)

    def _there(self, present: Tensor) -> Tensor:
        """Which groups and layers exist, shape (groups + layers,)."""
        groups = [self.space.layer_present(present, group.layer) for group in self.space.groups]
        return torch.cat([torch.tensor(groups), present[self.space.filters :]]).float()

    def _score(self, noise: Tensor, present: Tensor) -> Tensor:
        """How far a sample lies on either side of what is likely, in standard deviations: for a group that exists, of
        its logit's noise; for a layer, of its presence."""
        groups, there = len(self.space.groups), self._there(present)
        widths = noise[:groups] / (math.pi / math.sqrt(3)) * there[:groups]
        chance = torch.sigmoid(self.temperatures * self.logits)[groups:].clamp(0.02, 0.98)
        layers = (there[groups:] - chance) / (chance * (1 - chance)).sqrt()
        return torch.cat([widths, layers])

    def rivals(self) -> list[Tensor]:
        """The structures to compare."""
        asked, self.asked = self.asked, []
        return asked

    def state_dict(self) -> dict[str, Any]:
        """Ages and evidence too."""
        return {
            **super().state_dict(),
            "ages": self.ages.clone(),
            "moments": self.moments.clone(),
            "weights": self.weights.clone(),
            "progress": self.progress,
            "committed": self.committed,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what :meth:`state_dict` gave."""
        super().load_state_dict(state)
        self.ages, self.moments, self.weights = (state[name].clone() for name in ("ages", "moments", "weights"))
        self.progress, self.committed = state["progress"], state["committed"]


def _derangement(count: int, generator: torch.Generator) -> Tensor:
    """A random order in which everything has another place than its own, where there are others."""
    order = torch.randperm(count, generator=generator)
    places = torch.empty(count, dtype=torch.int64)
    places[order] = order.roll(1)
    return places
