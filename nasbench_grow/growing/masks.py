"""Which structures are present, and how that is decided: the masks of the two presets.

Both hold a logit s for each structure and offer the grower the same operations. :class:`PaperMasks` is section 3 of the
paper as it stands; :class:`PricedMasks` keeps its sampling, but solves for the price that meets the budget instead of
steering towards it, and measures what a structure is worth instead of descending on its gate.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nasbench_grow.base.parallel import average
from nasbench_grow.growing.presets import Preset
from nasbench_grow.structure.selection import select
from nasbench_grow.structure.space import Space

CPU = torch.device("cpu")
LARGEST_STEP = 0.25
"""Share of the dense cost by which the priced masks grow at most at once, however short the run."""


class Masks(ABC):
    """State of all structures of one run.

    Args:
        space: the configuration space.
        preset: the hyper-parameters.
        budget: cost of the network to return, as a share of the dense network's.
        granularity: of the widths (:func:`nasbench_grow.structure.selection.allowed_width`).
        periods: how many times the network will be restructured (T in the paper).
        seed: of everything random here.
        cost_of: cost of structures; None: their forward MACs.
        device: where the gates are, and what is learnt about them in every step, so that no step waits for the CPU;
            all that is decided once a period is decided there.
    """

    def __init__(
        self,
        space: Space,
        preset: Preset,
        budget: float,
        granularity: int,
        periods: int,
        seed: int,
        device: torch.device = CPU,
        cost_of: Callable[[Tensor], float] | None = None,
    ) -> None:
        self.device, self.cost_of = device, cost_of or space.macs
        self.space, self.preset, self.budget = space, preset, budget
        self.granularity, self.periods = granularity, periods
        self.generator = torch.Generator().manual_seed(seed)
        self.present = space.seed(preset.structures)
        self.always = self._always()
        self.logits = torch.zeros(len(space))
        self.settled = False
        """Whether the structures stay as they are and every gate is 1: nothing is learnt about them any more."""

    def _always(self) -> Tensor:
        """The structures that are not grown, but there from the start: all filters, or all layers, or none."""
        always = torch.zeros(len(self.space), dtype=torch.bool)
        always[: self.space.filters] = self.preset.structures == "layers"
        always[self.space.filters :] = self.preset.structures == "filters"
        return always

    @property
    def dense_cost(self) -> float:
        """Cost of the dense network."""
        return self.cost_of(self.space.full())

    @property
    def cost(self) -> float:
        """Cost of the present network as a share of the dense network's."""
        return self.cost_of(self.present) / self.dense_cost

    def target(self, progress: float) -> float:
        """The share of the dense cost that the schedule asks for when ``progress`` (0 to 1) of the run is done."""
        seed = self.cost_of(self.space.seed(self.preset.structures)) / self.dense_cost
        return min(1.0, seed + (self.budget - seed) * self.preset.schedule(progress))

    @abstractmethod
    def gates(self) -> Tensor | None:
        """The scale of every structure, shape (structures,), with respect to which the loss is differentiated; None:
        all are 1."""

    @abstractmethod
    def penalty(self) -> Tensor:
        """What the objective adds to the loss: the price of the structures (a scalar)."""

    @abstractmethod
    def step(self, slopes: Callable[[], Tensor]) -> None:
        """Takes up the gradients of one mini-batch, before the weights change; ``slopes`` gives the loss's slope along
        every gate where all are 1, shape (structures,)."""

    @abstractmethod
    def resample(self, progress: float) -> Tensor:
        """Chooses the structures of the next period; ``progress`` is the share of the run that is done by now."""

    @abstractmethod
    def harden(self) -> Tensor:
        """The structures of the network to return: m = [s > 0] (section 3.2, end)."""

    def state_dict(self) -> dict[str, Any]:
        """All that changes during a run."""
        return {
            "present": self.present,
            "logits": self.logits.detach().clone(),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what :meth:`state_dict` gave."""
        self.present = state["present"]
        with torch.no_grad():
            self.logits.copy_(state["logits"])
        self.generator.set_state(state["generator"])


class PaperMasks(Masks):
    """Gates sigmoid(beta s), trained with the weights; Bernoulli sampling; a proportional budget controller."""

    def __init__(self, space: Space, preset: Preset, *arguments: Any, **named: Any) -> None:
        super().__init__(space, preset, *arguments, **named)
        self.ages = space.effective(self.present).double()
        start = torch.where(self.present, preset.logit_start, -preset.logit_start)
        self.logits = start.to(self.device).requires_grad_(True)
        self.optimizer = torch.optim.SGD([self.logits], lr=preset.mask_learning_rate, momentum=preset.mask_momentum)
        macs = space.marginal_macs(space.full())
        costs = (macs / macs.mean()).float() if preset.cost_aware else torch.ones(len(space))
        self.costs, self.betas, self.fixed = (
            tensor.to(self.device) for tensor in (costs, self.temperatures, self.always)
        )
        self.price = self._price()

    @property
    def temperatures(self) -> Tensor:
        """beta_i = beta_0 * gamma^(t_i / T), t_i the periods in which structure i was present (section 3.2)."""
        exponent = self.ages / self.periods
        return (self.preset.beta_start * (self.preset.beta_growth**exponent)).float()

    def _price(self) -> float:
        """lambda = lambda_base * (u - u_G), u = 1 - budget and u_G = 1 - cost the sparsities (section 3.3): negative,
        a reward for growing, while the network is smaller than its budget."""
        return self.preset.price_base * (self.cost - self.budget)

    def gates(self) -> Tensor:
        return torch.where(self.fixed, 1.0, torch.sigmoid(self.betas * self.logits))

    def penalty(self) -> Tensor:
        return self.price * (self.costs * self.gates()).sum()

    def step(self, slopes: Callable[[], Tensor]) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()

    def resample(self, progress: float) -> Tensor:
        chance = torch.sigmoid(self.temperatures * self.logits.detach().cpu())
        sampled = torch.bernoulli(chance, generator=self.generator).bool()
        self.present = self._alive(sampled)
        self.ages += self.space.effective(self.present)
        self.betas = self.temperatures.to(self.device)
        self.price = self._price()
        return self.present

    def harden(self) -> Tensor:
        return self._alive(self.logits.detach().cpu() > 0)

    def _alive(self, present: Tensor) -> Tensor:
        """Keeps the filter with the highest logit in a group that would be empty: a network needs every layer."""
        present, logits = present | self.always, self.logits.detach().cpu()
        for group in self.space.groups:
            if not present[group.structures].any():
                present[group.start + int(logits[group.structures].argmax())] = True
        return present

    def state_dict(self) -> dict[str, Any]:
        momentum = self.optimizer.state[self.logits].get("momentum_buffer")
        return {
            **super().state_dict(),
            "ages": self.ages.clone(),
            "momentum": None if momentum is None else momentum.clone(),
            "price": self.price,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        if state["momentum"] is not None:
            self.optimizer.state[self.logits]["momentum_buffer"] = state["momentum"].to(self.device, copy=True)
        self.ages, self.price = state["ages"].clone(), state["price"]
        self.betas = self.temperatures.to(self.device)


class PricedMasks(Masks):
    """Sampling at an exact price.

    Bernoulli(sigmoid(s - price)) is the event s + noise > price for logistic noise. So the sampled network is a
    threshold on perturbed logits, and the price that gives it exactly the scheduled cost is found by bisection: no
    controller, nothing to tune. The noise of a structure is drawn once, so that a filter lives long enough to be
    trained, and spread evenly over each channel group and each stage, so that without other evidence a price buys the
    same share of every width and, at ``Preset.layer_logit`` 0, of every depth.

    A gate is 1 where the structure is present. The evidence is a filter's worth, the mean square of its gate's
    gradient (the loss expected from its removal, to second order), against the average worth in its group: the logit is
    the logarithm of that ratio, times the selectivity. Only ratios matter, so neither the number of steps nor that of
    structures nor the scale of the loss does. An absent filter is taken to be average.
    """

    def __init__(self, space: Space, preset: Preset, *arguments: Any, **named: Any) -> None:
        super().__init__(space, preset, *arguments, **named)
        self.noise = self._noise()
        self.log_costs = self._log_costs()
        self._plan_layers()
        self.squares = torch.zeros(len(space), dtype=torch.float64, device=self.device)
        self.full_grown = False  # a run of a few steps reaches its budget only after it should have settled
        self._nothing = torch.zeros((), device=self.device)

    def _noise(self) -> Tensor:
        """Logistic noise, the highest of a group for the seed's filters. Even: the filters of a group, and the layers
        of a stage, take the mid-points of as many equal parts of the distribution, in a random order."""
        filters = [torch.arange(group.start, group.start + group.size) for group in self.space.groups]
        noise = torch.zeros(len(self.space))
        for family in [*filters, *self.space.stages()]:
            count = len(family)
            quantiles = (torch.arange(count).flip(0) + 0.5) / count
            if self.preset.noise == "independent":
                quantiles = (
                    torch.rand(count, generator=self.generator).sort(descending=True).values.clamp(1e-6, 1 - 1e-6)
                )
            order = family[torch.randperm(count, generator=self.generator)]
            seeds_first = torch.argsort(self.present[order].int(), descending=True, stable=True)
            noise[order[seeds_first]] = torch.logit(quantiles)
        return noise

    def _log_costs(self) -> Tensor:
        """Logarithm of what each structure is charged (c_i), shape (structures,). A filter is in if its worth, of which
        the logit is the logarithm, is above the price of c_i."""
        if not self.preset.cost_aware:
            return torch.zeros(len(self.space))
        filters = self.space.marginal_macs(self.space.full())[: self.space.filters]
        return torch.cat([(filters / filters.mean()).log(), filters.new_zeros(len(self.space.layers))]).float()

    def _keys(self) -> Tensor:
        """What is compared with the logarithm of the price."""
        return self.logits + self.noise - self.log_costs

    def _plan_layers(self) -> None:
        """Decides on the layers that the whole budget will buy, once, and for good: they come first, while they are
        narrow and cheap, so that none has less time to learn than it must."""
        layers = slice(self.space.filters, len(self.space))
        self.logits[layers] = self.preset.layer_logit
        self.logits[self.always] = torch.inf
        planned = select(self.space, self._keys(), self.budget * self.dense_cost, self.granularity, self.cost_of)
        self.logits[layers] = torch.where(planned[layers], torch.inf, -torch.inf)

    def gates(self) -> None:
        return None

    def penalty(self) -> Tensor:
        return self._nothing

    def step(self, slopes: Callable[[], Tensor]) -> None:
        if not self.settled and self.preset.structures != "layers":  # which are decided upon beforehand
            found = slopes()
            average([found])  # before it is squared
            self.squares += found.double().square()

    def resample(self, progress: float) -> Tensor:
        self.settled = progress > self.preset.settle and self.full_grown
        if self.settled:
            return self.present
        if self.preset.structures != "layers":
            self._appraise()
        target = self.target(progress)
        reachable = min(max(target, self.cost - LARGEST_STEP), self.cost + LARGEST_STEP)
        limit = reachable * self.dense_cost
        self.present = select(self.space, self._keys(), limit, self.granularity, self.cost_of)
        self.full_grown = self.preset.schedule(progress) == 1 and reachable == target
        return self.present

    def _appraise(self) -> None:
        """Moves the filters' logits towards what the gradients of the last period say."""
        log_worth = torch.log(self.squares).float().cpu()
        measured = self.space.effective(self.present) & torch.isfinite(log_worth)
        for group in self.space.groups:
            here = measured[group.structures]
            logits, wanted = self.logits[group.structures], torch.zeros(group.size)
            worths = log_worth[group.structures][here]
            wanted[here] = self.preset.selectivity * (worths - worths.mean())
            logits += self.preset.logit_rate * (wanted - logits)  # in place: a view of self.logits
        self.squares.zero_()

    def harden(self) -> Tensor:
        return self.present

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "noise": self.noise,
            "squares": self.squares.clone(),
            "full_grown": self.full_grown,
            "settled": self.settled,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.noise, self.squares = state["noise"], state["squares"].to(self.device, copy=True)
        self.full_grown, self.settled = state["full_grown"], state["settled"]
