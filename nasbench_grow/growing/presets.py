"""The hyper-parameters of growing, as two presets: the paper's equations, and what was found to be better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nasbench_grow.base.errors import UserError, unknown
from nasbench_grow.structure.space import Structures


@dataclass(frozen=True)
class Preset:
    """Hyper-parameters of one way to grow. Times are shares of the run, so that they fit runs of any length."""

    masks: Literal["paper", "priced"]
    periods: int | None
    """How often the network is restructured in a run (T); None: once an epoch (the paper)."""
    structures: Structures = "both"
    """What is grown: filters and layers, or one of them inside a network that has all of the other."""
    growth: float = 1.0
    """Share of the run after which the schedule reaches the budget, or the peak."""
    peak: float = 1.0
    """How many times its budget the network grows to, at most the dense network, before it is pruned to the budget by
    ``settle``; 1: it only grows."""
    settle: float = 1.0
    """Share of the run after which the structure stays as it is."""
    layer_logit: float = 0.0
    """Priced masks: logit of an average layer, where that of an average filter is 0 and the same share of depth is
    bought as of width; below 0: width before depth."""
    noise: Literal["even", "independent"] = "even"
    """Priced masks: the noise of a group's filters is spread evenly over its distribution, or drawn one by one."""
    newborn: Literal["fresh", "quiet"] = "fresh"
    """Whether a newborn structure acts at once, by its initial weights, or is joined by zeros, so that growing leaves
    the network's function as it was."""
    selectivity: float = 0.0
    """Priced masks: logit per unit of log-worth; 0 ignores what a structure is worth."""
    logit_rate: float = 0.5
    """Priced masks: share of the way from the old logit to the newly measured one that a period goes."""
    beta_start: float = 1.0
    """Paper: temperature beta_0 of a structure that was never present."""
    beta_growth: float = 1.0
    """Paper: gamma, the factor by which the temperature of an always-present structure rises over the run."""
    price_base: float = 0.0
    """Paper: lambda_base of the budget controller."""
    cost_aware: bool = False
    """A structure is charged for its share of the MACs (c_i) instead of 1; by priced masks only if it is a filter."""
    cost: Literal["macs", "time"] = "macs"
    """Priced masks: what the budget is a share of and the schedule goes by, the dense network's MACs or the time of its
    training step on this device (:class:`nasbench_grow.structure.step_time.StepTime`)."""
    mask_learning_rate: float = 0.0
    """Paper: learning rate of the logits."""
    mask_momentum: float = 0.0
    """Paper: momentum of the logits."""
    logit_start: float = 0.0
    """Paper: the seed's logits start here, all others at the negative."""

    def __post_init__(self) -> None:
        """Refuses a setting outside its range with a UserError."""
        for name in ("growth", "settle", "logit_rate"):
            if not 0 < getattr(self, name) <= 1:
                raise UserError(f"{name} {getattr(self, name):g} is out of range: it is a share, 0 < {name} <= 1")
        if self.periods is not None and self.periods < 1:
            raise UserError(f"periods {self.periods} is out of range: give 1 or more, or None: once an epoch")
        if self.peak < 1:
            raise UserError(f"peak {self.peak:g} is out of range: it is a multiple of the budget, 1 or more")
        if self.cost == "time" and self.masks == "paper":
            raise UserError(
                "cost 'time' needs priced masks, which the paper's are not; use cost 'macs' or preset 'default'"
            )
        if self.peak > 1 and self.settle <= self.growth:
            raise UserError(
                f"peak {self.peak:g} leaves no time for pruning to the budget, growth {self.growth:g} to "
                f"settle {self.settle:g}: give a settle above growth, or a peak of 1"
            )

    def schedule(self, progress: float) -> float:
        """Share of the way from the seed's cost to the budget that should be done: up to the peak, down to 1, flat."""
        if progress < self.growth:
            return self.peak * progress / self.growth
        if progress < self.settle:
            return self.peak - (self.peak - 1) * (progress - self.growth) / (self.settle - self.growth)
        return 1.0


PRESETS = {
    "paper": Preset(
        masks="paper",
        periods=None,
        beta_growth=100.0,
        price_base=0.5,
        mask_learning_rate=0.1,
        mask_momentum=0.9,
        logit_start=3.0,
    ),
    "default": Preset(masks="priced", periods=80, growth=0.05, settle=0.1, layer_logit=-1.5, selectivity=0.3),
}


def as_preset(name: str | Preset) -> Preset:
    """A preset by its name; a :class:`Preset` is returned as it is."""
    if isinstance(name, Preset):
        return name
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    return PRESETS[name]
