"""Which structures are present, and how that is decided: the masks of the two presets.

Both hold a trainable logit s, an age t and a temperature beta for each structure and offer the grower the same five
operations. :class:`PaperMasks` is section 3 of the paper as it stands; :class:`PricedMasks` keeps its sampling and its
separate temperatures, but solves for the price that meets the budget instead of steering towards it, and measures what
a structure is worth instead of descending on its gate.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from nasbench_grow.presets import Preset
from nasbench_grow.selection import select
from nasbench_grow.space import Space


class Masks(ABC):
    """State of all structures of one run.

    Args:
        space: the configuration space.
        preset: the hyper-parameters.
        budget: MACs of the network to return, as a share of the dense network's.
        granularity: widths above it are multiples of it.
        periods: how many times the network will be restructured (T in the paper).
        seed: of everything random here.
    """

    def __init__(self, space: Space, preset: Preset, budget: float, granularity: int, periods: int, seed: int) -> None:
        self.space, self.preset, self.budget = space, preset, budget
        self.granularity, self.periods = granularity, periods
        self.generator = torch.Generator().manual_seed(seed)
        self.present = space.seed()
        self.ages = space.effective(self.present).double()
        self.logits = torch.zeros(len(space))
        self.dense_macs = space.macs(space.full())
        self.seed_macs = space.macs(space.seed())

    @property
    def temperatures(self) -> Tensor:
        """beta_i = beta_0 * gamma^(t_i / T), t_i the periods in which structure i was present (section 3.2)."""
        exponent = self.ages / self.periods
        return (self.preset.beta_start * (self.preset.beta_growth**exponent)).float()

    @property
    def cost(self) -> float:
        """MACs of the present network as a share of the dense network's."""
        return self.space.macs(self.present) / self.dense_macs

    def target(self, progress: float) -> float:
        """The share of the dense MACs that the schedule asks for when ``progress`` (0 to 1) of the run is done."""
        seed = self.seed_macs / self.dense_macs
        return seed + (self.budget - seed) * self.preset.schedule(progress)

    @abstractmethod
    def gates(self) -> Tensor:
        """The scale of every structure, shape (structures,); the loss is differentiated with respect to it."""

    @abstractmethod
    def penalty(self) -> Tensor:
        """What the objective adds to the loss: the price of the structures (a scalar)."""

    @abstractmethod
    def step(self) -> None:
        """Takes up the gradients of one mini-batch."""

    @abstractmethod
    def resample(self, progress: float) -> Tensor:
        """Chooses the structures of the next period; ``progress`` is the share of the run that is done by its end."""

    @abstractmethod
    def harden(self) -> Tensor:
        """The structures of the network to return: m = [s > 0] (section 3.2, end)."""

    def state_dict(self) -> dict[str, Any]:
        """All that changes during a run."""
        return {
            "present": self.present,
            "ages": self.ages,
            "logits": self.logits.detach().clone(),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what :meth:`state_dict` gave."""
        self.present, self.ages = state["present"], state["ages"].clone()
        with torch.no_grad():
            self.logits.copy_(state["logits"])
        self.generator.set_state(state["generator"])


class PaperMasks(Masks):
    """Gates sigmoid(beta s), trained with the weights; Bernoulli sampling; a proportional budget controller."""

    def __init__(self, space: Space, preset: Preset, budget: float, granularity: int, periods: int, seed: int) -> None:
        super().__init__(space, preset, budget, granularity, periods, seed)
        start = torch.where(self.present, preset.logit_start, -preset.logit_start)
        self.logits = start.requires_grad_(True)
        self.optimizer = torch.optim.SGD([self.logits], lr=preset.mask_learning_rate, momentum=preset.mask_momentum)
        self.price = self._price()

    def _price(self) -> float:
        """lambda = lambda_base * (u - u_G), u = 1 - budget and u_G = 1 - cost the sparsities (section 3.3): negative,
        a reward for growing, while the network is smaller than its budget."""
        return self.preset.price_base * (self.cost - self.budget)

    def gates(self) -> Tensor:
        return torch.sigmoid(self.temperatures * self.logits)

    def penalty(self) -> Tensor:
        return self.price * self.gates().sum()

    def step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()

    def resample(self, progress: float) -> Tensor:
        chance = torch.sigmoid(self.temperatures * self.logits.detach())
        sampled = torch.bernoulli(chance, generator=self.generator).bool()
        self.present = self._alive(sampled)
        self.ages += self.space.effective(self.present)
        self.price = self._price()
        return self.present

    def harden(self) -> Tensor:
        return self._alive(self.logits.detach() > 0)

    def _alive(self, present: Tensor) -> Tensor:
        """Keeps the filter with the highest logit in a group that would be empty: a network needs every layer."""
        present = present.clone()
        for group in self.space.groups:
            if not present[group.structures].any():
                present[group.start + int(self.logits.detach()[group.structures].argmax())] = True
        return present

    def state_dict(self) -> dict[str, Any]:
        momentum = self.optimizer.state[self.logits].get("momentum_buffer")
        return {**super().state_dict(), "momentum": None if momentum is None else momentum.clone(), "price": self.price}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        if state["momentum"] is not None:
            self.optimizer.state[self.logits]["momentum_buffer"] = state["momentum"].clone()
        self.price = state["price"]


class PricedMasks(Masks):
    """Sampling at an exact price.

    Bernoulli(sigmoid(beta (s - price))) is the event s + noise / beta > price for logistic noise. So the sampled
    network is a threshold on perturbed logits, and the price that gives it exactly the scheduled cost is found by
    bisection: no controller, nothing to tune. The noise of a structure is drawn once (so that a filter lives long
    enough to be trained) and spread evenly over each group; rising temperatures make it vanish.

    A gate is 1 where the structure is present; the logit is the logarithm of the structure's worth per MAC, the squared
    gate gradient (the loss expected from its removal, to second order) over its marginal MACs. Only ratios of worths
    matter, so neither the number of steps nor that of structures nor the scale of the loss does.
    """

    def __init__(self, space: Space, preset: Preset, budget: float, granularity: int, periods: int, seed: int) -> None:
        super().__init__(space, preset, budget, granularity, periods, seed)
        self.noise = self._noise()
        self.squares = torch.zeros(len(space), dtype=torch.float64)
        self.steps = 0
        self._ones = torch.ones(len(space), requires_grad=True)

    def _noise(self) -> Tensor:
        """Logistic noise, systematically sampled: the filters of a group take evenly spaced quantiles in a random
        order, the seed filter the highest; each layer takes a quantile of its own."""
        noise = torch.zeros(len(self.space))
        spans = [group.structures for group in self.space.groups] + [slice(self.space.filters, len(self.space))]
        for index, span in enumerate(spans):
            count = span.stop - span.start
            offset = torch.rand((), generator=self.generator)
            quantiles = (torch.arange(count).flip(0) + offset.clamp(0.01, 0.99)) / max(count, 1)
            order = torch.randperm(count, generator=self.generator)
            if index < len(self.space.groups):
                order = torch.cat([torch.zeros(1, dtype=torch.long), order[order > 0]])
            noise[span.start + order] = torch.logit(quantiles)
        return noise

    def gates(self) -> Tensor:
        return self._ones

    def penalty(self) -> Tensor:
        return self._ones.new_zeros(())

    def step(self) -> None:
        gradient = self._ones.grad
        if gradient is not None:
            self.squares += gradient.double().square()
            self.steps += 1
        self._ones.grad = None

    def resample(self, progress: float) -> Tensor:
        if progress > self.preset.settle:
            return self.present
        self._appraise()
        keys = self.logits + self.noise / self.temperatures
        self.present = select(self.space, keys, self.target(progress) * self.dense_macs, self.granularity)
        self.ages += self.space.effective(self.present)
        return self.present

    def _appraise(self) -> None:
        """Moves the logits towards the log-worth per MAC measured in the last period.

        An absent filter is as promising as the average filter of its group: where filters earn much, more are grown.
        """
        now = self.space.effective(self.present)
        if self.steps == 0 or self.preset.selectivity == 0:
            return
        worth = self.squares / self.steps / self.space.marginal_macs(self.present).clamp(min=1)
        measured = now & (worth > 0)
        log_worth = torch.log(worth.clamp(min=1e-300)).float()
        log_worth -= log_worth[measured].mean()
        wanted = self.preset.selectivity * log_worth
        rate = self.preset.logit_rate
        self.logits[measured] += rate * (wanted - self.logits)[measured]
        for group in self.space.groups:
            here = measured[group.structures]
            if here.any():
                logits = self.logits[group.structures]
                logits[~here] = logits[here].mean()
        self.squares.zero_()
        self.steps = 0

    def harden(self) -> Tensor:
        return self.present

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "noise": self.noise, "squares": self.squares.clone(), "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.noise, self.squares, self.steps = state["noise"], state["squares"].clone(), state["steps"]
