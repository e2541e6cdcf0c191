"""Growing that learns: a network grows to its budget, and moves its cost to where it is worth most.

Every structure has a logit s, and is present with the probability sigmoid(beta (s - price)) (section 3.2 of the paper).
The filters of a group cannot be told apart at birth, so they share one logit: what is learnt is each group's width and
each layer's presence.

What a structure is worth the gradient along its gate says, as in the paper: |dL/dm| is to first order by how much the
loss would change without it (Molchanov et al. 2019). The gradients of a group's gates add up to zero where a
normalisation follows, whatever its width is worth; their magnitudes do not. A logit rises while its structure is worth
more for its cost than the network is in the mean, and falls while it is worth less, so that in the end all cost is
spent equally well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nasbench_grow.base.errors import UserError
from nasbench_grow.contract import ElasticModel, Job, check_positive, check_share
from nasbench_grow.growing.growing import LARGEST_STEP, Growing, Masks, logistic_quantiles
from nasbench_grow.growing.settings import CostOf, Newborn, SolvedSettings
from nasbench_grow.structure.selection import select
from nasbench_grow.structure.space import Space

LARGEST_SLOPE = 2.0
"""What a structure's worth for its cost may at most move its logit by, in the natural logarithm of its ratio to the
mean: a group whose gradients vanish in one period is not lost by that."""


@dataclass(frozen=True)
class SamplingSettings(SolvedSettings):
    """Hyper-parameters of growing. Times are shares of the run, so that they fit runs of any length."""

    newborn: Newborn = "quiet"
    growth: float = 0.005
    """Share of the run over which the network grows from the seed to its budget."""
    search: float = 0.1
    """Share of the run, after growth, over which structures are weighed; then the structure stays."""
    least_search: int = 200
    """Steps. In a shorter search nothing is learnt or sampled, all widths get the same share, and filters start with
    their initial weights: the gradients of a network that has hardly trained do not say what they say later."""
    periods: int = 30
    """How often the network is sampled during the search, at most once a step; while it grows, at the same pace."""
    travel: float = 4.0
    """How far a logit moves in the search if its structure is worth e times as much for its cost as the mean."""
    layer_start: float = 1.0
    """Logit that layers start with, as groups start at 0: above 0 a layer is rather present."""
    beta_start: float = 4.0
    """Temperature beta of a structure that was never present."""
    beta_growth: float = 4.0
    """gamma, the factor by which the temperature of a structure rises that is present in every period."""

    def __post_init__(self) -> None:
        """Refuses a setting outside its range with a UserError."""
        super().__post_init__()
        check_share(self, "growth", "search")
        if self.least_search < 0:
            raise UserError(f"least_search {self.least_search} is out of range: give 0 or more")
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


def begin(job: Job, settings: SamplingSettings, *, placebo: bool = False) -> tuple[ElasticModel, Growing]:
    """The seed of a dense backbone, and what grows it."""
    model = job.model()
    granularity, cost_of = settings.granularity or job.granularity, settings.cost_of(job, model)
    learns = round(settings.search * job.total_steps) >= settings.least_search
    masks = SampledMasks(
        model.space, settings, job.budget, granularity, job.seed, cost_of, placebo=placebo, learns=learns
    )
    newborn = settings.newborn if learns else "initial"  # growth is over before anything is trained that could be upset
    return model, Growing(model, masks, job.total_steps, round(settings.periods / settings.search), newborn)


class SampledMasks(Masks):
    """A logit for the width of every group and for every layer.

    Args:
        space, budget, seed, cost_of: as in :class:`~nasbench_grow.growing.growing.Masks`.
        settings: the hyper-parameters.
        granularity: of the widths (:func:`nasbench_grow.structure.selection.allowed_width`).
        placebo: what one structure learns goes to another: as much changes, but nothing is known.
        learns: whether structures are weighed and sampled; otherwise all are worth the same from start to end.

    Attributes:
        logits: s, shape (groups + layers,), in the order of the space.
        ages: the share of the time until commit in which each structure was present, same shape.
        squares: sums over the steps of a period of the squared gradients along the gates, shape (structures,).
        steps: how many these are.
        gated: the groups and layers that have gates, shape (groups + layers,): all but plain layers.
    """

    def __init__(
        self,
        space: Space,
        settings: SamplingSettings,
        budget: float,
        granularity: int,
        seed: int = 0,
        cost_of: CostOf | None = None,
        *,
        placebo: bool = False,
        learns: bool = True,
    ) -> None:
        super().__init__(space, settings.structures, budget, cost_of, seed)
        self.settings, self.granularity, self.learns = settings, granularity, learns
        groups, layers = len(space.groups), len(space.layers)
        self.logits = torch.cat([torch.zeros(groups), self._layer_logits()])
        self.ages = torch.zeros(groups + layers)
        self.squares, self.steps = torch.zeros(len(space)), 0
        self.gated = torch.tensor([True] * groups + [layer.bypass is None for layer in space.layers])
        self.places = torch.arange(groups + layers)
        if placebo:
            for part in (torch.arange(groups), groups + torch.nonzero(self.gated[groups:]).flatten()):
                self.places[part] = part[_derangement(len(part), self.generator)]
        self.progress = 0.0
        self.committed = False

    @property
    def temperatures(self) -> Tensor:
        """beta_i = beta_0 * gamma^(t_i / T), t_i of T periods those in which structure i was present (section 3.2)."""
        return self.settings.beta_start * self.settings.beta_growth**self.ages

    def _layer_logits(self) -> Tensor:
        """Logits that layers start with, shape (layers,): infinite for plain layers, which stay, if filters are grown.

        Without a skip connection, what follows a layer is trained for its output or for its input; weights that have to
        serve both serve neither.
        """
        sampled, start = self.settings.structures == "layers", self.settings.layer_start
        return torch.tensor([start if sampled or layer.bypass is None else torch.inf for layer in self.space.layers])

    def target(self, progress: float) -> float:
        """Linear from the seed's cost to the budget, which it meets exactly."""
        share = min(1.0, progress / self.settings.growth)
        return (1 - share) * self.seed_cost + share * self.budget

    @property
    def weighs(self) -> bool:
        """Whether the network has grown, and is still sampled."""
        return self.learns and self.aimed == self.budget and not self.committed

    def weigh(self, gradients: Tensor) -> None:
        """Gathers the gradients along the gates of one step."""
        self.squares = self.squares.to(gradients.device) + gradients.square()
        self.steps += 1

    def resample(self, progress: float) -> Tensor:
        """Samples the structures that train next."""
        if self.committed:
            return self.present
        settings = self.settings
        elapsed, self.progress = progress - self.progress, progress
        if self.steps:
            self._learn()
        target = min(self.target(progress), self.cost + LARGEST_STEP)
        if progress >= settings.commit and target == self.target(progress):
            self.committed, self.aimed = True, target
            self.present = self._structures(torch.zeros(len(self.logits)), target)
            return self.present
        cost, noise = self.cost, self._draw() / self.temperatures
        self.present = self._structures(noise, target)
        if self.cost <= cost and target < self.target(progress):  # the next filter costs more than the largest step
            target = self.target(progress)
            self.present = self._structures(noise, target)
        self.ages += self._there(self.present) * elapsed / settings.commit
        self.aimed = target
        return self.present

    def _learn(self) -> None:
        """Moves the logit of every present structure along the logarithm of its worth for its cost, where all of them
        together are worth 1. What is no number teaches nothing."""
        gradients = (self.squares.cpu() / self.steps).sqrt()
        self.squares, self.steps = torch.zeros(len(self.space)), 0
        filters = [gradients[group.structures][self.present[group.structures]] for group in self.space.groups]
        counts = torch.tensor([*map(len, filters), *[1] * len(self.space.layers)])
        worths = torch.cat([torch.stack([each.mean() for each in filters]), gradients[self.space.filters :]])
        costs = self._costs()
        known = (costs > 0) & worths.isfinite()
        mean = (worths * counts)[known].sum() / (costs * counts)[known].sum()
        slopes = torch.where(known, (worths / (costs * mean)).log(), 0.0).nan_to_num(0.0)
        step = self.settings.travel / self.settings.periods
        self.logits = self.logits + step * slopes.clamp(-LARGEST_SLOPE, LARGEST_SLOPE)[self.places]

    def _costs(self) -> Tensor:
        """What a present layer costs, or a filter of a group that is there: shape (groups + layers,), 0 for all else.
        What makes the network dearer by leaving costs less than nothing."""
        space, costs = self.space, torch.zeros(len(self.logits))
        for number in torch.nonzero(self._there(self.present) * self.gated).flatten().tolist():
            other = self.present.clone()
            if number < len(space.groups):
                group = space.groups[number]
                width = int(other[group.structures].sum())
                fewer = max(1, width - self.granularity)
                other[group.start + fewer : group.start + width] = self.ungrown[group.start]
            else:
                layer = space.filters + number - len(space.groups)
                other[layer] = self.ungrown[layer]
            gone = int((self.present & ~other).sum())
            if gone:
                costs[number] = (self.cost - self.cost_of(other) / self.dense_cost) / gone
        return costs

    def _draw(self) -> Tensor:
        """Logistic noise: s + noise / beta > 0 with the probability sigmoid(beta s). Shape (groups + layers,); zero for
        groups, of which the share of filters that is likeliest is present."""
        if not self.learns:
            return torch.zeros(len(self.logits))
        noise = torch.logit(torch.rand(len(self.logits), generator=self.generator), eps=1e-6)
        noise[: len(self.space.groups)] = 0.0
        return noise

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

    def state_dict(self) -> dict[str, Any]:
        """Logits, ages and what was gathered too."""
        return {
            **super().state_dict(),
            "ages": self.ages.clone(),
            "logits": self.logits.clone(),
            "squares": self.squares.clone(),
            "steps": self.steps,
            "progress": self.progress,
            "aimed": self.aimed,
            "committed": self.committed,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what :meth:`state_dict` gave."""
        super().load_state_dict(state)
        self.ages, self.logits, self.squares = (state[name].clone() for name in ("ages", "logits", "squares"))
        self.steps = state["steps"]
        self.progress, self.aimed, self.committed = (state[name] for name in ("progress", "aimed", "committed"))


def _derangement(count: int, generator: torch.Generator) -> Tensor:
    """A random order in which everything has another place than its own, where there are others."""
    order = torch.randperm(count, generator=generator)
    places = torch.empty(count, dtype=torch.int64)
    places[order] = order.roll(1)
    return places
