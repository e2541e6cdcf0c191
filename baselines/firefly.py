"""Firefly: all candidates for growth join at once, learn a little, and those stay that a first-order score favours.

Wu, Liu, Stone, Liu, *Firefly Neural Architecture Descent: a General Approach for Growing Neural Networks*, NeurIPS 2020
(arXiv 2102.08574; code klightz/Firefly). Candidates are splits of a filter, f - d and f + d in its place with half of
its outgoing weights each, new filters with tiny outgoing weights, and new blocks that add nearly nothing. Only these
perturbations learn, d as one of a pair; then the derivative of the loss by the size of each is its score, and the most
negative ones stay. Published in their code (which grows widths alone): d from U(-0.1, 0.1), incoming weights of new
filters from N(0, 0.1) and outgoing ones from U(-0.01, 0.01), d and the incoming ones decayed, RMSprop at 1e-3 (alpha
0.9, momentum 0.1) for an epoch, scores over another, of 160 epochs between two growths; 35 % more filters each, the
most negative of all layers together; and 16 filters a layer at first, 70 new ones tried.

Ours: a growth step is of MACs, filters and blocks compete by score alone until it is spent. New filters and splits
share the room that the dense network leaves, a half each; new filters start with its initial weights, and their
outgoing ones are clamped to what they are drawn from (their code has such a clamp and does not call it), nothing is
decayed. Norms use the statistics of the batch, theirs are frozen, but a newborn filter has none yet. The recipe's one
schedule goes on, theirs restarts after each growth; so the network is full-grown after ``growth`` of the run. Plain
layers, which cannot add nearly nothing, are there from the start.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nasbench_grow import Space, UserError, select, uniform_keys
from nasbench_grow.contract import Batch, Callback, ElasticModel, Job, Method, Run, check_positive, check_share

SPLIT, OUTGOING = 0.1, 0.01
"""Half the widths of the intervals that d and the outgoing weights of new filters are drawn from."""
FILLING = -1e9
"""Key of filters that were no candidates: they join only where the candidates do not spend the budget."""


@dataclass(frozen=True)
class Settings:
    """From which network, how fast, and on how much data the network grows."""

    seed: float = 0.1
    """MACs of the first network as a share of the budget, if it had all blocks: it has the widths of such a network,
    and no block that could be left out."""
    steps: int = 4
    """Growth steps, evenly over the time of growth, each by the same factor of MACs."""
    growth: float = 0.2
    """Share of the run over which the network grows; the last step is at the end of it."""
    learning: float = 0.00625
    """Share of the run's steps for which the candidates of a growth step learn, a batch at least; as many score them.
    Theirs: one of 160 epochs."""
    rate: float = 1e-3
    """Learning rate of the perturbations."""

    def __post_init__(self) -> None:
        """Refuses a setting outside its range with a UserError."""
        check_share(self, "seed", "growth", "learning")
        check_positive(self, "rate")
        if self.growth == 1:
            raise UserError("growth 1 leaves nothing of the run to train the last network; give a share below 1")
        if self.steps < 1:
            raise UserError(f"steps {self.steps} is out of range: give 1 or more")


class Candidates:
    """The structures that could join a network, and what becomes of them.

    Args:
        space: the configuration space.
        before: what is there, shape (structures,), bool.
        draws: of everything random.

    Attributes:
        parents: for the number of each filter that could be split off, that of the filter it is split from.
        new: the numbers of the new filters.
        layers: indices of the new blocks.
        present: the network with all of them.
    """

    def __init__(self, space: Space, before: Tensor, draws: torch.Generator) -> None:
        self.space, self.draws, self.present = space, draws, before.clone()
        self.parents: dict[int, int] = {}
        self.new: list[int] = []
        self.layers: list[int] = torch.nonzero(~before[space.filters :]).flatten().tolist()
        self.present[space.filters :] = True
        for group in space.groups:
            if not space.layer_present(before, group.layer):
                continue
            there = group.start + torch.nonzero(before[group.structures]).flatten()
            free = (group.start + torch.nonzero(~before[group.structures]).flatten()).tolist()
            split = there[torch.randperm(len(there), generator=draws)][: (len(free) + 1) // 2].tolist()
            self.parents |= dict(zip(free, split, strict=False))
            self.new += free[len(split) :]
            self.present[group.structures] = True

    @property
    def terminal(self) -> list[str]:
        """The tensors that scale what the new blocks add."""
        return [name for index in self.layers for name in self.space.layers[index].terminal]

    def join(self, model: ElasticModel, before: Tensor, after: Tensor) -> None:
        """Writes them into the dense model: a ``newborn`` of :meth:`ElasticModel.resize`."""
        for name, tensor, dim in axes(self.space, model.dense.state_dict()):
            owner = self.space.owners[name, dim]
            (children, parents), (fresh, _) = self.pairs(owner, self.parents, tensor), entries(owner, self.new, tensor)
            values = tensor.index_select(dim, parents)
            if (name, dim) in self.space.consumers:
                values = values / 2
                tensor.index_copy_(dim, parents, values)
                tensor.index_copy_(dim, fresh, self.uniform(tensor.index_select(dim, fresh), OUTGOING))
            elif tensor.ndim > 1:
                apart = self.uniform(values, SPLIT)
                tensor.index_copy_(dim, parents, values + apart)
                values = values - apart
            tensor.index_copy_(dim, children, values)
        for name in self.terminal:
            model.dense.get_parameter(name).detach().zero_()

    def leave(self, model: ElasticModel, before: Tensor, after: Tensor) -> None:
        """Puts filters together again whose split is not in ``after``: a ``newborn`` of ElasticModel.resize."""
        undone = {child: parent for child, parent in self.parents.items() if not after[child]}
        for name, tensor, dim in axes(self.space, model.dense.state_dict()):
            children, parents = self.pairs(self.space.owners[name, dim], undone, tensor)
            both = tensor.index_select(dim, parents) + tensor.index_select(dim, children)
            tensor.index_copy_(dim, parents, both if (name, dim) in self.space.consumers else both / 2)

    def pairs(self, owner: Tensor, parents: dict[int, int], like: Tensor) -> tuple[Tensor, Tensor]:
        """Where on an axis the split-off filters lie, and where, entry by entry, those that they are split from."""
        return entries(owner, list(parents), like)[0], entries(owner, list(parents.values()), like)[0]

    def uniform(self, like: Tensor, half: float) -> Tensor:
        """Uniform numbers between minus and plus ``half``."""
        return (half * (2 * torch.rand(like.shape, generator=self.draws) - 1)).to(like)


def axes(space: Space, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor, int]]:
    """The axes of the tensors whose entries belong to filters: name, tensor, dimension."""
    for name, tensor in tensors.items():
        yield from ((name, tensor, dim) for dim in range(tensor.ndim) if (name, dim) in space.owners)


def entries(owner: Tensor, numbers: list[int], like: Tensor) -> tuple[Tensor, Tensor]:
    """Places on an axis of the filters with these numbers, filter by filter, and the number that each belongs to."""
    wanted = torch.tensor(numbers, dtype=torch.long)
    which, places = torch.nonzero(wanted[:, None] == owner, as_tuple=True)
    return places.to(like.device), wanted[which].to(like.device)


class Perturbations:
    """What of a network with all candidates learns, and how much each brings.

    Args:
        model: the network with all candidates.
        candidates: them.
    """

    def __init__(self, model: ElasticModel, candidates: Candidates) -> None:
        space, self.candidates = model.space, candidates
        self.size = len(space)
        self.weights = dict(model.network.named_parameters())
        self.free = {name: torch.zeros_like(weight, dtype=torch.bool) for name, weight in self.weights.items()}
        self.pairs: list[tuple[str, int, Tensor, Tensor, Tensor]] = []
        """Name, dimension, places of split-off filters and of their parents, numbers of the former."""
        self.outgoing: list[tuple[str, int, Tensor, Tensor]] = []
        """Name, dimension, places and numbers of new filters."""
        for name, weight, dim in axes(space, self.weights):
            if weight.ndim == 1:
                continue
            owner, kept = space.owners[name, dim], space.kept(model.structures, (name, dim))
            owner = owner if kept is None else owner[kept]
            places, numbers = entries(owner, candidates.new, weight)
            self.free[name].index_fill_(dim, places, True)
            if (name, dim) in space.consumers:
                self.outgoing.append((name, dim, places, numbers))
            else:
                children, parents = candidates.pairs(owner, candidates.parents, weight)
                numbers = entries(owner, list(candidates.parents), weight)[1]
                self.pairs.append((name, dim, children, parents, numbers))
        for name in candidates.terminal:
            self.free[name].fill_(True)

    def keep_gradients(self) -> None:
        """Leaves the gradients of the perturbations alone: of a pair, opposite ones."""
        kept = {name: torch.where(self.free[name], weight.grad, 0) for name, weight in self._learning()}
        for name, dim, children, parents, _ in self.pairs:
            gradient, free = self.weights[name].grad, self.free[name]
            if gradient is None:
                continue
            apart = (gradient.index_select(dim, parents) - gradient.index_select(dim, children)) / 2
            for places, part in ((parents, apart), (children, -apart)):
                old = kept[name].index_select(dim, places)
                kept[name].index_copy_(dim, places, torch.where(free.index_select(dim, places), old, part))
        for name, weight in self._learning():
            weight.grad = kept[name]

    def clamp(self) -> None:
        """Keeps the outgoing weights of new filters as small as they began."""
        for name, dim, places, _ in self.outgoing:
            weight = self.weights[name].detach()
            weight.index_copy_(dim, places, weight.index_select(dim, places).clamp(-OUTGOING, OUTGOING))

    def scores(self) -> Tensor:
        """The derivative of the loss by the size of each candidate, from the gradients as they are, shape
        (structures,): of a split by that of d, of a new filter by that of its outgoing weights, of a block by that of
        all that it adds."""
        found = torch.zeros(self.size)
        for name, dim, children, parents, numbers in self.pairs:
            weight, gradient = self.weights[name].detach(), self.weights[name].grad
            if gradient is not None:
                apart = (weight.index_select(dim, parents) - weight.index_select(dim, children)) / 2
                slope = gradient.index_select(dim, parents) - gradient.index_select(dim, children)
                found.index_add_(0, numbers.cpu(), _sums(slope * apart, dim))
        for name, dim, places, numbers in self.outgoing:
            weight, gradient = self.weights[name].detach(), self.weights[name].grad
            if gradient is not None:
                found.index_add_(0, numbers.cpu(), _sums((gradient * weight).index_select(dim, places), dim))
        for index in self.candidates.layers:
            for name in self.candidates.space.layers[index].terminal:
                weight, gradient = self.weights[name].detach(), self.weights[name].grad
                if gradient is not None:
                    found[self.candidates.space.filters + index] += (gradient * weight).sum().float().cpu()
        return found

    def _learning(self) -> Iterator[tuple[str, Any]]:
        return ((name, weight) for name, weight in self.weights.items() if weight.grad is not None)


def _sums(values: Tensor, dim: int) -> Tensor:
    """Sums over all other dimensions, on the CPU."""
    return values.movedim(dim, 0).flatten(1).sum(1).float().cpu()


class Descent(Callback):
    """Grows the network at each growth step.

    Args:
        job: the cell.
        model: to be grown; becomes the first network.
        settings: when, and on how much data.
    """

    def __init__(self, job: Job, model: ElasticModel, settings: Settings) -> None:
        self.job, self.settings, self.grown = job, settings, 0
        self.draws = torch.Generator().manual_seed(job.seed)
        space = model.space
        present = select(space, uniform_keys(space), settings.seed * job.budget * job.dense_macs, job.granularity)
        present[space.filters :] = torch.tensor([layer.bypass is not None for layer in space.layers], dtype=torch.bool)
        model.resize(present)

    def before_step(self, model: ElasticModel, step: int, steps: int) -> None:
        """The growth steps that are due; the last network trains for a step at least."""
        settings = self.settings
        while self.grown < settings.steps:
            due = round(settings.growth * steps * (self.grown + 1) / settings.steps)
            if step < min(due, steps - 1):
                return
            self.grown += 1
            share = settings.seed ** (1 - self.grown / settings.steps)
            self.grow(model, share * self.job.budget * self.job.dense_macs)

    def grow(self, model: ElasticModel, limit: float) -> None:
        """All candidates join, learn and are scored; those stay that fit into ``limit`` MACs."""
        before, space = model.structures.clone(), model.space
        candidates = Candidates(space, before, self.draws)
        model.resize(candidates.present, newborn=candidates.join)
        keys = -self.scores(model, candidates)
        joining = torch.zeros(len(space), dtype=torch.bool)
        joining[[*candidates.parents, *candidates.new, *(space.filters + index for index in candidates.layers)]] = True
        keys = keys.masked_fill(~joining, FILLING).masked_fill(before, torch.inf)
        after = select(space, keys, limit, self.job.granularity)
        for group in space.groups:
            if not space.layer_present(after, group.layer):  # filters of absent blocks cost nothing: none joins
                after[group.structures] = before[group.structures]
        model.resize(after, newborn=candidates.leave)

    def scores(self, model: ElasticModel, candidates: Candidates) -> Tensor:
        """The candidates' scores, after they have learnt, shape (structures,)."""
        network, perturbations = model.network, Perturbations(model, candidates)
        kept = {name for name, _ in network.named_parameters()} | set(network.state_dict())
        carried = {name: buffer for name, buffer in network.named_buffers() if name not in kept}
        optimizer = torch.optim.RMSprop(network.parameters(), lr=self.settings.rate, alpha=0.9, momentum=0.1)
        for inputs, targets in self.batches(network):
            optimizer.zero_grad()
            self.job.loss(network(inputs), targets).backward()
            perturbations.keep_gradients()
            optimizer.step()
            perturbations.clamp()
        optimizer.zero_grad()
        for inputs, targets in self.batches(network):
            self.job.loss(network(inputs), targets).backward()
        for name, buffer in carried.items():  # what a recurrent network hands on is of the training's own batches
            path, _, key = name.rpartition(".")
            network.get_submodule(path)._buffers[key] = buffer
        return perturbations.scores()

    def batches(self, network: nn.Module) -> Iterator[Batch]:
        """Training batches for as many steps as are due, billed; the same samples again where they are few."""
        left = max(1, round(self.settings.learning * self.job.total_steps))
        while left > 0:
            for batch in self.job.calibrate(network, left * self.job.recipe.batch_size, backward=True):
                yield batch
                left -= 1

    def state_dict(self) -> dict[str, Any]:
        """How often the network has grown, and where the draws stand."""
        return {"grown": self.grown, "draws": self.draws.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on growing."""
        self.grown = state["grown"]
        self.draws.set_state(state["draws"])


class Firefly(Method):
    """Grow wider and deeper where the loss falls fastest."""

    name = "firefly"
    summary = "splits, new filters and new blocks join all at once, learn a little; the best first-order scores stay"
    family = "growing"
    citation = "Wu et al., Firefly Neural Architecture Descent, arXiv 2102.08574"
    Settings = Settings

    def run(self, job: Job) -> Run:
        """One training, through all of the recipe's schedule."""
        model = job.model()
        yield from job.fit(model, Descent(job, model, self.settings))
        return model.network
