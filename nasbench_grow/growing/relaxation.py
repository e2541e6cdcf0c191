"""The paper's masks: gates sigmoid(beta s) trained with the weights, Bernoulli sampling, a budget-aware price.

Section 3 of the paper as far as it is known here (``docs/method.md`` says what is reconstruction). Its constants
are not known; those here fit runs of any length and networks of any size: the penalty is a mean over the structures,
and the logits' learning rate is given for a whole run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nasbench_grow.base.errors import UserError
from nasbench_grow.base.trees import device_of
from nasbench_grow.contract import ElasticModel, Job, check_positive
from nasbench_grow.growing.growing import Growing, Masks
from nasbench_grow.growing.settings import GrowingSettings
from nasbench_grow.structure.space import Space


@dataclass(frozen=True)
class RelaxationSettings(GrowingSettings):
    """Hyper-parameters of the paper's masks."""

    periods: int = 40
    beta_start: float = 1.0
    """Temperature beta_0 of a structure that was never present."""
    beta_growth: float = 100.0
    """gamma, the factor by which the temperature of an always-present structure rises over the run."""
    price_base: float = 8.0
    """lambda_base of the budget controller, for the mean over all structures."""
    cost_aware: bool = False
    """A structure is charged for its share of the MACs (c_i) instead of 1."""
    mask_learning_rate: float = 11.0
    """Learning rate of the logits, summed over the steps of a run, for the mean over all structures."""
    mask_momentum: float = 0.9
    """Momentum of the logits."""
    logit_start: float = 3.0
    """The seed's logits start here, all others at the negative."""

    def __post_init__(self) -> None:
        """Refuses a setting outside its range with a UserError."""
        super().__post_init__()
        check_positive(self, "beta_start", "beta_growth", "mask_learning_rate", "logit_start")
        if not self.price_base >= 0:
            raise UserError(f"price_base {self.price_base:g} is out of range: give 0 or more")
        if not 0 <= self.mask_momentum < 1:
            raise UserError(f"mask_momentum {self.mask_momentum:g} is out of range: 0 <= mask_momentum < 1")


def begin(job: Job, settings: RelaxationSettings) -> tuple[ElasticModel, Growing]:
    """The seed of a dense backbone, and what grows it by the paper's equations."""
    model = job.model()
    masks = RelaxedMasks(model.space, settings, job.budget, job.total_steps, job.seed, device_of(job.example))
    return model, Growing(model, masks, job.total_steps, settings.periods)


class RelaxedMasks(Masks):
    """A logit s for each structure, its temperature, and the price of all.

    Args:
        space, budget, seed: as in :class:`~nasbench_grow.growing.growing.Masks`.
        settings: the hyper-parameters.
        steps: length of the run.
        device: where the gates are, so that no step waits for the CPU; what is decided once a period is decided there.
    """

    def __init__(
        self,
        space: Space,
        settings: RelaxationSettings,
        budget: float,
        steps: int,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(space, settings.structures, budget, seed=seed)
        self.settings, self.device = settings, torch.device(device)
        self.periods = min(settings.periods, steps)
        self.ages = space.effective(self.present).double()
        start = torch.where(self.present, settings.logit_start, -settings.logit_start)
        self.logits = start.to(self.device).requires_grad_(True)
        rate = settings.mask_learning_rate * len(space) / steps
        self.optimizer = torch.optim.SGD([self.logits], lr=rate, momentum=settings.mask_momentum)
        macs = space.marginal_macs(space.full())
        costs = (macs / macs.mean()).float() if settings.cost_aware else torch.ones(len(space))
        self.costs, self.betas, self.fixed = (
            tensor.to(self.device) for tensor in (costs, self.temperatures, self.ungrown)
        )
        self.price = self._price()
        self.aimed = self.budget

    @property
    def temperatures(self) -> Tensor:
        """beta_i = beta_0 * gamma^(t_i / T), t_i the periods in which structure i was present (section 3.2)."""
        exponent = self.ages / self.periods
        return (self.settings.beta_start * (self.settings.beta_growth**exponent)).float()

    def _price(self) -> float:
        """lambda = lambda_base * (u - u_G), u = 1 - budget and u_G = 1 - cost the sparsities (section 3.3): negative,
        a reward for growing, while the network is smaller than its budget."""
        return self.settings.price_base * (self.cost - self.budget)

    def target(self, progress: float) -> float:
        """The budget, from the start."""
        return self.budget

    def gates(self) -> Tensor:
        """sigmoid(beta s); 1 where nothing is grown."""
        return torch.where(self.fixed, 1.0, torch.sigmoid(self.betas * self.logits))

    def penalty(self) -> Tensor:
        """lambda * mean of c_i * sigmoid(beta_i s_i)."""
        return self.price * (self.costs * self.gates()).mean()

    def step(self) -> None:
        """Moves the logits along the gradient of loss and price."""
        self.optimizer.step()
        self.optimizer.zero_grad()

    def resample(self, progress: float) -> Tensor:
        """q ~ Bernoulli(sigmoid(beta s)); then temperatures and price follow."""
        chance = torch.sigmoid(self.temperatures * self.logits.detach().cpu())
        chance = chance.nan_to_num(0.5)  # of a loss that is no number, which stops the run after this epoch
        sampled = torch.bernoulli(chance, generator=self.generator).bool()
        self.present = self._alive(sampled)
        self.ages += self.space.effective(self.present)
        self.betas = self.temperatures.to(self.device)
        self.price = self._price()
        return self.present

    def harden(self) -> Tensor:
        """m = [s > 0] (section 3.2, end), of what was ever present: nothing is returned that never trained."""
        return self._alive((self.logits.detach().cpu() > 0) & (self.ages > 0))

    def _alive(self, present: Tensor) -> Tensor:
        """Keeps the filter with the highest logit in a group that would be empty: a network needs every layer."""
        present, logits = present | self.ungrown, self.logits.detach().cpu()
        for group in self.space.groups:
            if not present[group.structures].any():
                present[group.start + int(logits[group.structures].argmax())] = True
        return present

    def state_dict(self) -> dict[str, Any]:
        """Logits with their momentum, ages and the price too."""
        momentum = self.optimizer.state[self.logits].get("momentum_buffer")
        return {
            **super().state_dict(),
            "logits": self.logits.detach().clone(),
            "ages": self.ages.clone(),
            "momentum": None if momentum is None else momentum.clone(),
            "price": self.price,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what :meth:`state_dict` gave."""
        super().load_state_dict(state)
        with torch.no_grad():
            self.logits.copy_(state["logits"])
        if state["momentum"] is not None:
            self.optimizer.state[self.logits]["momentum_buffer"] = state["momentum"].to(self.device, copy=True)
        self.ages, self.price = state["ages"].clone(), state["price"]
        self.betas = self.temperatures.to(self.device)
