"""What is measured: a dense backbone and sub-networks of it, made as the methods make them, and jobs to train them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasbench_grow.backbones import create
from nasbench_grow.base.errors import UserError
from nasbench_grow.contract import Batch, Job, Recipe, Split, TrainSplit
from nasbench_grow.contract.runtime import Runtime
from nasbench_grow.dev.bench.settings import Settings
from nasbench_grow.harness.setups import Setup
from nasbench_grow.structure.discovery import discover
from nasbench_grow.structure.selection import select, uniform_keys
from nasbench_grow.structure.space import Space
from nasbench_grow.structure.subnetwork import extract

CLASSES, CHANNELS = 10, 3
KINDS = {
    "dense": "the backbone as it is",
    "uniform": "the same share of filters in every group",
    "random": "filters and layers drawn at random (the shape of a network in the middle of growing)",
    "internal": "all filters of the residual streams, fewer inside the blocks",
    "depth": "all filters, fewer blocks (the last ones go first)",
}
"""How the structures of a measured network are chosen."""


@dataclass(frozen=True)
class Variant:
    """Which sub-network of a backbone."""

    kind: str
    share: float
    """MACs that it may have at most, as a share of the dense network's."""
    granularity: int


DENSE = Variant("dense", 1.0, 1)


def variants(space: Space, granularity: int) -> list[Variant]:
    """The sub-networks to time where ``granularity`` is the set-up's own; the dense network is the first."""
    found = [DENSE]
    for share in (0.5, 0.25):
        found += [Variant("uniform", share, step) for step in sorted({1, 4, 8, 16, granularity})]
        found.append(Variant("random", share, granularity))
        if any(layer.terminal for layer in space.layers):
            found.append(Variant("internal", share, granularity))
    if space.layers:
        found.append(Variant("depth", 0.5, granularity))
    return found


def structures(space: Space, variant: Variant) -> Tensor:
    """The structures of a variant, shape (structures,), bool."""
    if variant.kind == "dense":
        return space.full()
    macs = variant.share * space.macs(space.full())
    return select(space, _keys(space, variant.kind), macs, variant.granularity)


def backbone(name: str, settings: Settings) -> tuple[nn.Module, Space]:
    """A fresh dense network and its configuration space."""
    model = create(name, CLASSES, CHANNELS)
    return model, discover(model, torch.zeros(1, CHANNELS, settings.pixels, settings.pixels))


def sub_network(space: Space, model: nn.Module, present: Tensor, setup: Setup) -> nn.Module:
    """The network of ``present`` in training mode, cut from a dense model that lies where the set-up wants it."""
    return extract(space, setup.place(model), present).train()


def batch(settings: Settings, setup: Setup) -> tuple[Tensor, Tensor]:
    """Synthetic inputs and targets."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(settings.batch_size, CHANNELS, settings.pixels, settings.pixels, generator=generator)
    return setup.place(inputs), setup.place(torch.randint(CLASSES, (settings.batch_size,), generator=generator))


class OneBatch:
    """A training split that gives the same batch again and again."""

    def __init__(self, inputs: Tensor, targets: Tensor, steps: int) -> None:
        self.batch, self.steps = (inputs, targets), steps

    def __len__(self) -> int:
        return self.steps * len(self.batch[1])

    def steps_per_epoch(self, batch_size: int) -> int:
        """As many as were asked for."""
        return self.steps

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """The batch, so many times."""
        return (self.batch for _ in range(self.steps))

    def epoch(self, epoch: int, batch_size: int, seed: int) -> Iterator[Batch]:
        """The same in every epoch."""
        return self.batches(batch_size)

    def hold_out(self, share: float, batch_size: int = 1) -> tuple[TrainSplit, Split]:
        """Nothing is searched here."""
        raise UserError("one batch cannot be divided; measure a method that does not search")


def job(
    name: str,
    setup: Setup,
    data: Batch,
    *,
    budget: float,
    epochs: int,
    steps: int,
    learning_rate: float = 0.01,
    granularity: int | None = None,
    runtime: Runtime | None = None,
) -> Job:
    """A cell's job with one batch that lies where the set-up wants it; ``granularity`` None: the set-up's."""
    inputs, targets = data
    return Job(
        budget=budget,
        seed=0,
        epochs=epochs,
        granularity=granularity or setup.granularity,
        example=inputs[:1],
        recipe=Recipe(batch_size=len(targets), learning_rate=learning_rate),
        loss=F.cross_entropy,
        build=lambda: setup.place(create(name, CLASSES, CHANNELS)),
        train=OneBatch(inputs, targets, steps),
        runtime=runtime,
    )


def _keys(space: Space, kind: str) -> Tensor:
    """Keys for :func:`nasbench_grow.structure.selection.select` by which structures of this kind are chosen."""
    if kind == "random":
        return torch.rand(len(space), generator=torch.Generator().manual_seed(0))
    keys = uniform_keys(space)
    if kind == "internal":
        keys[_streams(space)] = torch.inf
    elif kind == "depth":
        keys[: space.filters] = torch.inf
        keys[space.filters :] = -torch.arange(len(space.layers), dtype=keys.dtype)
    return keys


def _streams(space: Space) -> Tensor:
    """Numbers of the filters that residual blocks add to."""
    owners = [space.owners[name, 0] for layer in space.layers for name in layer.terminal]
    numbers = torch.cat(owners).unique() if owners else torch.empty(0, dtype=torch.int64)
    return numbers[numbers >= 0]
