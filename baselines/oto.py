"""Only train once (OTO), as HESSO: redundant groups are driven to zero while the others train, and are then removed.

Chen et al., *Only Train Once*, NeurIPS 2021 (arXiv 2107.07467), OTOv2, ICLR 2023 (2303.06862); the optimizer here is
the hybrid-sparse one that knows its target, HESSO (2409.09085), without the corrective cycle of HESSO-CRIC. A group is
zero-invariant: all weights that make a filter, its scales and its shifts, so that a network is the same without the
groups that are zero. After a warm-up, at the start of each of ``periods``, the groups of the lowest saliency become
redundant: the sum of norm, norm per weight, one plus the cosine of weights and gradient, and first and second Taylor
term, each relative to its Euclidean norm over all groups. Each step of the period then multiplies them by (left - 1) /
left, where ``left`` is the number of steps that are left. No fine-tuning. Published (their tutorial for CIFAR-10):
start after 0.1 of the run, 10 periods over 0.1 of it; at least one group of a layer stays. Ours: the target is of MACs,
in equal parts per period; the cosine and the Taylor terms take the gradient of the loss alone, theirs with weight decay
and, where there is momentum, its running mean; and zeros leave after each period.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nasbench_grow import UserError, select
from nasbench_grow.contract import Callback, ElasticModel, Job, Method, Run, Task, check_share, check_within_run

GROUP = ("creating", "scale", "shift")
"""The weights of a zero-invariant group."""


@dataclass(frozen=True)
class Settings:
    """When the network is pruned."""

    start_share: float = 0.1
    """Share of the steps before pruning."""
    pruning_share: float = 0.1
    """Share of the steps over which it is pruned."""
    periods: int = 10
    """In how many parts."""

    def __post_init__(self) -> None:
        """Refuses a setting outside its range with a UserError."""
        check_share(self, "start_share", "pruning_share")
        if self.periods < 1:
            raise UserError(f"periods {self.periods} is out of range: give 1 or more")
        check_within_run(self, "start_share", "pruning_share")


class Hesso(Callback):
    """Chooses redundant groups, shrinks them to zero, removes them."""

    def __init__(self, job: Job, settings: Settings) -> None:
        self.job = job
        pruning = max(1, round(settings.pruning_share * job.total_steps))
        self.periods = min(settings.periods, pruning)
        self.length = pruning // self.periods
        self.start = min(round(settings.start_share * job.total_steps), job.total_steps - self.periods * self.length)
        self.step = 0
        self.redundant: Tensor | None = None
        self.masks: list[tuple[str, Tensor]] | None = None

    @property
    def period(self) -> tuple[int, int]:
        """Number of the period that the step is in, from 0 on, and steps of it that are done."""
        return divmod(self.step - self.start, self.length)

    def before_step(self, model: ElasticModel, step: int, steps: int) -> None:
        """Removes what became zero in the period before."""
        self.step = step
        if self.period[1] == 0:
            self.remove(model)

    def after_backward(self, model: ElasticModel) -> None:
        """At the start of a period, says which groups are redundant."""
        number, done = self.period
        if done == 0 and 0 <= number < self.periods:
            limit = (1 - (1 - self.job.budget) * (number + 1) / self.periods) * self.job.dense_macs
            keys = saliency(model).cpu().masked_fill(~model.structures, -torch.inf)
            keys[model.space.filters :] = torch.inf
            self.redundant = model.structures & ~select(model.space, keys, limit, self.job.granularity)

    def after_step(self, model: ElasticModel) -> None:
        """Shrinks the redundant groups; after the last step of the period they are zero."""
        if self.redundant is None:
            return
        if self.masks is None:
            self.masks = group_masks(model, self.redundant)
        left = self.length - self.period[1]
        with torch.no_grad():
            for name, mask in self.masks:
                model.network.get_parameter(name).mul_(torch.where(mask, (left - 1) / left, 1.0))

    def remove(self, model: ElasticModel) -> None:
        """Takes the redundant groups, which are zero, out of the network."""
        if self.redundant is not None:
            model.resize(model.structures & ~self.redundant)
            self.redundant = self.masks = None

    def state_dict(self) -> dict[str, Any]:
        """What is redundant."""
        return {"redundant": self.redundant}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on with what is redundant."""
        self.redundant, self.masks = state["redundant"], None


def saliency(model: ElasticModel) -> Tensor:
    """How much each group matters to the loss, shape (structures,); weights have their gradients."""
    weights = model.filter_sums(lambda weight: weight.detach().square(), of=GROUP)
    gradients = model.filter_sums(lambda weight: gradient(weight).square(), of=GROUP)
    products = model.filter_sums(lambda weight: weight.detach() * gradient(weight), of=GROUP)
    sizes = model.filter_sums(lambda weight: torch.ones_like(weight.detach()), of=GROUP)
    norms = weights.sqrt()
    cosines = products / (norms + 1e-8) / (gradients.sqrt() + 1e-8)
    scores = [norms, norms / (sizes + 1e-6), (cosines + 1) * (sizes > 0), products.abs(), products.square() / 2]
    return torch.stack([score / (score.norm() + 1e-8) for score in scores]).mean(0)


def gradient(weight: nn.Parameter) -> Tensor:
    """A weight's gradient; zero for one that the loss does not depend on."""
    return torch.zeros_like(weight.detach()) if weight.grad is None else weight.grad


def group_masks(model: ElasticModel, redundant: Tensor) -> list[tuple[str, Tensor]]:
    """Which entries of each weight belong to the zero-invariant groups of filters; masks fit their weights' shapes.

    Args:
        redundant: the filters, shape (structures,), bool.
    """
    space, masks, inputs = model.space, [], set(model.space.consumers)
    for name, weight in model.network.named_parameters():
        for dim in range(weight.ndim):
            kept = space.kept(model.structures, (name, dim))
            if kept is not None and (name, dim) not in inputs:
                owners = space.owners[name, dim][kept]
                mask = (owners >= 0) & redundant[owners.clamp(min=0)]
                masks.append((name, mask.view(-1, *[1] * (weight.ndim - 1 - dim)).to(weight.device)))
    return masks


class Oto(Method):
    """Train once, and be small on the way."""

    name = "oto"
    summary = "HESSO: groups of low saliency are driven to zero step by step early in the one training"
    family = "pruning"
    citation = "Chen et al., HESSO, arXiv 2409.09085; Only Train Once, arXiv 2107.07467 and 2303.06862"
    Settings = Settings

    def skip(self, task: Task, network: nn.Module) -> str | None:
        """Networks whose normalisations see several channels at once."""
        mixing = any(isinstance(module, (nn.LayerNorm, nn.GroupNorm)) for module in network.modules())
        return "its normalisations mix channels, so that no group can be zero without a trace" if mixing else None

    def run(self, job: Job) -> Run:
        """One training."""
        model = job.model()
        hesso = Hesso(job, self.settings)
        yield from job.fit(model, hesso)
        hesso.remove(model)
        return model.network
