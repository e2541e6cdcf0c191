"""CHEX, channel exploration: prune and regrow channels again and again in one training from scratch.

Hou, Qin, Sun, Ma, Yuan, Xu, Chen, Jin, Xie, Kung, *CHEX: CHannel EXploration for CNN Model Compression*, CVPR 2022
(arXiv 2203.15794). Every ``period`` epochs each layer is pruned to its share of the target, which the scales of the
batch normalisations give, ranked across the network: the filters stay whose columns of the weight matrix
have the largest leverage scores, a column subset selection. Then some of the others are regrown, a
share that starts with ``regrowth`` and falls by a cosine, with the weights they had when they were last there: they
are drawn without replacement, by how far they are from the span of those that stay. Published for
ImageNet (their code): of 0.7 pruned 0.3 regrown, every 2 of 250 epochs until epoch 180, the L1 norm where a matrix has
fewer rows than columns. Residual streams keep their width, as in their code: the scales that add to one sink together,
so that a rank across the network would take nearly all of it. Ours: the target is of MACs, a filter with several norms
has the mean of their scales, and a period is one epoch, as runs are shorter here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nasbench_grow import Space, select, share_keys
from nasbench_grow.contract import Callback, ElasticModel, Job, Method, Run, Task, check_positive, check_share


@dataclass(frozen=True)
class Settings:
    """How much is explored, and for how long."""

    regrowth: float = 0.43
    """Share of the channels beyond the target that the first network has all the same, and that are regrown at first:
    theirs prunes 0.7 of all and regrows 0.3 of all."""
    period: float = 1.0
    """Epochs from one round to the next."""
    explored_share: float = 0.72
    """Share of the run after which the structure stays."""

    def __post_init__(self) -> None:
        """Refuses a setting outside its range with a UserError."""
        check_share(self, "regrowth", "explored_share")
        check_positive(self, "period")


class Exploring(Callback):
    """Prunes and regrows while the network trains."""

    def __init__(self, job: Job, settings: Settings) -> None:
        self.job, self.settings = job, settings
        self.draws = torch.Generator().manual_seed(job.seed)

    def before_step(self, model: ElasticModel, step: int, steps: int) -> None:
        """The first network, the rounds, and the last one, which regrows nothing."""
        last = max(1, round(self.settings.explored_share * steps))
        period = max(1, round(self.settings.period * self.job.steps_per_epoch))
        if step > last or (step < last and step % period):
            return
        regrowth = self.settings.regrowth * (1 + math.cos(math.pi * step / last)) / 2
        if step == 0:
            norms = model.filter_sums(lambda weight: weight.detach().abs())
            keys = share_keys(model.space, norms.cpu()).masked_fill(residual(model), torch.inf)
            model.resize(with_more(model.space, self.within_budget(model.space, keys), keys, regrowth))
        else:
            model.resize(self.explored(model, regrowth))

    def explored(self, model: ElasticModel, regrowth: float) -> Tensor:
        """What of the network stays, and what is regrown beside it."""
        space = model.space
        scales = mean_scales(model).masked_fill(residual(model), torch.inf)
        within = self.within_budget(space, scales)
        more = with_more(space, within, scales, regrowth)
        norms = model.filter_sums(lambda weight: weight.detach().abs()).cpu()
        now = grams(space, model.network, model.structures)
        (whole,) = model.variants([space.full()])  # with the last weights of all that is not there
        ever = grams(space, whole, space.full())
        present = within.clone()
        for index, group in enumerate(space.groups):
            there, width = model.structures[group.structures], int(within[group.structures].sum())
            worth = norms[group.structures]
            if index in now and now[index][1] >= int(there.sum()):
                worth = leverage_scores(now[index][0], width).cpu()
            kept = torch.argsort(worth.masked_fill(~there, -torch.inf), descending=True, stable=True)[:width]
            chosen = torch.zeros(group.size, dtype=torch.bool)
            chosen[kept] = True
            free = int(more[group.structures].sum()) - width
            if free > 0:
                left = torch.nonzero(~chosen).flatten()
                far = distances(ever[index][0], chosen)[left] if index in ever else torch.ones(len(left))
                drawn = torch.multinomial(far.softmax(0), min(free, len(left)), generator=self.draws)
                chosen[left[drawn]] = True
            present[group.structures] = chosen
        return present

    def within_budget(self, space: Space, keys: Tensor) -> Tensor:
        """The structures of the highest keys that the budget allows."""
        return select(space, keys, self.job.budget * self.job.dense_macs, self.job.granularity)

    def state_dict(self) -> dict[str, Any]:
        """Where the draws stand."""
        return {"draws": self.draws.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on drawing."""
        self.draws.set_state(state["draws"])


