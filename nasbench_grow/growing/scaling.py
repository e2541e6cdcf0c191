"""Growing by schedule: the network's width and depth rise together from the seed to the budget.

Compound scaling of width and depth (Tan and Le, EfficientNet, arXiv 1905.11946), followed while training. Which filters
are present cannot matter, as those of a group are exchangeable at birth; how many each group has and which layers exist
is decided by chance, spread evenly, before the first step. Nothing is learnt about structures.

Bernoulli(sigmoid(s - price)) is the event s + noise > price for logistic noise. So the sampled network is a threshold
on noise, and the price that gives it exactly the scheduled cost is found by bisection. The noise of a structure is
drawn once, so that a filter lives long enough to be trained, and spread evenly over each channel group and each stage,
so that a price buys the same share of every width and, at ``layer_logit`` 0, of every depth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nasbench_grow.base.errors import UserError
from nasbench_grow.contract import ElasticModel, Job, check_share
from nasbench_grow.growing.growing import LARGEST_STEP, Growing, Masks, logistic_quantiles
from nasbench_grow.growing.settings import CostOf, SolvedSettings
from nasbench_grow.structure.selection import select
from nasbench_grow.structure.space import Space


@dataclass(frozen=True)
class ScalingSettings(SolvedSettings):
    """Hyper-parameters of growing by schedule. Times are shares of the run, so that they fit runs of any length."""

    growth: float = 0.05
    """Share of the run after which the schedule reaches the budget, or the peak."""
    peak: float = 1.0
    """How many times its budget the network grows to, at most the dense network, before it is pruned to the budget by
    ``freeze``; 1: it only grows."""
    freeze: float | None = None
    """Share of the run after which a network with a peak is back at its budget, and stays as it is."""
    layer_logit: float = -1.5
    """Logit of a layer, where that of a filter is 0 and the same share of depth is bought as of width; below 0: width
    before depth."""
    cost_aware: bool = False
    """A filter is charged for its share of the MACs instead of 1."""

    def __post_init__(self) -> None:
        """Refuses a setting outside its range, or one that has no effect beside the others, with a UserError."""
        super().__post_init__()
        check_share(self, "growth")
        if not self.peak >= 1:
            raise UserError(f"peak {self.peak:g} is out of range: it is a multiple of the budget, 1 or more")
        if self.peak == 1 and self.freeze is not None:
            raise UserError(
                f"freeze {self.freeze:g} has no effect: a network without a peak stays as it is once it is grown; "
                "leave it out, or give a peak above 1"
            )
        if self.peak > 1 and not (self.freeze is not None and self.growth < self.freeze <= 1):
            raise UserError(
                f"peak {self.peak:g} needs a freeze above growth {self.growth:g} and up to 1, by which the network is "
                "pruned to its budget"
            )
        if self.structures != "both" and self.layer_logit != ScalingSettings.layer_logit:
            raise UserError(
                f"layer_logit {self.layer_logit:g} has no effect with structures={self.structures}: it weighs layers "
                "against filters; leave one out"
            )
        if self.structures == "layers" and self.cost_aware:
            raise UserError("cost_aware has no effect with structures=layers: filters alone are charged; leave one out")

    def schedule(self, progress: float) -> float:
        """Share of the way from the seed's cost to the budget that should be done: up to the peak, down to 1, flat."""
        if progress < self.growth:
            return self.peak * progress / self.growth
        if self.freeze is not None and progress < self.freeze:
            return self.peak - (self.peak - 1) * (progress - self.growth) / (self.freeze - self.growth)
        return 1.0


def begin(job: Job, settings: ScalingSettings) -> tuple[ElasticModel, Growing]:
    """The seed of a dense backbone, and what grows it by schedule."""
    if settings.periods != ScalingSettings.periods and settings.periods > job.total_steps:
        raise UserError(
            f"periods {settings.periods} has no effect in a run of {job.total_steps} steps, which can restructure the "
            f"network once each; give up to {job.total_steps}, or train for longer"
        )
    model = job.model()
    granularity, cost_of = settings.granularity or job.granularity, settings.cost_of(job, model)
    masks = ScaledMasks(model.space, settings, job.budget, granularity, job.seed, cost_of)
    return model, Growing(model, masks, job.total_steps, settings.periods, settings.newborn)


