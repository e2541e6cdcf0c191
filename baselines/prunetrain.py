"""PruneTrain: a group lasso from the first step on, and channels that it has emptied leave while training goes on.

Lym, Choukse, Zangeneh, Wen, Sanghavi, Erez, *PruneTrain: Fast Neural Network Training by Dynamic Sparse Model
Reconfiguration*, SC 2019 (arXiv 1901.09290). In every matrix and convolution but depthwise ones, the Euclidean norms of
what makes each output channel and of what takes in each input channel are priced, all alike; the first step sets the
price so that it is ``ratio`` of loss and price together. Every ``interval`` those channels leave whose weights are all
below ``threshold``, in every layer that makes them or takes them in (channel union), and blocks that have none left.
Published in their code: ratio 0.2 (0.3 as an example), threshold 1e-4, an interval of 10 of 182 epochs (CIFAR).

Ours is how the budget is met. What is above it when ``pruning_share`` of the run is done is removed by one threshold on
the channels' mean norms, each in proportion to its group's mean; where the lasso gets there before, it ends there. From
then on the network stays and nothing is priced; theirs prices to the end. How far a price moves a norm grows with the
steps and their rates, of which the ratio says nothing: in runs much shorter than theirs the lasso empties few channels,
and a larger ratio only disturbs. Growing the batch as the network shrinks is left to the set-up (``-adaptive``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nasbench_grow import UserError
from nasbench_grow.contract import Callback, ElasticModel, Job, Method, Run, check_positive, check_share, cut

OF = ("creating", "consuming")
"""The weights that count."""


def depthwise(network: nn.Module) -> set[int]:
    """The ids of the weights that neither mix channels nor count."""
    convolutions = (module for module in network.modules() if isinstance(module, nn.modules.conv._ConvNd))
    return {id(module.weight) for module in convolutions if 1 < module.groups == module.in_channels}


def norms(model: ElasticModel) -> Tensor:
    """The sum over the layers of the Euclidean norms of what makes each channel and of what takes it in, shape
    (structures,)."""
    left_out = depthwise(model.network)
    return model.filter_sums(
        lambda weight: None if id(weight) in left_out else weight.square(),
        OF,
        each=lambda squares: (squares + 1e-8).sqrt(),  # smooth at zero, as in the published code
    )


def relative_norms(model: ElasticModel) -> Tensor:
    """The mean of the norms that :func:`norms` sums, by its own mean over the channels of the group; infinite for
    layers. Shape (structures,)."""
    left_out = depthwise(model.network)
    number = model.filter_sums(
        lambda weight: None if id(weight) in left_out else weight.detach(), OF, each=torch.ones_like
    )
    result = (norms(model).detach() / number.clamp(min=1)).cpu()
    for group in model.space.groups:
        own = result[group.structures]
        own /= own[model.structures[group.structures]].mean().clamp(min=1e-12)  # of an absent block there are none
    result[model.space.filters :] = torch.inf
    return result


def alive(model: ElasticModel, threshold: float) -> Tensor:
    """The structures that stay, shape (structures,), bool: channels of which a weight has reached the threshold, and
    blocks with such a channel; of each group that cannot go with its block, the channel with the largest norms."""
    space, left_out = model.space, depthwise(model.network)
    large = model.filter_sums(lambda weight: None if id(weight) in left_out else weight.detach().abs() >= threshold, OF)
    norm, present = relative_norms(model), model.structures & (large > 0).cpu()
    present[space.filters :] = model.structures[space.filters :]
    for group in space.groups:
        if present[group.structures].any():
            continue
        largest = group.start + int(norm[group.structures].argmax())
        present[largest] = True
        if group.layer is not None and space.layers[group.layer].bypass is None:
            present[space.filters + group.layer] = False
    return present


class Reconfiguring(Callback):
    """The lasso, and the removal of what it has emptied.

    Args:
        limit: MACs below which nothing is removed.
    """

    def __init__(self, settings: PruneTrainSettings, limit: float, granularity: int) -> None:
        self.settings, self.limit, self.granularity = settings, limit, granularity
        self.strength: Tensor | None = None  # of the price, once it is set

    def before_step(self, model: ElasticModel, step: int, steps: int) -> None:
        """Reconfigures where an interval is over."""
        if step and step % max(1, round(self.settings.interval * steps)) == 0 and model.macs > self.limit:
            present = alive(model, self.settings.threshold)
            if model.space.macs(present) > self.limit:
                model.resize(present)
            else:
                self.meet(model)

    def meet(self, model: ElasticModel) -> None:
        """Removes by norm what is above the limit."""
        cut(model, relative_norms(model), self.limit, self.granularity)

    def loss(self, model: ElasticModel, network: nn.Module, inputs: Any, targets: Tensor, loss: Any) -> Tensor:
        """The task's; the first one sets the price."""
        found = super().loss(model, network, inputs, targets, loss)
        if self.strength is None:
            ratio = self.settings.ratio
            self.strength = ratio / (1 - ratio) * found.detach().float() / norms(model).detach().sum()
        return found

    def penalty(self, model: ElasticModel) -> Tensor | None:
        """The lasso, as long as the budget is not met."""
        assert self.strength is not None
        return None if model.macs <= self.limit else self.strength * norms(model).sum()

    def state_dict(self) -> dict[str, Any]:
        """The price."""
        return {"strength": self.strength}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up the price."""
        self.strength = state["strength"]


@dataclass(frozen=True)
class PruneTrainSettings:
    """How strongly channels are emptied, and when those are removed."""

    ratio: float = 0.2
    """Share of the price in the objective, at the beginning."""
    threshold: float = 1e-4
    """Channels leave whose weights are all smaller in absolute value."""
    interval: float = 0.055
    """Share of the run after which emptied channels leave, again and again."""
    pruning_share: float = 0.5
    """Share of the epochs after which the budget is met."""
    tuning_rate: float = 1.0
    """Factor on the recipe's learning rate from then on."""

    def __post_init__(self) -> None:
        """Refuses a setting outside its range with a UserError."""
        check_positive(self, "threshold", "tuning_rate")
        check_share(self, "interval", "pruning_share")
        if not 0 < self.ratio < 1:
            raise UserError(f"ratio {self.ratio:g} is out of range: it is a share, 0 < ratio < 1")


class PruneTrain(Method):
    """Group lasso and reconfiguration while the network trains."""

    name = "prunetrain"
    summary = "group lasso while training, channels that it empties are removed on the way, the rest at half-time"
    family = "pruning"
    citation = (
        "Lym et al., PruneTrain: Fast Neural Network Training by Dynamic Sparse Reconfiguration, arXiv 1901.09290"
    )
    Settings = PruneTrainSettings

    def run(self, job: Job) -> Run:
        """One training; the lasso goes until the budget is met."""
        settings = self.settings
        model, limit = job.model(), job.budget * job.dense_macs
        lasso = Reconfiguring(settings, limit, job.granularity)
        epochs = settings.pruning_share * job.epochs
        yield from job.fit(model, lasso, epochs=int(epochs) or epochs)  # whole ones, if there are any
        if model.macs > limit:
            lasso.meet(model)
        yield from job.fit(model, rate=settings.tuning_rate)
        return model.network
