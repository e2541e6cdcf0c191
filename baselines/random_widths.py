"""Random widths: the layers that another method kept, with the width of every channel group drawn at random.

Beside ``retrain`` it tells whether that method has learnt anything of widths: what lies between the two is not depth.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from nasbench_grow import Space, count_macs, discover, extract, rebuild
from nasbench_grow.baselines.random import first_that_fits, random_keys
from nasbench_grow.baselines.retrain import Retrain
from nasbench_grow.contract import Job

FIRST_DRAW = 1_000_000
"""Number of the draw of seed 0, far from those of ``random``: the same widths would be no independent control."""


class RandomWidths(Retrain):
    """Trains a network of known depth and of widths that nobody chose."""

    name = "random_widths"
    summary = "the layers that grow (or another method) kept, widths drawn at random, trained from scratch"
    family = "control"
    citation = "Li and Talwalkar, Random Search and Reproducibility for NAS, arXiv 1902.07638"
    version = 2  # other draws than those of random

    def choose(self, job: Job) -> nn.Module:
        """A sub-network as dear as the source's network: a function of that one's layers and of the job's seed."""
        model = job.build()
        space = discover(model, job.example)
        deep = rebuild(job.source.architecture, model)
        draws = _widths_of(space, deep, FIRST_DRAW + job.seed)
        present = first_that_fits(job, space, draws, count_macs(deep, job.example), "network of these layers")
        return extract(space, model, present)


def _widths_of(space: Space, deep: nn.Module, draw: int) -> Iterator[Tensor]:
    """Random keys, with the very layers of the network ``deep``."""
    gone = [isinstance(deep.get_submodule(layer.paths[0]), nn.Identity) for layer in space.layers]
    layer_keys = torch.where(torch.tensor(gone, dtype=torch.bool), -torch.inf, torch.inf)
    for keys in random_keys(space, draw):
        keys[space.filters :] = layer_keys
        yield keys
