"""Soft filter pruning: after every epoch the smallest filters are zeroed, and go on training with all the others.

He, Kang, Dong, Fu, Yang, *Soft Filter Pruning for Accelerating Deep Convolutional Neural Networks*, IJCAI 2018 (arXiv
1808.06866): the same share of every layer, by L2 norm, after every epoch; what the last one zeroes is
removed, without fine-tuning. From scratch, or from a trained network at a tenth of the learning rate
(``soft_filter[start=trained]``). ``soft_filter[asymptotic=0.125]`` is its later variant (He et al., arXiv 1808.07471):
the zeroed share rises over the epochs, to three quarters of the final one after an eighth of them.

Coupled filters are ranked by their weights in all layers that write them. Every epoch's network is judged as it would
be returned, cut to the filters that are not zeroed; what trains, and is billed, is dense.

The authors' code zeroes the weights of convolutions alone. A normalisation then still gives a constant for a zeroed
filter, which is lost when it is removed, and the first step brings the filter back at its full scale. Here its scale
and shift are zeroed too, so that removing it changes nothing; what is left of the optimizer's momentum starts it anew,
and it recovers slowly, in short epochs hardly ever (``recovered`` in the log). ``norms=kept`` does as their code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nasbench_grow import UserError, select, uniform_keys
from nasbench_grow.contract import Callback, ElasticModel, Job, Pruning, Run, check_choices, check_positive

Start = Literal["scratch", "trained"]
Norms = Literal["zeroed", "kept"]


@dataclass(frozen=True)
class SoftSettings:
    """Where training starts, and how filters are zeroed."""

    start: Start = "scratch"
    """``trained``: with the finished network of ``dense``, which is billed; the whole schedule follows all the same."""
    tuning_rate: float = 0.1
    """Factor on the recipe's learning rate where the start is a trained network."""
    asymptotic: float = 0.0
    """Share of the epochs after which three quarters of the filters to remove are zeroed; 0: all from the first on."""
    norms: Norms = "zeroed"
    """Whether a filter's scale and shift in normalisations, and its biases, are zeroed with it."""

    def __post_init__(self) -> None:
        """Refuses a setting outside its range with a UserError."""
        check_choices(self, start=Start, norms=Norms)
        check_positive(self, "tuning_rate")
        if not 0 <= self.asymptotic <= 0.5:
            raise UserError(f"asymptotic {self.asymptotic:g} is out of range: it is a share, 0 <= asymptotic <= 0.5")


def rising(progress: float, knee: float) -> float:
    """The share of the filters to remove that is zeroed when ``progress`` of the epochs are done: an exponential from 0
    to 1 that is at 3/4 after the share ``knee`` (arXiv 1808.07471); 1 throughout for a knee of 0."""
    if knee == 0:
        return 1.0
    base = 0.25
    for _ in range(100):  # (1 - base) / (1 - base ** (1 / knee)) = 3/4, by iterating to the fixed point
        base = 0.25 + 0.75 * base ** (1 / knee)
    return float((1 - base ** (progress / knee)) / (1 - base ** (1 / knee)))


class Zeroing(Callback):
    """Zeroes the filters of every group that are worth least, after every epoch.

    Args:
        job: the cell.
        model: the dense model.
        settings: of the method.
        worth: of the filters of a group, shape (filters,), from their weights, shape (filters, weights of one), and how
            many of them are to be removed.
    """

    def __init__(
        self, job: Job, model: ElasticModel, settings: SoftSettings, worth: Callable[[Tensor, int], Tensor]
    ) -> None:
        self.job, self.settings, self.worth = job, settings, worth
        self.present = select(model.space, uniform_keys(model.space), job.budget * job.dense_macs, job.granularity)
        """What the network would be cut to; at first only its widths mean anything."""
        self.epochs, self.recovered = 0, 0

    def after_epoch(self, model: ElasticModel) -> None:
        """Selects and zeroes."""
        self.epochs += 1
        share = rising(self.epochs / self.job.epochs, self.settings.asymptotic)
        before, present, zeroed = self.present, self.present.clone(), ~model.space.full()
        for group, filters in zip(model.space.groups, model.filter_vectors(), strict=True):
            removed = group.size - int(before[group.structures].sum())
            order = group.start + torch.argsort(self.worth(filters, removed), stable=True).cpu()
            present[group.structures] = True
            present[order[:removed]] = False
            zeroed[order[: round(share * removed)]] = True
        self.recovered = int((present & ~before).sum()) if self.epochs > 1 else 0
        self.present = present
        zero(model, zeroed, alone=self.settings.norms == "kept")

    def evaluated(self, model: ElasticModel) -> nn.Module:
        """The network without the filters that were selected."""
        return next(iter(model.variants([self.present])))

    def log(self, model: ElasticModel) -> dict[str, float]:
        """How many filters that were to be removed an epoch before no longer are."""
        return {"recovered": self.recovered}

    def state_dict(self) -> dict[str, Any]:
        """The selection."""
        return {"present": self.present, "epochs": self.epochs, "recovered": self.recovered}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes it up."""
        self.present, self.epochs, self.recovered = state["present"], state["epochs"], state["recovered"]


@torch.no_grad()
def zero(model: ElasticModel, zeroed: Tensor, *, alone: bool = False) -> None:
    """Zeroes what creates, scales and shifts these filters of the dense network, shape (structures,), bool; with
    ``alone`` only the weights that create them."""
    parameters, consumers = dict(model.network.named_parameters()), set(model.space.consumers)
    for (name, dim), owner in model.space.owners.items():
        if name in parameters and (name, dim) not in consumers and not (alone and parameters[name].ndim == 1):
            entries = torch.nonzero((owner >= 0) & zeroed[owner.clamp(min=0)]).flatten()
            parameters[name].index_fill_(dim, entries.to(parameters[name].device), 0)


class SoftFilter(Pruning):
    """Dense training in which the filters with the smallest norms are zeroed every epoch, and removed at the end."""

    name = "soft_filter"
    summary = "zero the filters of the smallest L2 norm every epoch, let them recover, remove them at the end"
    citation = "He et al., Soft Filter Pruning for Accelerating Deep CNNs, arXiv 1808.06866"
    Settings = SoftSettings

    def worth(self, filters: Tensor, removed: int) -> Tensor:
        """What the filters of a group are worth, shape (filters,); those worth least are zeroed. Here: L2 norms.

        Args:
            filters: their weights, shape (filters, weights of one).
            removed: how many are to be removed in the end.
        """
        return filters.norm(dim=1)

    def run(self, job: Job) -> Run:
        """The whole schedule, then the cut."""
        trained = self.settings.start == "trained"
        model = job.model(job.source.network() if trained else None)
        zeroing = Zeroing(job, model, self.settings, self.worth)
        yield from job.fit(model, zeroing, rate=self.settings.tuning_rate if trained else 1.0)
        model.resize(zeroing.present)
        return model.network
