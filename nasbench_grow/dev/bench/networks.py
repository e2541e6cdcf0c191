"""The networks that are measured: a dense backbone and sub-networks of it, made as the methods make them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nasbench_grow.backbones import create
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
    """The network of ``present`` in training mode, cut from a bank that lies where the set-up wants it."""
    return extract(space, setup.place(model), present).train()


def batch(settings: Settings, setup: Setup) -> tuple[Tensor, Tensor]:
    """Synthetic inputs and targets."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(settings.batch_size, CHANNELS, settings.pixels, settings.pixels, generator=generator)
    return setup.place(inputs), setup.place(torch.randint(CLASSES, (settings.batch_size,), generator=generator))


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
