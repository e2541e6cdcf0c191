"""Growing a network while it trains: the algorithm of Yuan, Savarese, Maire (ICLR 2021, arXiv 2007.15353).

::

    initialise w, s; q = seed                                          Grower.__init__
    for period = 1 .. T:                                               Grower.train
        lambda <- lambda_base * (u - u_G)                                Masks.resample
        extract the physical sub-network of q                            Grower._restructure
        for each mini-batch: one step on L(sub-network) + penalty        Grower._learn
        write it back; q ~ Bernoulli(sigmoid(beta * s)); update beta     Grower._restructure
    harden, fold, return the small model                               Grower.finish
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from nasbench_grow.base.errors import UserError
from nasbench_grow.contract.clock import Clock
from nasbench_grow.cost.macs import TrainingMeter
from nasbench_grow.growing.masks import Masks, PaperMasks, PricedMasks
from nasbench_grow.growing.presets import Preset, as_preset
from nasbench_grow.structure.discovery import discover
from nasbench_grow.structure.gating import GatedNetwork
from nasbench_grow.structure.space import Space, Structures
from nasbench_grow.structure.step_time import StepTime, Timing
from nasbench_grow.structure.subnetwork import absorb, carry_optimizer, carry_state, extract, zero_init


class Grower:
    """One growing run over a stream of mini-batches.

    Args:
        model: the dense network, the *bank* that all sub-networks are cut from; its weights are changed.
        example: one input with a batch axis, on the device of the run, for discovery and for counting.
        budget: cost of the network to return as a share of the dense network's, in (0, 1]: MACs, or the time of a
            training step if the preset says so.
        epochs, steps_per_epoch: the length of the run, in steps of the clock.
        loss: ``loss(output, target)``, a scalar.
        optimizer: makes an optimizer for a network; called after each restructuring, the state is carried over.
        learning_rate_at: learning rate of step 0, 1, ...; None keeps the optimizer's own.
        preset: ``"default"``, ``"paper"`` or a :class:`Preset`.
        granularity: of the widths (:func:`nasbench_grow.structure.selection.allowed_width`); 1: any width.
        seed: of the sampling.
        meter: counts the training MACs; None makes a fresh one.
        timing: how a step is run, where its time is the cost.
        accelerate: gives a faster module with the parameters of a network whose structure stays; None: that itself.
        clock: counts the steps and is moved on by whoever gives the batches; None: every batch is one step.

    Raises:
        UserError: a budget outside (0, 1], below the seed's own cost, or a model with nothing to grow.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Tensor,
        *,
        budget: float,
        epochs: int,
        steps_per_epoch: int,
        loss: Callable[[Any, Tensor], Tensor],
        optimizer: Callable[[nn.Module], torch.optim.Optimizer],
        learning_rate_at: Callable[[int], float] | None = None,
        preset: str | Preset = "default",
        granularity: int = 1,
        seed: int = 0,
        meter: TrainingMeter | None = None,
        clock: Clock | None = None,
        timing: Timing | None = None,
        accelerate: Callable[[nn.Module], nn.Module] | None = None,
    ) -> None:
        self.bank, self.loss = model, loss
        self.make_optimizer, self.learning_rate_at = optimizer, learning_rate_at
        self.total_steps = epochs * steps_per_epoch
        self.preset = as_preset(preset)
        self.space = discover(model, example)
        self.dense_macs = self.space.macs(self.space.full())
        self.step_time: StepTime | None = None
        if self.preset.cost == "time":
            self.step_time = StepTime(self.space, model, example, timing or Timing())
        cost_of = self.step_time or self.space.macs
        _check_budget(budget, self.space, self.preset.structures, cost_of)
        periods = epochs if self.preset.periods is None else min(self.preset.periods, self.total_steps)
        self.period = -(-self.total_steps // periods)
        kind = PaperMasks if self.preset.masks == "paper" else PricedMasks
        self.masks: Masks = kind(self.space, self.preset, budget, granularity, periods, seed, example.device, cost_of)
        self.meter = meter or TrainingMeter()
        self.accelerate = accelerate or (lambda network: network)
        self.ticks_itself, self.clock = clock is None, clock or Clock()
        self.restructured_at = 0
        self.largest_step = 0.0
        self._take_up(self.masks.present)

    @property
    def macs(self) -> int:
        """Forward MACs of the network that is being trained now."""
        return self.space.macs(self.masks.present)

    def widths(self) -> dict[str, int]:
        """Filters present in each channel group."""
        return self.space.widths(self.masks.present)

    def train(self, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
        """Trains on every batch once, restructuring when a period is over; returns the mean loss."""
        losses = []
        self.gated.train()
        for inputs, target in self.clock.each(batches) if self.ticks_itself else batches:
            self._restructure_if_due(self.clock.start)
            losses.append(self._learn(inputs, target))
        return float(torch.stack(losses).mean())

    def next_network(self) -> nn.Module:
        """The sub-network that the next batch trains, without its gates: restructured if a period has just ended."""
        self._restructure_if_due(self.clock.end)
        return self.gated.network

    def _restructure_if_due(self, step: int) -> None:
        """Begins another period at ``step`` if the last one is over."""
        if step // self.period > self.restructured_at // self.period:
            self.restructured_at = step
            self._restructure()

    def _learn(self, inputs: Tensor, target: Tensor) -> Tensor:
        """One optimizer step on the loss of the sub-network plus the price of its structures."""
        if self.learning_rate_at is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = self.learning_rate_at(self.clock.start)
        output = self.fast(inputs) if self.masks.settled else self.gated(inputs, self.masks.gates())
        loss = self.loss(output, target)
        self.optimizer.zero_grad()
        (loss + self.masks.penalty()).backward()
        self.masks.step(self.gated.slopes)
        self.optimizer.step()
        self.meter.step(self.macs_now, len(inputs))
        return loss.detach()

    @torch.profiler.record_function("restructuring")
    def _restructure(self) -> None:
        """Writes the sub-network back, samples the structures of the next period, and takes those up."""
        before, cost = self.masks.present, self.masks.cost
        after = self.masks.resample(self.restructured_at / self.total_steps)
        self.largest_step = max(self.largest_step, abs(self.masks.cost - cost))
        if not torch.equal(before, after):
            absorb(self.space, self.bank, before, self.gated.network)
            if self.preset.newborn == "quiet":
                zero_init(self.space, self.bank, before, after)
            old = (before, self.gated.network, self.optimizer)
            self._take_up(after)
            carry_optimizer(self.space, old, (after, self.gated.network, self.optimizer))
            carry_state(self.space, old[:2], (after, self.gated.network))

    def _take_up(self, present: Tensor) -> None:
        """Makes the physical sub-network of ``present`` the one that is trained."""
        network = extract(self.space, self.bank, present).train()
        self.gated = GatedNetwork(self.space, present, network)
        self.fast = self.accelerate(network)  # costs nothing before it is called
        self.optimizer = self.make_optimizer(network)
        self.macs_now = self.macs

    def network(self) -> nn.Module:
        """The network as it is now, the scales folded in: an ordinary module."""
        return self._folded(self.gated)

    def finish(self) -> nn.Module:
        """The network to return: hardened (m = [s > 0]), the scales folded in, no fine-tuning."""
        hard = self.masks.harden()
        absorb(self.space, self.bank, self.masks.present, self.gated.network)
        network = extract(self.space, self.bank, hard)
        return self._folded(GatedNetwork(self.space, hard, network))

    def _folded(self, gated: GatedNetwork) -> nn.Module:
        return gated.fold(self.masks.gates()).eval()

    def log(self) -> dict[str, float]:
        """Scheduled cost, actual cost, and its largest change by one restructuring, as shares of the dense cost."""
        progress = self.restructured_at / self.total_steps
        return {"target": self.masks.target(progress), "cost": self.masks.cost, "largest_step": self.largest_step}

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes here: weights, present network, masks, optimizer, times (not the caller's meter)."""
        return {
            "bank": self.bank.state_dict(),
            "network": self.gated.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "masks": self.masks.state_dict(),
            "steps_done": self.clock.end,
            "restructured_at": self.restructured_at,
            "largest_step": self.largest_step,
            "step_time": None if self.step_time is None else self.step_time.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what :meth:`state_dict` gave, in a grower made with the same arguments."""
        self.bank.load_state_dict(state["bank"])
        if self.step_time is not None:
            self.step_time.load_state_dict(state["step_time"])
        self.masks.load_state_dict(state["masks"])
        self.clock.move_to(state["steps_done"])
        self.restructured_at, self.largest_step = state["restructured_at"], state["largest_step"]
        self._take_up(self.masks.present)
        self.gated.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])


def _check_budget(budget: float, space: Space, structures: Structures, cost_of: Callable[[Tensor], float]) -> None:
    """A budget must be a share of the dense cost that is above what the seed costs."""
    if not space.groups:
        raise UserError("nothing in this model can be grown: no channel group was found; use another backbone")
    if structures == "layers" and not space.layers:
        raise UserError("structures 'layers' finds no removable layer in this model; grow 'both' or 'filters'")
    seed_cost = cost_of(space.seed(structures)) / cost_of(space.full())
    if not 0 < budget <= 1:
        raise UserError(f"budget {budget} is outside (0, 1]; give the share of the dense cost to keep, e.g. 0.5")
    if budget < seed_cost:
        raise UserError(
            f"budget {budget} is below the seed network's own cost, {seed_cost:.4f} of the dense one's; "
            f"give a budget between {seed_cost:.4f} and 1"
        )
