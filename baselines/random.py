"""A random architecture: the depth, and the width of every channel group, drawn from the whole space at the budget.

How far such networks lie apart is how much there is to win by choosing well (``docs/method.md``), and one of them is a
random search with a single trial.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nasbench_grow import Space, UserError, discover, extract, select
from nasbench_grow.contract import FixedNetwork, Job, check_types

SPREAD = 4.0
"""The shares of its filters that two groups keep differ by up to this factor, before rounding."""
TRIES = 1_000
UNSPENT = 0.015
"""Share of the dense MACs that a network may leave of its budget."""


@dataclass(frozen=True)
class RandomSettings:
    """Which of the random architectures."""

    draw: int | None = None
    """Number of the architecture; None: the run's seed, so that every seed has one of its own."""

    def __post_init__(self) -> None:
        """Refuses a setting outside its range with a UserError."""
        check_types(self)
        if self.draw is not None and self.draw < 0:
            raise UserError(f"draw {self.draw} is out of range: give 0 or more, or none")


class Random(FixedNetwork):
    """Trains one architecture that nobody chose."""

    name = "random"
    summary = "depth and the width of every group drawn at random, trained from the start"
    family = "control"
    citation = "Li and Talwalkar, Random Search and Reproducibility for NAS, arXiv 1902.07638"
    Settings = RandomSettings
    version = 4  # widths of groups are drawn, no longer filters; depth from the whole space

    def choose(self, job: Job) -> nn.Module:
        """A random sub-network of the budget's cost: a function of the draw and of the space."""
        model = job.build()
        space = discover(model, job.example)
        draw = job.seed if self.settings.draw is None else self.settings.draw
        limit = job.budget * space.macs(space.full())
        return extract(space, model, first_that_fits(job, space, random_keys(space, draw), limit, "network"))


def first_that_fits(job: Job, space: Space, draws: Iterable[Tensor], limit: float, kind: str) -> Tensor:
    """What the first keys select that leave no more than :data:`UNSPENT` of the ``limit`` (MACs).

    Raises:
        UserError: none of the ``draws`` do; it names the ``kind`` of what was drawn.
    """
    enough = limit - UNSPENT * space.macs(space.full())
    for keys in draws:
        present = select(space, keys, limit, job.granularity)
        if enough <= space.macs(present) <= limit:
            return present
    raise UserError(f"no random {kind} of budget {job.budget:g} was found in {TRIES} tries; give another budget")


def random_keys(space: Space, seed: int) -> Iterator[Tensor]:
    """Keys for :func:`nasbench_grow.select`, shape (structures,): at any price, the shares of the groups keep their
    ratios, log-uniform within :data:`SPREAD`; as many layers as a fair draw from none to all of them says stay."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(TRIES):
        keys = torch.full((len(space),), -torch.inf)
        for group, drawn in zip(space.groups, torch.rand(len(space.groups), generator=generator), strict=True):
            share = (torch.arange(group.size) + 0.5) / group.size
            keys[group.structures] = drawn * torch.tensor(SPREAD).log() - share.log()
        number = int(torch.randint(len(space.layers) + 1, (), generator=generator))
        chosen = torch.randperm(len(space.layers), generator=generator)[:number]
        keys[space.filters + chosen] = torch.inf
        yield keys
