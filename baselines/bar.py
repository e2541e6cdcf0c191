"""Budget-aware regularisation (BAR): gates on filters learn to close, at a price that rises where a budget is reached.

Lemaire, Achkar, Jodoin, *Structured Pruning of Neural Networks with Budget-Aware Regularization*, CVPR 2019 (arXiv
1811.09332). Each filter of a trained network is scaled by a hard-concrete gate (Louizos, Welling, Kingma, arXiv
1712.01312: beta 2/3, gamma -0.1, zeta 1.1), drawn anew each step. The expected cost of the gates is added to the loss,
times a barrier f(V, a, b) of the cost V of those that stand open: zero up to a, just below the final budget, infinite
at b, which falls from a little above the dense cost to the budget along a sigmoid. The trained dense network teaches.
In the end the gates are folded in, closed filters leave, and the network trains on.

Public code of the authors was not found. Their margin of 1e-4, and the sigmoid's slope 10, the tolerance 0.01, the
temperature 4 and the weight 0.9 of the distillation are as in an unofficial reimplementation. Departures: costs are
MACs (theirs: the volume of feature maps); filters coupled by a residual stream share a gate (theirs: blocks of mixed
connectivity). Ours: the shares of the run, the price in shares of the dense MACs, the barrier cut at 1000, gates that
begin open, and an Adam of their own without momentum, with which they would close too many once the price is off; each
could move 20 log-odds in all, however many steps there are. A short run from scratch has a weak teacher, which holds it
back: ``dense_share`` of the epochs must train a dense network worth following, or begin with a trained one.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nasbench_grow import GatedNetwork, UserError, count_macs, select
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
    check_within_run,
)

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1
"""Of the hard-concrete distribution: its temperature, and the interval that it is stretched to before it is clipped."""
SLOPE, MARGIN, TOLERANCE = 10.0, 1e-4, 0.01
"""Of the budget's way down, and how far below the final budget the barrier begins and above the dense cost it ends."""
CEILING = 1000.0
"""What stands for the barrier's infinity."""
OPEN = 4.0
"""Log-odds of a gate at the beginning: open with a probability of 0.97."""
FLOOR = 0.05
"""What a closed gate is folded in as, where the budget has room for its filter."""
LOOKS = 100
"""How often, at most, the open gates are counted: each time waits for the device."""


@dataclass(frozen=True)
class BarSettings(PruningSettings):
    """When gates are learnt, and the weights of the objective."""

    pruning_share: float = 0.25
    """Share of the epochs in which gates are learnt; the rest is fine-tuning."""
    strength: float = 0.01
    """Weight of the price: of the dense network's MACs, before the barrier."""
    travel: float = 20.0
    """Log-odds that a gate can move at most while gates are learnt."""
    temperature: float = 4.0
    """By which the teacher's and the network's logits are divided."""
    distillation: float = 0.9
    """Weight of the distance to the teacher; the task's loss has the rest. 0: no teacher."""

    def __post_init__(self) -> None:
        """Refuses a setting outside its range with a UserError."""
        super().__post_init__()
        check_share(self, "pruning_share")
        check_positive(self, "strength", "travel", "temperature")
        check_within_run(self, "dense_share", "pruning_share")
        if not 0 <= self.distillation <= 1:
            raise UserError(f"distillation {self.distillation:g} is out of range: it is a weight, from 0 to 1")


def barrier(cost: float, begin: float, end: float) -> float:
    """The factor f(V, a, b) on the price: 0 up to ``begin``, rising smoothly, infinite from ``end`` on."""
    if cost <= begin:
        return 0.0
    if cost >= end:
        return math.inf
    return (cost - begin) ** 2 / ((end - begin) * (end - cost))


def allowed(progress: float, budget: float) -> float:
    """What may be spent now, as a share of the dense cost: from 1.01 along a sigmoid down to the budget.

    ``progress`` is the share of the steps with gates that are done.
    """
    low = 1 / (1 + math.exp(SLOPE / 2))
    done = (1 / (1 + math.exp(SLOPE * (0.5 - progress))) - low) / (1 - 2 * low)
    return (1 - done) * (1 + TOLERANCE) + done * budget


