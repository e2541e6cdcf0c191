"""DepGraph: learn groups of coupled channels sparse, prune the groups of smallest norm, fine-tune; by Torch-Pruning.

Fang, Ma, Song, Bi Mi, Wang, *DepGraph: Towards Any Structural Pruning*, CVPR 2023 (arXiv 2301.12900). The pruner is
their library's own (``torch_pruning.pruner.GroupNormPruner``): it finds the groups, adds its regulariser to the
gradients of each step, in place of weight decay, and says what each channel of a group is worth, the squared norm of
all that belongs to it relative to the group's mean (``normalizer``: in the library, in their scripts for ImageNet and
without sparse learning; to the largest in those for CIFAR, which needs 100 epochs that bring the others to zero, or one
outlier costs a group nearly all). Its published knobs (their ``reproduce`` scripts for CIFAR):
``strength`` 5e-4, the least of a group shrunk ``2**4`` times as hard as the largest, ranking across the whole network,
in 400 small steps with new norms after each; 100 epochs with the regulariser at a tenth of the rate of training
(``sparse_rate``; at the full rate so strong a decay undoes what was learnt), 100 of fine-tuning at that tenth again,
where here the one schedule goes on. No layer loses more than ``max_pruning_ratio``: 0.7 in their scripts where most is
pruned (VGG-19 to a ninth of its MACs, in an older version; MobileNet-v2 and RegNet on ImageNet), 1 in those of
ResNet-56 to half of its MACs; a budget that needs more has more. It prunes a copy; the order in which channels leave
that, and what those are worth that are left, rank them for ``select``, which rounds the widths.
"""

from __future__ import annotations

import copy
from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from nasbench_grow import Space, UserError
from nasbench_grow.contract import (
    Callback,
    ElasticModel,
    Job,
    PruneAndTune,
    RoundsSettings,
    Stage,
    Task,
    check_choices,
    check_positive,
    check_share,
    cut,
)

if TYPE_CHECKING:
    from torch_pruning.pruner import GroupNormPruner

Normalizer = Literal["mean", "max"]

STEPS = 400
"""In how many steps the library would remove every channel there is."""


@dataclass(frozen=True)
class Settings(RoundsSettings):
    """What of the run is learnt sparse, and how strongly."""

    sparse_share: float = 0.25
    """Share of the epochs with the regulariser; they end where pruning begins."""
    sparse_rate: float = 0.1
    """Factor on the recipe's learning rate in those epochs."""
    strength: float = 5e-4
    """Of the regulariser: a factor on weights in their gradient, as weight decay is one, and as independent of size."""
    max_pruning_ratio: float = 0.7
    """Share of its channels that a layer may lose in a round, unless the budget needs more; 1: all but one."""
    normalizer: Normalizer = "mean"
    """What of its group a channel's squared norm is divided by, to be ranked across groups."""

    def __post_init__(self) -> None:
        """Refuses a setting outside its range with a UserError."""
        super().__post_init__()
        check_choices(self, normalizer=Normalizer)
        check_share(self, "sparse_share", "max_pruning_ratio")
        check_positive(self, "sparse_rate", "strength")
        if self.sparse_share > self.dense_share:
            raise UserError(
                f"sparse_share {self.sparse_share:g} is more than dense_share {self.dense_share:g}, which it is a "
                "part of; give a smaller one"
            )


class SparseLearning(Callback):
    """The library's regulariser takes the place of weight decay."""

    def __init__(self, pruner: GroupNormPruner) -> None:
        self.pruner = pruner

    def after_backward(self, model: ElasticModel) -> None:
        """Adds the regulariser to the gradients."""
        self.pruner.regularize(model.network)
        groups = model.optimizer.param_groups
        self.decays = [group["weight_decay"] for group in groups]
        for group in groups:
            group["weight_decay"] = 0.0

    def after_step(self, model: ElasticModel) -> None:
        """Puts weight decay back."""
        for group, decay in zip(model.optimizer.param_groups, self.decays, strict=True):
            group["weight_decay"] = decay