def with_more(space: Space, within: Tensor, keys: Tensor, regrowth: float) -> Tensor:
    """``within`` and, of a share of the filters that it lacks, those of the highest keys; none at minus infinity."""
    more = round(regrowth * int((~within[: space.filters]).sum()))
    ranking = torch.argsort(keys.masked_fill(within, -torch.inf), descending=True, stable=True)[:more]
    present = within.clone()
    present[ranking[keys[ranking] > -torch.inf]] = True
    return present


def residual(model: ElasticModel) -> Tensor:
    """The filters of residual streams, which several convolutions add to, shape (structures,), bool."""
    space = model.space
    makers = torch.zeros(len(space))
    for name, module in model.dense.named_modules():
        owners = space.owners.get((f"{name}.weight", 0))
        if owners is not None and isinstance(module, nn.modules.conv._ConvNd) and module.groups == 1:
            makers[owners[owners >= 0].unique()] += 1
    return makers > 1


def mean_scales(model: ElasticModel) -> Tensor:
    """Mean absolute scale of the normalisations that follow each filter, shape (structures,): minus infinity for those
    that are not there, infinity for layers and for filters without a normalisation."""
    sums = model.filter_sums(lambda weight: weight.detach().abs(), of=("scale",)).cpu()
    numbers = model.filter_sums(lambda weight: torch.ones_like(weight.detach()), of=("scale",)).cpu()
    return torch.where(numbers > 0, sums / numbers, torch.inf).masked_fill(~model.structures, -torch.inf)


def grams(space: Space, network: nn.Module, present: Tensor) -> dict[int, tuple[Tensor, int]]:
    """Of each group that convolutions make, the inner products of its filters' weights and how many rows its weight
    matrix has: shape (group size, group size), float64, zero for absent filters. Depthwise weights do not count.
    """
    found: dict[int, tuple[Tensor, int]] = {}
    for name, module in network.named_modules():
        axis = f"{name}.weight", 0
        kept = space.kept(present, axis)
        if kept is None or not isinstance(module, nn.modules.conv._ConvNd) or module.groups > 1:
            continue
        owners = space.owners[axis][kept]
        rows = module.weight.detach().flatten(1).double()
        for index, group in enumerate(space.groups):
            mine = torch.nonzero((owners >= group.start) & (owners < group.start + group.size)).flatten()
            if len(mine):
                weights = rows.new_zeros(group.size, rows.shape[1])
                weights[(owners[mine] - group.start).to(rows.device)] = rows[mine.to(rows.device)]
                gram, height = found.get(index, (0.0, 0))
                found[index] = gram + weights @ weights.T, height + rows.shape[1]
    return found


def leverage_scores(gram: Tensor, rank: int) -> Tensor:
    """Squared norms of the rows of the first ``rank`` right singular vectors of X, which add up to ``rank``.

    Args:
        gram: X transposed times X, shape (columns, columns).
        rank: how many columns are to be chosen.
    """
    vectors = torch.linalg.eigh(gram).eigenvectors  # by rising eigenvalue
    return vectors[:, len(gram) - rank :].square().sum(1)


def distances(gram: Tensor, chosen: Tensor) -> Tensor:
    """How far each column of X is from the span of the chosen ones, shape (columns,), on the CPU."""
    gram = gram.cpu()
    across = gram[:, chosen]
    inside = torch.linalg.pinv(gram[chosen][:, chosen], hermitian=True)
    return (gram.diagonal() - ((across @ inside) * across).sum(1)).clamp(min=0).sqrt()


class Chex(Method):
    """Explore channels from scratch; no fine-tuning."""

    name = "chex"
    summary = "prune by leverage scores and regrow by importance sampling, again and again, in one training"
    family = "pruning"
    citation = "Hou et al., CHEX: CHannel EXploration for CNN Model Compression, arXiv 2203.15794"
    Settings = Settings

    def skip(self, task: Task, network: nn.Module) -> str | None:
        """Networks without batch normalisation."""
        scaled = any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
        return None if scaled else "the backbone has no batch normalisation whose scales could divide the budget"

    def run(self, job: Job) -> Run:
        """One training."""
        model = job.model()
        yield from job.fit(model, Exploring(job, self.settings))
        return model.network
