"""Single path one-shot: train one random path of a supernet at a time, breed the best path by its shared weights.

Guo, Zhang, Mu, Heng, Liu, Wei, Sun, *Single Path One-Shot Neural Architecture Search with Uniform Sampling*, ECCV 2020
(arXiv 1904.00420). The dense network is the supernet. Every step of its training draws a path and trains the first
channels of the widths drawn, at a cost that is uniform around the budget: their sampling under a constraint draws it
from -12 to +9 % around it, in the code. Then evolution (algorithm 1) judges paths of the budget on samples held out,
each with its batch normalisations recalibrated, and the best one is trained from scratch by the whole recipe.
Published: ten widths a layer, half as many steps for the supernet as for the network found, 20 generations of 50, half
of them mutants (each gene with probability 0.1) and half crossovers of the ten best.

Ours: removable layers are genes, too; all widths of a path are multiplied by one factor that meets its cost, as hardly
a drawn path does; generations are fewer and smaller in short runs, so that judging costs a share of the run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nasbench_grow import SharedWeights, Space, UserError, extract, recalibrate, select
from nasbench_grow.contract import (
    SEARCH_SHARE,
    Callback,
    ElasticModel,
    Job,
    Method,
    Run,
    check_positive,
    check_share,
)

WIDTHS = 10
"""Widths of a group to draw from: so many equal parts of its filters (their 0.2 to 2.0 times the usual width)."""
CALIBRATION = 1_000
"""Samples that recalibrate a path, as many as arXiv 1903.05134 finds enough; of small data a tenth."""
TRIES = 10
"""Draws for a place in a generation until a path is at the budget and new, as in their code."""
UNSPENT = 0.015
"""Share of the dense MACs that a path may leave of the budget."""


def at_cost(space: Space, shares: Tensor, layers: Tensor, limit: float, granularity: int) -> Tensor:
    """The structures whose widths are in proportion to ``shares``, as many as ``limit`` allows.

    Args:
        space: the configuration space.
        shares: of each group's filters, above 0, shape (groups,). One factor on all of them meets the limit.
        layers: which removable layers are there, shape (layers,), bool. The first of the others join where these at
            their full widths would leave much of the limit.
        limit: MACs of one input.
        granularity: of the widths.
    """
    keys = torch.full((len(space),), -torch.inf)
    for group, share in zip(space.groups, shares.tolist(), strict=True):
        keys[group.structures] = -(torch.arange(group.size) + 0.5) / (group.size * share)
    keys[space.filters :][layers] = torch.inf
    widest = space.full()
    widest[space.filters :] = layers
    if space.macs(widest) < limit - UNSPENT * space.macs(space.full()):
        keys[space.filters :][~layers] = 2 * keys[: space.filters].min()  # after every filter
    return select(space, keys, limit, granularity)


def shared_score(job: Job, model: ElasticModel, present: Tensor) -> float:
    """How good the sub-network of the supernet's weights is on the search split, its normalisations recalibrated."""
    candidate = extract(model.space, model.dense, present)
    batches = job.calibrate(candidate, calibration_samples(job))
    recalibrate(candidate, (inputs for inputs, _ in batches))
    return job.score(candidate)


def calibration_samples(job: Job) -> int:
    """How many samples recalibrate a candidate."""
    return max(1, min(CALIBRATION, round(SEARCH_SHARE * len(job.train))))


def affordable(job: Job, share: float, macs: float) -> int:
    """How many candidates of so many MACs can be judged for a share of what the training at the budget takes, at least
    one."""
    training = 3 * job.budget * job.dense_macs * job.epochs * len(job.train)
    return max(1, int(share * training / (macs * (SEARCH_SHARE * len(job.train) + calibration_samples(job)))))


class Paths:
    """Random paths, their offspring, and what of the network they are.

    Genes have shape (groups + layers,): relative widths, tenths up to 1, then layers, 1 where one is there.
    """

    def __init__(self, space: Space, job: Job) -> None:
        self.space, self.job = space, job
        self.draws = torch.Generator().manual_seed(job.seed)

    def drawn(self) -> Tensor:
        """Genes: widths uniform, as many layers as a fair draw from none to all says."""
        widths = (1 + torch.randint(WIDTHS, (len(self.space.groups),), generator=self.draws)) / WIDTHS
        layers = torch.zeros(len(self.space.layers))
        number = int(torch.randint(len(layers) + 1, (), generator=self.draws))
        layers[torch.randperm(len(layers), generator=self.draws)[:number]] = 1
        return torch.cat([widths, layers])

    def present(self, genes: Tensor, cost: float) -> Tensor:
        """The structures of a path that may cost ``cost``, a share of the dense MACs; shape (structures,), bool."""
        groups = len(self.space.groups)
        limit = cost * self.job.dense_macs
        return at_cost(self.space, genes[:groups], genes[groups:] > 0, limit, self.job.granularity)

    def mutant(self, genes: Tensor, probability: float) -> Tensor:
        """Each gene drawn anew with a probability."""
        return torch.where(torch.rand(len(genes), generator=self.draws) < probability, self.drawn(), genes)

    def crossover(self, one: Tensor, other: Tensor) -> Tensor:
        """Each gene from either parent."""
        return torch.where(torch.rand(len(one), generator=self.draws) < 0.5, one, other)

    def uniform(self) -> float:
        """A number from 0 to 1."""
        return float(torch.rand((), generator=self.draws))

    def one_of(self, parents: list[Tensor]) -> Tensor:
        """Any of them."""
        return parents[int(torch.randint(len(parents), (), generator=self.draws))]