def probability(log_odds: Tensor) -> Tensor:
    """The probability that a hard-concrete gate is not zero (Louizos et al.)."""
    return torch.sigmoid(log_odds - BETA * math.log(-GAMMA / ZETA))


def sampled(log_odds: Tensor) -> Tensor:
    """One draw of each gate, in [0, 1]; can be differentiated by the log-odds."""
    noise = torch.rand_like(log_odds).clamp(1e-6, 1 - 1e-6)
    return _clipped(torch.sigmoid((noise.log() - (1 - noise).log() + log_odds) / BETA))


def settled(log_odds: Tensor) -> Tensor:
    """Gates without noise, in [0, 1]."""
    return _clipped(torch.sigmoid(log_odds))


def _clipped(concrete: Tensor) -> Tensor:
    return (concrete * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


class Taught(Callback):
    """A part of the loss is the distance to a teacher's answers (Hinton et al., arXiv 1503.02531), which are billed."""

    def __init__(self, job: Job, teacher: nn.Module, settings: BarSettings) -> None:
        self.job, self.teacher, self.settings = job, teacher.eval().requires_grad_(False), settings
        self.teacher_macs = count_macs(teacher, job.example)

    def loss(self, model: ElasticModel, network: nn.Module, inputs: Any, targets: Tensor, loss: Any) -> Tensor:
        """The task's loss and the distance, with their weights."""
        output = self.forward(model, network, inputs)
        weight, temperature = self.settings.distillation, self.settings.temperature
        if not weight:
            result: Tensor = loss(output, targets)
            return result
        with torch.no_grad():
            answers = self.teacher(inputs)
        self.job.meter.forward(self.teacher_macs, len(inputs))
        classes = -1 if output.shape[:-1] == targets.shape else 1  # the axis of the logits
        wanted = (answers / temperature).softmax(classes)
        distance = wanted * (wanted.clamp(min=1e-20).log() - (output / temperature).log_softmax(classes))
        distance = distance.sum(classes).mean() * temperature**2
        return weight * distance + (1 - weight) * loss(output, targets)

    def state_dict(self) -> dict[str, Any]:
        """What a recurrent teacher hands from batch to batch."""
        kept = self.teacher.state_dict()
        return {"teacher": {name: buffer for name, buffer in self.teacher.named_buffers() if name not in kept}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from there."""
        for name, buffer in state["teacher"].items():
            path, _, key = name.rpartition(".")
            self.teacher.get_submodule(path)._buffers[key] = buffer.to(self.job.example.device)


class Gates(Taught):
    """Learns gates on the filters of the whole network, under the budget that falls.

    Args:
        job: the cell.
        model: the trained network.
        teacher: a copy of it.
        settings: of the method.
    """

    def __init__(self, job: Job, model: ElasticModel, teacher: nn.Module, settings: BarSettings) -> None:
        super().__init__(job, teacher, settings)
        self.gated = GatedNetwork(model.space, model.structures, model.network)
        self.steps = max(1, round(settings.pruning_share * job.total_steps))
        self.seen = 0
        self.log_odds = nn.Parameter(torch.full((len(model.space),), OPEN, device=job.example.device))
        self.optimizer = torch.optim.Adam([self.log_odds], lr=settings.travel / self.steps, betas=(0.0, 0.99))
        self.prices = torch.zeros_like(self.log_odds)
        """What each filter costs beside those whose gates stand open, as a share of the dense MACs."""
        self.cost = 1.0
        """Of the filters whose gates stand open, as a share of the dense MACs."""

    def gates(self, model: ElasticModel, values: Tensor) -> Tensor:
        """The gates of all structures: removable layers have none."""
        return torch.cat([values[: model.space.filters], values.new_ones(len(model.space.layers))])

    def open(self, model: ElasticModel) -> Tensor:
        """Which filters stand open, in each group at least one; shape (structures,), bool."""
        values = self.log_odds.detach().cpu()
        present = settled(values) > 0
        for group in model.space.groups:
            present[group.start + int(values[group.structures].argmax())] = True
        present[model.space.filters :] = True
        return present

    def before_step(self, model: ElasticModel, step: int, steps: int) -> None:
        """Counts the open gates, from time to time."""
        if self.seen % max(1, self.steps // LOOKS) == 0:
            present = self.open(model)
            self.cost = model.space.macs(present) / self.job.dense_macs
            prices = model.space.marginal_macs(present) / self.job.dense_macs
            self.prices = prices.float().to(self.log_odds.device)
        self.seen += 1

    def forward(self, model: ElasticModel, network: nn.Module, inputs: Any) -> Any:
        """Through gates drawn for this step."""
        return self.gated(inputs, self.gates(model, sampled(self.log_odds)))

    def penalty(self, model: ElasticModel) -> Tensor:
        """The expected cost of the open gates, times the barrier."""
        budget = self.job.budget
        factor = barrier(self.cost, budget - MARGIN * (1 + TOLERANCE), allowed(self.seen / self.steps, budget))
        expected = (probability(self.log_odds) * self.prices)[: model.space.filters].sum()
        return self.settings.strength * min(factor, CEILING) * expected

    def after_backward(self, model: ElasticModel) -> None:
        """Moves the gates."""
        self.optimizer.step()
        self.optimizer.zero_grad()

    def evaluated(self, model: ElasticModel) -> nn.Module:
        """The whole network with gates as they stand."""
        return self.gated.fold(self.gates(model, settled(self.log_odds.detach())))

    def log(self, model: ElasticModel) -> dict[str, float]:
        """What the open gates cost, as a share of the dense MACs."""
        return {"open_share": model.space.macs(self.open(model)) / self.job.dense_macs}

    @torch.no_grad()
    def harden(self, model: ElasticModel) -> None:
        """Folds the gates into the weights and removes the filters that are closed, or closest to it, to the budget."""
        keys = self.log_odds.cpu().double()
        keys[model.space.filters :] = torch.inf
        present = select(model.space, keys, self.job.budget * self.job.dense_macs, self.job.granularity)
        gates = settled(self.log_odds)
        gates = self.gates(model, torch.where(gates > 0, gates, FLOOR))
        weights = dict(model.network.named_parameters())
        for name, scaled in self.gated.scaled(gates).items():
            weights[name].copy_(scaled)
        model.resize(present)

    def state_dict(self) -> dict[str, Any]:
        """The gates and what moves them."""
        return {
            **super().state_dict(),
            "seen": self.seen,
            "log_odds": self.log_odds.detach().clone(),
            "optimizer": self.optimizer.state_dict(),
            "prices": self.prices,
            "cost": self.cost,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from there."""
        super().load_state_dict(state)
        self.seen, self.cost = state["seen"], state["cost"]
        self.prices = state["prices"].to(self.prices.device)
        self.log_odds.data.copy_(state["log_odds"])
        self.optimizer.load_state_dict(state["optimizer"])


class Bar(Pruning):
    """Train, learn gates under a falling budget, fold them in, fine-tune; the dense network teaches."""

    name = "bar"
    summary = "train dense, learn gates on filters at a price that a falling budget sets, fold them in, fine-tune"
    citation = "Lemaire et al., Structured Pruning with Budget-Aware Regularization, arXiv 1811.09332"
    Settings = BarSettings

    def dense(self, job: Job) -> Generator[Stage, None, ElasticModel]:
        """The dense network; within the run it goes through the whole of the recipe's schedule, as it is to teach."""
        if self.settings.start == "trained":
            return (yield from super().dense(job))
        model = job.model()
        yield from job.fit(model, epochs=self.settings.dense_share * job.epochs, span=(0.0, 1.0))
        return model

    def run(self, job: Job) -> Run:
        """Dense training, or what another cell trained; then gates; then fine-tuning."""
        settings = self.settings
        since, until = settings.dense_share, settings.dense_share + settings.pruning_share
        model = yield from self.dense(job)
        teacher = copy.deepcopy(model.network)
        gates, rate = Gates(job, model, teacher, settings), settings.tuning_rate
        yield from job.fit(model, gates, epochs=settings.pruning_share * job.epochs, span=(since, until), rate=rate)
        gates.harden(model)
        taught = Taught(job, teacher, settings)
        yield from job.fit(model, taught, epochs=(1 - until) * job.epochs, span=(until, 1.0), rate=rate)
        return model.network