class ScaledMasks(Masks):
    """Structures by a threshold on noise at an exact price.

    Args:
        space, budget, seed, cost_of: as in :class:`~nasbench_grow.growing.growing.Masks`.
        settings: the hyper-parameters.
        granularity: of the widths (:func:`nasbench_grow.structure.selection.allowed_width`).
    """

    def __init__(
        self,
        space: Space,
        settings: ScalingSettings,
        budget: float,
        granularity: int,
        seed: int = 0,
        cost_of: CostOf | None = None,
    ) -> None:
        super().__init__(space, settings.structures, budget, cost_of, seed)
        self.settings, self.granularity = settings, granularity
        self.keys = self._noise() - self._log_charges()
        self._plan_layers()
        self.grown = False

    def _noise(self) -> Tensor:
        """Logistic noise, the highest of a group for the seed's filters: the filters of a group, and the layers of a
        stage, take the mid-points of as many equal parts of the distribution, in a random order."""
        filters = [torch.arange(group.start, group.start + group.size) for group in self.space.groups]
        noise = torch.zeros(len(self.space))
        for family in [*filters, *self.space.stages()]:
            count = len(family)
            order = family[torch.randperm(count, generator=self.generator)]
            seeds_first = torch.argsort(self.present[order].int(), descending=True, stable=True)
            noise[order[seeds_first]] = logistic_quantiles(count)
        return noise

    def _log_charges(self) -> Tensor:
        """Logarithm of what each structure is charged (c_i), shape (structures,)."""
        if not self.settings.cost_aware:
            return torch.zeros(len(self.space))
        filters = self.space.marginal_macs(self.space.full())[: self.space.filters]
        return torch.cat([(filters / filters.mean()).log(), filters.new_zeros(len(self.space.layers))]).float()

    def _plan_layers(self) -> None:
        """Decides on the layers that the whole budget will buy, once, and for good: they come first, while they are
        narrow and cheap, so that none has less time to learn than it must."""
        layers = slice(self.space.filters, len(self.space))
        self.keys[layers] += self.settings.layer_logit
        self.keys[self.ungrown] = torch.inf
        planned = select(self.space, self.keys, self.budget * self.dense_cost, self.granularity, self.own_cost)
        self.keys[layers] = torch.where(planned[layers], torch.inf, -torch.inf)

    def target(self, progress: float) -> float:
        """The schedule's."""
        return min(1.0, self.seed_cost + (self.budget - self.seed_cost) * self.settings.schedule(progress))

    def resample(self, progress: float) -> Tensor:
        """What the scheduled cost buys; nothing more once the budget is reached."""
        if self.grown:
            return self.present
        target = self.target(progress)
        reachable = min(max(target, self.cost - LARGEST_STEP), self.cost + LARGEST_STEP)
        cost = self.cost
        self.present = self._best(reachable)
        if self.cost <= cost and reachable < target:  # the next filter costs more than the largest step
            reachable = target
            self.present = self._best(reachable)
        self.aimed = reachable
        self.grown = progress >= (self.settings.freeze or self.settings.growth) and reachable == target
        return self.present

    def _best(self, share: float) -> Tensor:
        """The structures that a share of the dense cost buys."""
        return select(self.space, self.keys, share * self.dense_cost, self.granularity, self.own_cost)

    def state_dict(self) -> dict[str, Any]:
        """The keys too."""
        return {**super().state_dict(), "keys": self.keys, "grown": self.grown}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what :meth:`state_dict` gave."""
        super().load_state_dict(state)
        self.keys, self.grown = state["keys"], state["grown"]
