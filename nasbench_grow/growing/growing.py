"""Growing a network while it trains: the algorithm of Yuan, Savarese, Maire (ICLR 2021, arXiv 2007.15353).

::

    initialise w, s; q = seed                                          Growing.__init__
    for period = 1 .. T:                                               Growing.before_step
        lambda <- lambda_base * (u - u_G)                                Masks.resample
        extract the physical sub-network of q                            ElasticModel.resize
        for each mini-batch: one step on L(sub-network) + penalty        Growing.forward, .penalty, .after_backward
        write it back; q ~ Bernoulli(sigmoid(beta * s)); update beta     ElasticModel.resize, Masks.resample
    harden, fold, return the small model                               Growing.finish

Which structures are present, and how that is learnt, is the masks' business: :mod:`nasbench_grow.growing.relaxation` is
the paper's, :mod:`nasbench_grow.growing.scaling` a schedule that learns nothing.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from numbers import Real
from typing import Any, cast

import torch
from torch import Tensor, nn

from nasbench_grow.base.calling import call
from nasbench_grow.base.errors import UserError
from nasbench_grow.base.parallel import mean_over_processes
from nasbench_grow.contract import Callback, ElasticModel, Job, Run
from nasbench_grow.growing.settings import CostOf
from nasbench_grow.structure.elastic import Newborn
from nasbench_grow.structure.gating import GatedNetwork
from nasbench_grow.structure.space import Space, Structures

MISSED = 0.02
"""By how much of the dense cost a network may be off its budget without a word."""
LARGEST_STEP = 0.25
"""Share of the dense cost by which a network grows at most at once, however short the run."""


def logistic_quantiles(count: int) -> Tensor:
    """Logistic noise spread evenly, highest first: the mid-points of ``count`` equal parts of the distribution."""
    return torch.logit((torch.arange(count).flip(0) + 0.5) / count)


class Masks(ABC):
    """State of all structures of one run.

    Args:
        space: the configuration space.
        structures: what is grown: filters and layers, or one of them inside a network that has all of the other.
        budget: cost of the network to return, as a share of the dense network's.
        cost_of: cost of structures; None: their forward MACs.
        seed: of everything random here.

    Raises:
        UserError: a budget outside (0, 1] or below the seed's own cost, or a space with nothing to grow.
    """

    def __init__(
        self, space: Space, structures: Structures, budget: float, cost_of: CostOf | None = None, seed: int = 0
    ) -> None:
        self.space, self.structures, self.budget = space, structures, budget
        self.cost_of = cost_of or space.macs
        self.own_cost = cost_of
        """As it was given; selecting by MACs is much faster where it is known that they are meant."""
        self.generator = torch.Generator().manual_seed(seed)
        self.ungrown = torch.zeros(len(space), dtype=torch.bool)
        """The structures that are not grown, but there from the start."""
        self.ungrown[: space.filters] = structures == "layers"
        self.ungrown[space.filters :] = structures == "filters"
        self.dense_cost = self.cost_of(space.full())
        self.present = space.seed(structures)
        self.seed_cost = self.aimed = self.cost
        """Of ``aimed``: the share of the dense cost that the last restructuring could spend."""
        check_budget(budget, space, structures, self.seed_cost)

    @property
    def cost(self) -> float:
        """Cost of the present network as a share of the dense network's."""
        return self.cost_of(self.present) / self.dense_cost

    @abstractmethod
    def target(self, progress: float) -> float:
        """The share of the dense cost that is aimed at when ``progress`` (0 to 1) of the run is done."""

    @abstractmethod
    def resample(self, progress: float) -> Tensor:
        """Chooses the structures of the next period; ``progress`` is the share of the run that is done by now."""

    @property
    def weighs(self) -> bool:
        """Whether :meth:`weigh` is to be given the gradients of the steps that come."""
        return False

    def weigh(self, gradients: Tensor) -> None:  # noqa: B027 (masks that learn nothing have nothing to do)
        """Takes up the gradients of one step's loss along the gates of all structures, shape (structures,)."""

    def harden(self) -> Tensor:
        """The structures of the network to return."""
        return self.present

    def gates(self) -> Tensor | None:
        """The scale of every structure, shape (structures,), which the loss is differentiated by; None: all are 1."""
        return None

    def penalty(self) -> Tensor | None:
        """What the objective adds to the loss: the price of the structures (a scalar); None: nothing."""
        return None

    def step(self) -> None:  # noqa: B027 (masks that learn nothing have nothing to do)
        """Takes up the gradients of one mini-batch, before the weights change."""

    def state_dict(self) -> dict[str, Any]:
        """All that changes during a run; a table of step times too, as timed again it would be another."""
        times = getattr(self.cost_of, "state_dict", None)
        return {
            "present": self.present,
            "generator": self.generator.get_state(),
            "times": None if times is None else times(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what :meth:`state_dict` gave."""
        self.present = state["present"]
        self.generator.set_state(state["generator"])
        if state["times"] is not None:
            cast(Any, self.cost_of).load_state_dict(state["times"])
            self.dense_cost = self.cost_of(self.space.full())
            self.seed_cost = self.cost_of(self.space.seed(self.structures)) / self.dense_cost


class Growing(Callback):
    """Restructures a model as its masks say, and trains both.

    Args:
        model: to be grown; becomes the seed.
        masks: decide what is present.
        steps: length of the run.
        periods: how many times the network is restructured in it (T in the paper).
        newborn: how structures that join start.
    """

    def __init__(
        self, model: ElasticModel, masks: Masks, steps: int, periods: int, newborn: Newborn = "initial"
    ) -> None:
        self.masks, self.newborn, self.steps = masks, newborn, steps
        self.period = -(-steps // min(periods, steps))
        self.restructured_at = 0
        self.largest_step = 0.0
        self._gated: GatedNetwork | None = None
        model.resize(masks.present)

    def before_step(self, model: ElasticModel, step: int, steps: int) -> None:
        """Begins another period if the last one is over."""
        if step // self.period > self.restructured_at // self.period:
            self.restructured_at, cost = step, self.masks.cost
            with torch.profiler.record_function("restructuring"):
                model.resize(self.masks.resample(step / self.steps), self.newborn)
            self.largest_step = max(self.largest_step, abs(self.masks.cost - cost))

    def forward(self, model: ElasticModel, network: nn.Module, inputs: Any) -> Any:
        """The sub-network, each structure scaled by its gate."""
        gates = self.masks.gates()
        return call(network, inputs) if gates is None else self._scaling(model)(inputs, gates)

    def penalty(self, model: ElasticModel) -> Tensor | None:
        """The price of the structures."""
        return self.masks.penalty()

    def after_backward(self, model: ElasticModel) -> None:
        """One step of the masks."""
        if self.masks.weighs:
            self.masks.weigh(mean_over_processes(self._scaling(model).gradients()))
        self.masks.step()

    def evaluated(self, model: ElasticModel) -> nn.Module:
        """The network as it is now, the scales folded in."""
        gates = self.masks.gates()
        return model.network if gates is None else self._scaling(model).fold(gates).eval()

    def run(self, job: Job, model: ElasticModel) -> Run:
        """Trains the model by what is left of a job's schedule, and returns the network of the end."""
        yield from job.fit(model, self)
        return self.finish(model)

    def finish(self, model: ElasticModel) -> nn.Module:
        """The network to return: hardened, the scales folded in, no fine-tuning."""
        model.resize(self.masks.harden())
        return self.evaluated(model)

    def _scaling(self, model: ElasticModel) -> GatedNetwork:
        """The sub-network with its gates, made anew where its structure has changed."""
        if self._gated is None or self._gated.network is not model.network:
            self._gated = GatedNetwork(model.space, model.structures, model.network)
        return self._gated

    def log(self, model: ElasticModel) -> dict[str, float]:
        """Scheduled cost, actual cost, and its largest change by one restructuring, as shares of the dense cost."""
        target = self.masks.target(self.restructured_at / self.steps)
        return {"target": target, "cost": self.masks.cost, "largest_step": self.largest_step}

    def state_dict(self) -> dict[str, Any]:
        """The masks, and when they last changed (the model is kept apart)."""
        return {
            "masks": self.masks.state_dict(),
            "restructured_at": self.restructured_at,
            "largest_step": self.largest_step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what :meth:`state_dict` gave."""
        self.masks.load_state_dict(state["masks"])
        self.restructured_at, self.largest_step = state["restructured_at"], state["largest_step"]


def check_budget(budget: float, space: Space, structures: Structures, seed_cost: float) -> None:
    """Raise UserError unless a budget is a share of the dense cost, at least ``seed_cost``, what the seed costs."""
    if not space.groups:
        raise UserError("nothing in this model can be grown: no channel group was found; use another backbone")
    if structures == "layers" and not space.layers:
        raise UserError("structures 'layers' finds no removable layer in this model; grow 'both' or 'filters'")
    check_share_of_dense(budget)
    if budget < seed_cost:
        raise UserError(
            f"budget {budget} is below the seed network's own cost, {seed_cost:.4f} of the dense one's; "
            f"give a budget between {seed_cost:.4f} and 1{_held_up_by(space, structures)}"
        )


def check_share_of_dense(budget: object) -> None:
    """Raise UserError unless a budget is a number in (0, 1]."""
    if not isinstance(budget, Real) or isinstance(budget, bool):
        raise UserError(f"budget {budget!r} is no number; give the share of the dense cost to keep, e.g. 0.5")
    if not 0 < float(budget) <= 1:
        raise UserError(f"budget {budget} is outside (0, 1]; give the share of the dense cost to keep, e.g. 0.5")


def check_spent(growing: Growing) -> None:
    """Raise UserError where a run ended before its masks could spend the budget; warn where they spent another."""
    masks = growing.masks
    if abs(masks.aimed - masks.budget) > MISSED:
        raise UserError(
            f"the run of {growing.steps} steps is too short for budget {masks.budget:g}: it ended at {masks.cost:.3f} "
            "of the dense cost; give more epochs or batches, or settings that restructure earlier or more often"
        )
    if abs(masks.cost - masks.budget) > MISSED:
        warnings.warn(
            f"the network costs {masks.cost:.3f} of the dense one where the budget is {masks.budget:g}: none was found "
            "that comes closer",
            stacklevel=3,
        )


def _held_up_by(space: Space, structures: Structures) -> str:
    """The three dearest parts of the seed and why they stay, for a message."""
    counts, layers = space.counts(space.seed(structures))
    macs: dict[str, float] = {}
    for cost, lengths in space.kept_costs(counts, layers):
        name = cost.axes[0][0].rpartition(".")[0] if cost.axes else "products outside layers"
        macs[name] = macs.get(name, 0) + cost.rate * math.prod(lengths)
    parts = [(spent, name, space.fixed.get(name, "as narrow as it can be")) for name, spent in macs.items()]
    parts.append((space.constant_macs, "all else", "no channel that can leave changes it"))
    dearest = [part for part in sorted(parts, reverse=True)[:3] if part[0] > 0.01 * space.macs(space.full())]
    dense = space.macs(space.full())
    said = [f"{name} {spent / dense:.2f} ({reason})" for spent, name, reason in dearest]
    return f"; of its MACs most go to {', '.join(said)}" if said else ""
