"""Network slimming: an L1 price on the scales of the batch normalisations sorts the filters out while they train.

Liu, Li, Shen, Huang, Yan, Zhang, *Learning Efficient Convolutional Networks through Network Slimming*, ICCV 2017 (arXiv
1708.06519). The subgradient of ``strength`` x |scale| is added to the gradient of every scale; then one
threshold on the scales of the whole network decides which filters stay, and what is left is fine-tuned. Here the
threshold is the one that meets the budget. Several passes are ``slimming[rounds=3]``.

Published: strength 1e-4 for VGG and 1e-5 for ResNet-164 and DenseNet-40, sparse training and fine-tuning of 160 epochs
each, at batch 64, rate 0.1, a tenth of it after half and again after three quarters of the epochs, momentum 0.9; scales
start at 0.5, here too unless the start is a trained network. How far a price moves a scale depends on the length of the
run, so ``strength`` is what it would be in theirs: in a run whose steps and rates move a parameter half as far, it is
doubled (ours). They leave residual streams whole; here a filter with several scales, that of a stream or of a depthwise
convolution, has the largest of their absolute values (ours). Theirs has no lower limit on a layer, and warns that one
may lose all of its filters; here one filter stays, and removable layers do. Weight decay, which they put on the scales,
too, is the recipe's.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nasbench_grow.contract import (
    Callback,
    ElasticModel,
    Job,
    PruneAndTune,
    RoundsSettings,
    Stage,
    Task,
    check_positive,
    cut,
)

BatchNorm = nn.modules.batchnorm._BatchNorm
PUBLISHED_REACH = 160 * 782 * 0.1 * (0.5 + 0.25 * 0.1 + 0.25 * 0.01) / (1 - 0.9)
""":func:`reach` of the paper's sparse training: 160 epochs of 782 steps."""
SCALE = 0.5
"""What scales begin with: from one, the default price, which moves a scale by 0.66, would bring none to zero."""


def reach(job: Job, share: float) -> float:
    """How far a constant gradient of one moves a parameter in the first ``share`` of the run's schedule."""
    steps = max(1, round(share * job.total_steps))
    rates = (job.recipe.learning_rate_at((step + 1) / job.total_steps) for step in range(steps))
    return sum(rates) / (1 - job.recipe.momentum)


def without_scales(network: nn.Module) -> str | None:
    """Why no scales of a network can be priced; None: they can."""
    scaled = any(isinstance(module, BatchNorm) and module.affine for module in network.modules())
    return None if scaled else "the backbone has no batch normalisation whose scales could be priced"


@torch.no_grad()
def begin_with(scale: float, network: nn.Module) -> None:
    """Sets every scale of the network's batch normalisations."""
    for module in network.modules():
        if isinstance(module, BatchNorm) and module.affine:
            module.weight.fill_(scale)


class ScalePrice(Callback):
    """L1 on the scales of the batch normalisations, as a subgradient.

    Args:
        strength: what each scale's absolute value costs.
    """

    def __init__(self, strength: float) -> None:
        self.strength = strength

    def after_backward(self, model: ElasticModel) -> None:
        """Adds the price's subgradient."""
        for module in model.network.modules():
            if isinstance(module, BatchNorm) and module.weight is not None and module.weight.grad is not None:
                module.weight.grad.add_(module.weight.detach().sign(), alpha=self.strength)


class Scales:
    """The scales of the batch normalisations in the network that a model has now.

    Attributes:
        there: which structures have one, shape (structures,), bool.
    """

    def __init__(self, model: ElasticModel) -> None:
        space = model.space
        self.weights, owners = list[Tensor](), list[Tensor]()
        for name, module in model.network.named_modules():
            axis = (f"{name}.weight", 0)
            kept = space.kept(model.structures, axis) if isinstance(module, BatchNorm) else None
            if kept is not None:
                self.weights.append(module.weight)
                owners.append(space.owners[axis][kept])
        owner = torch.cat(owners)
        self.there = torch.zeros(len(space), dtype=torch.bool).index_fill(0, owner[owner >= 0], True)
        self._owned = torch.nonzero(owner >= 0).flatten().to(model.example.device)
        self._owner = owner[owner >= 0].to(model.example.device)

    def largest(self) -> Tensor:
        """The largest absolute scale of each filter, shape (structures,), 0 where there is none. Can be
        differentiated."""
        values = torch.cat(self.weights)[self._owned].abs()
        return values.new_zeros(len(self.there)).scatter_reduce(0, self._owner, values, "amax")


@dataclass(frozen=True)
class SlimmingSettings(RoundsSettings):
    """When the network is pruned, and how it trains before and after."""

    strength: float = 1e-5
    """Of the price, in a run of the paper's length."""

    def __post_init__(self) -> None:
        """Refuses a setting outside its range with a UserError."""
        super().__post_init__()
        check_positive(self, "strength")


class Slimming(PruneAndTune):
    """Train with priced scales, prune by one threshold on them, fine-tune."""

    name = "slimming"
    summary = "train dense with an L1 price on the norms' scales, prune by one threshold on them, fine-tune"
    citation = "Liu et al., Learning Efficient Convolutional Networks through Network Slimming, arXiv 1708.06519"
    Settings = SlimmingSettings
    version = 2  # scales begin at a half, as the paper's

    def skip(self, task: Task, network: nn.Module) -> str | None:
        """Networks without scales to price."""
        return without_scales(network)

    def keys(self, model: ElasticModel) -> Tensor:
        """The largest scale of each filter, shape (structures,), for one threshold; infinite for what has none."""
        scales = Scales(model)
        return scales.largest().detach().masked_fill(~scales.there.to(model.example.device), torch.inf)

    def prune(self, job: Job, model: ElasticModel, limit: float) -> None:
        """Removes the filters of the smallest scales."""
        cut(model, self.keys(model), limit, job.granularity)

    def dense(self, job: Job) -> Generator[Stage, None, ElasticModel]:
        """The dense network, its scales priced; a trained one goes through the beginning of the schedule again."""
        share, trained = self.settings.dense_share, self.settings.start == "trained"
        model = job.model(job.source.network() if trained else None)
        if not trained:
            begin_with(SCALE, model.network)
        epochs = share * job.epochs
        epochs = int(epochs) or epochs
        yield from job.fit(model, self.price(job), epochs=epochs, span=(0, share) if trained else None)
        return model

    def tune(
        self, job: Job, model: ElasticModel, callback: Callback | None = None, *, since: float, until: float = 1.0
    ) -> Generator[Stage, None, None]:
        """Fine-tuning, and before another round the scales are priced again."""
        callback = callback if until == 1 else self.price(job)
        yield from super().tune(job, model, callback, since=since, until=until)

    def price(self, job: Job) -> ScalePrice:
        """The price that moves a scale as far as the paper's does."""
        return ScalePrice(self.settings.strength * PUBLISHED_REACH / reach(job, self.settings.dense_share))