def make_pruner(space: Space, network: nn.Module, example: Tensor, settings: Settings) -> Any:
    """The library's pruner of a network, as its scripts make it."""
    import torch_pruning  # takes seconds, which a list of the methods need not wait for

    return torch_pruning.pruner.GroupNormPruner(
        network,
        example,
        torch_pruning.importance.GroupMagnitudeImportance(p=2, normalizer=settings.normalizer),
        reg=settings.strength,
        global_pruning=True,
        pruning_ratio=1.0,
        max_pruning_ratio=settings.max_pruning_ratio,
        iterative_steps=STEPS,
        ignored_layers=[network.get_submodule(name) for name in space.fixed],
    )


def removal_order(model: ElasticModel, limit: float, settings: Settings) -> Tensor:
    """When the library removes each filter, shape (structures,): the number of the step, from 1 on; of those that it
    leaves one more than the last and what they are worth to it; infinite for layers.

    It prunes a copy of the network, group by group, until that costs ``limit`` MACs at most.
    """
    space, network = model.space, copy.deepcopy(model.network)
    filters = {}  # numbers of those that a module still makes, in its order
    for name, module in network.named_modules():
        kept = space.kept(model.structures, (f"{name}.weight", 0))
        if kept is not None:
            filters[module] = space.owners[f"{name}.weight", 0][kept].tolist()
    order, step = torch.full((len(space),), torch.inf), 0
    for limits in (settings, replace(settings, max_pruning_ratio=1.0)):  # layers lose more where the budget needs it
        pruner = make_pruner(space, network, model.example, limits)
        for _ in range(STEPS):
            if space.macs(model.structures & order.isinf()) <= limit:
                break
            step, gone = step + 1, set[int]()
            for group in pruner.step(interactive=True):
                gone |= made(pruner, group, filters).keys()
                group.prune()
            order[list(gone)] = step
            filters = {module: [each for each in numbers if each not in gone] for module, numbers in filters.items()}
    order[: space.filters].clamp_(max=step + 2)
    for group in pruner.DG.get_all_groups(pruner.ignored_layers, pruner.root_module_types):
        left, worth = made(pruner, group, filters), pruner.estimate_importance(group).cpu()
        order[list(left)] = step + 1 + worth[list(left.values())]
    return order


def made(pruner: Any, group: Any, filters: dict[nn.Module, list[int]]) -> dict[int, int]:
    """The filters that a group of the library's is about, by their numbers, and the place of each in the whole group.

    Args:
        pruner: the library's.
        group: a group of its dependency graph.
        filters: numbers of those that each module makes, -1 for what is none.
    """
    return {
        filters[item.dep.target.module][index]: place
        for item in group.items
        if item.dep.target.module in filters and pruner.DG.is_out_channel_pruning_fn(item.dep.handler)
        for index, place in zip(item.idxs, item.root_idxs, strict=True)
        if filters[item.dep.target.module][index] >= 0 and place is not None
    }


class DepGraph(PruneAndTune):
    """Train, learn sparse, prune, fine-tune."""

    name = "depgraph"
    summary = "train dense, then with Torch-Pruning's group regulariser, prune by its group norms, fine-tune"
    citation = "Fang et al., DepGraph: Towards Any Structural Pruning, arXiv 2301.12900"
    Settings = Settings
    version = 3  # ranks by group means, no layer loses nearly all, removable layers stay where widths are rounded

    def skip(self, task: Task, network: nn.Module) -> str | None:
        """Recurrent networks: the library's importance and regulariser pass over their weights."""
        recurrent = any(isinstance(module, nn.RNNBase) for module in network.modules())
        return "Torch-Pruning's regulariser leaves recurrent weights out" if recurrent else None

    def prune(self, job: Job, model: ElasticModel, limit: float) -> None:
        """Last out, first in: what the library removes later is worth more."""
        cut(model, removal_order(model, limit, self.settings), limit, job.granularity)

    def dense(self, job: Job) -> Generator[Stage, None, ElasticModel]:
        """The dense network, trained and then learnt sparse."""
        settings = self.settings
        plain = settings.dense_share - settings.sparse_share
        trained = settings.start == "trained"
        model = job.model(job.source.network() if trained else None)
        space = model.space  # discovered first: the library's graph leaves marks that a copy would share
        if not trained:
            yield from job.fit(model, epochs=plain * job.epochs)
        learning = SparseLearning(make_pruner(space, model.network, job.example, settings))
        span = (plain, settings.dense_share) if trained else None
        epochs = settings.sparse_share * job.epochs
        yield from job.fit(model, learning, epochs=epochs, span=span, rate=settings.sparse_rate)
        return model