class OnePath(Callback):
    """Every step runs and trains another path of the supernet, and is billed for that."""

    def __init__(self, model: ElasticModel, paths: Paths, spread: float) -> None:
        self.paths, self.spread, self.shared = paths, spread, SharedWeights(model.space, model.dense)

    def before_step(self, model: ElasticModel, step: int, steps: int) -> None:
        """Draws the step's path."""
        around = 1 + self.spread * (2 * self.paths.uniform() - 1)
        self.path = self.paths.present(self.paths.drawn(), min(1.0, around * self.paths.job.budget))

    def forward(self, model: ElasticModel, network: nn.Module, inputs: Any) -> Any:
        """Output of the path."""
        return self.shared(self.path, inputs)

    def step_macs(self, model: ElasticModel) -> int:
        """MACs of the path."""
        return model.space.macs(self.path)

    def state_dict(self) -> dict[str, Any]:
        """Where the draws stand."""
        return {"draws": self.paths.draws.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on drawing."""
        self.paths.draws.set_state(state["draws"])


@dataclass(frozen=True)
class SinglePathSettings:
    """How the supernet is trained and searched."""

    supernet_share: float = 0.5
    """Epochs of the supernet, as a share of those that the path found trains for."""
    spread: float = 0.1
    """The paths trained cost the budget within this share of it."""
    search_share: float = 0.25
    """What judging paths may cost, as a share of the training of the path found."""
    population: int = 50
    """Paths of a generation, at most."""
    generations: int = 20
    """How many there are, the random one at the beginning included, at most."""
    parents_share: float = 0.2
    """Share of a generation's size: so many of the best paths have offspring."""
    mutation: float = 0.1
    """Probability that a gene of a mutant is drawn anew."""

    def __post_init__(self) -> None:
        """Refuses a setting outside its range with a UserError."""
        check_share(self, "supernet_share", "parents_share", "mutation")
        check_positive(self, "search_share")
        if not 0 <= self.spread < 1:
            raise UserError(f"spread {self.spread:g} is out of range: it is a share of the budget, 0 <= spread < 1")
        for name in ("population", "generations"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} {getattr(self, name)} is out of range: give 1 or more")


class SinglePathOneShot(Method):
    """Trains a supernet path by path, breeds the best path, trains it from scratch."""

    name = "single_path_one_shot"
    summary = "one supernet trained by random paths, evolution among them, the best path trained from scratch"
    family = "search"
    citation = "Guo et al., Single Path One-Shot Neural Architecture Search with Uniform Sampling, arXiv 1904.00420"
    Settings = SinglePathSettings

    def run(self, job: Job) -> Run:
        """The supernet, the evolution, the training of the best."""
        model = job.model()
        paths = Paths(model.space, job)
        one_path = OnePath(model, paths, self.settings.spread)
        yield from job.fit(model, one_path, epochs=self.settings.supernet_share * job.epochs, searching=True)
        best = self.evolved(job, model, paths)
        model = job.model(extract(model.space, job.build(), best))
        yield from job.fit(model)
        return model.network

    def size(self, job: Job) -> tuple[int, int]:
        """Paths of a generation, and how many generations: both shrink by one factor to what the run affords."""
        population, generations = self.settings.population, self.settings.generations
        paths = min(population * generations, affordable(job, self.settings.search_share, job.budget * job.dense_macs))
        smaller = max(1, int(math.sqrt(paths / (population * generations)) * population))
        return smaller, paths // smaller

    def evolved(self, job: Job, model: ElasticModel, paths: Paths) -> Tensor:
        """The best structures of all generations.

        Raises:
            UserError: no path drawn is at the budget.
        """
        space, limit = model.space, job.budget * job.dense_macs
        population, generations = self.size(job)
        seen: set[bytes] = set()
        found: list[tuple[float, Tensor, Tensor]] = []
        for _ in range(generations):
            ranked = sorted(found, key=lambda each: -each[0])
            parents = [genes for _, genes, _ in ranked[: max(2, round(self.settings.parents_share * population))]]
            for place in range(population):
                for tried in range(2 * TRIES):
                    genes = self.offspring(paths, parents if tried < TRIES else [], mutant=place < population // 2)
                    present = paths.present(genes, job.budget)
                    name = space.effective(present).numpy().tobytes()
                    if name not in seen and 0 <= limit - space.macs(present) <= UNSPENT * job.dense_macs:
                        seen.add(name)
                        found.append((shared_score(job, model, present), genes, present))
                        break
        if not found:
            raise UserError(f"no path of budget {job.budget:g} was found; give another budget")
        return max(found, key=lambda each: each[0])[2]

    def offspring(self, paths: Paths, parents: list[Tensor], *, mutant: bool) -> Tensor:
        """Genes of a mutant or a crossover; random ones where there are no parents."""
        if not parents:
            return paths.drawn()
        if mutant:
            return paths.mutant(paths.one_of(parents), self.settings.mutation)
        return paths.crossover(paths.one_of(parents), paths.one_of(parents))
