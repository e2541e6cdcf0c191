"""Random widths: the layers that another method kept, with the width of every channel group drawn at random.

Beside ``retrain`` it tells whether that method has learnt anything of widths: what lies between the two is not depth.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from nasbench_grow import UserError, count_macs, discover, extract, rebuild, select
from nasbench_grow.baselines.random import TRIES, UNSPENT, random_keys
from nasbench_grow.contract import FixedNetwork, Job, MethodName

GROW = MethodName("grow")


@dataclass(frozen=True)
class RandomWidthsSettings:
    """Whose layers are kept."""

    of: MethodName = GROW


class RandomWidths(FixedNetwork):
    """Trains a network of known depth and of widths that nobody chose."""

    name = "random_widths"
    summary = "the layers that grow (or another method) kept, widths drawn at random, trained from scratch"
    family = "control"
    citation = "Li and Talwalkar, Random Search and Reproducibility for NAS, arXiv 1902.07638"
    Settings = RandomWidthsSettings
    takes = "architecture"

    @property
    def source(self) -> str:
        """The cell whose depth it is."""
        return str(self.settings.of)

    def choose(self, job: Job) -> nn.Module:
        """A sub-network as dear as the source's network: a function of that one's layers and of the job's seed."""
        model = job.build()
        space = discover(model, job.example)
        deep = rebuild(job.source.architecture, model)
        gone = [isinstance(deep.get_submodule(layer.paths[0]), nn.Identity) for layer in space.layers]
        limit, enough = count_macs(deep, job.example), UNSPENT * space.macs(space.full())
        for keys in random_keys(space, job.seed):
            keys[space.filters :] = torch.where(torch.tensor(gone, dtype=torch.bool), -torch.inf, torch.inf)
            present = select(space, keys, limit, job.granularity)
            if limit - enough <= space.macs(present) <= limit:
                return extract(space, model, present)
        raise UserError(f"no random widths of budget {job.budget:g} were found in {TRIES} tries; give another budget")
