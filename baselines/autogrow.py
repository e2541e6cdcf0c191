"""AutoGrow: a shallow network gets a block per stage in turn, as long as that makes its validation accuracy better.

Wen, Yan, Chen, Li, *AutoGrow: Automatic Layer Growing in Deep Convolutional Networks*, KDD 2020 (arXiv 1906.02909).
From a seed without removable layers, a block joins the next stage every K epochs, at a constant large learning rate
and before the network has converged. Where the best validation accuracy rose by less than ``threshold`` within J
epochs, the stage that grew last stops for good; when all have stopped or are full, the network trains by the whole
schedule. A block starts at its initial weights, its last norm at random ones (GauInit, theirs), uniform ones or zeros.
In their code: growing by group, K of one epoch, the running maximum of the accuracy, 0.05 points, J of 100 epochs
(CIFAR) or 30 (ImageNet), then 200 (90) epochs of training, blocks up to 200 a stage. Its AdamInit is not offered.

Ours: K is such that the depth of the dense backbone, which is the deepest here, would be reached after ``growth`` of
the run, and J is shorter than theirs, or all stages were full before the first decision. Growth is judged on the search
split and billed as search, on top of the run's epochs, as theirs is. Widths stay at the share at which the full depth
would meet the budget. If growth stops earlier, all widths rise by one factor to meet it, and if even full widths do
not, more blocks join in turn.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nasbench_grow import Space, discover, select, uniform_keys
from nasbench_grow.contract import (
    Callback,
    ElasticModel,
    Job,
    Method,
    Run,
    Stage,
    Task,
    check_choices,
    check_positive,
    check_share,
)

Initialiser = Literal["gaussian", "uniform", "zero"]
UNSPENT = 0.01
"""Share of the dense MACs that full widths may leave of the budget; more is spent on blocks."""


@dataclass(frozen=True)
class Settings:
    """How fast the network becomes deep, and when it stops."""

    growth: float = 0.4
    """Share of the run after which the network is as deep as the dense one, if no stage stops: it sets K, the same for
    each block."""
    patience: float = 0.1
    """J as a share of the run: how long the validation score may go without rising by ``threshold``."""
    threshold: float = 0.0005
    """By how much the best score must rise within J: of an accuracy between 0 and 1, 0.05 points."""
    initialiser: Initialiser = "gaussian"
    """Of a new block's last norm, scale and shift: from N(0, 1), from U(0, 1), or zeros, which change no function."""

    def __post_init__(self) -> None:
        """Refuses a setting outside its range with a UserError."""
        check_choices(self, initialiser=Initialiser)
        check_share(self, "growth", "patience")
        check_positive(self, "threshold")


def at_depth(space: Space, layers: Tensor, limit: float, granularity: int) -> Tensor:
    """The structures with these layers, shape (layers,), bool, and the one share of all widths that costs ``limit``.

    Where full widths cost less, more layers join, one of each stage in turn.
    """
    present, dense = space.full(), space.macs(space.full())
    present[space.filters :] = layers
    turns = zip_longest(*(stage.tolist() for stage in space.stages()))
    for layer in (layer for turn in turns for layer in turn if layer is not None):
        if space.macs(present) >= limit - UNSPENT * dense:
            break
        present[layer] = True
    return select(space, uniform_keys(space).masked_fill(~present, -torch.inf), limit, granularity)


class Initialising(Callback):
    """Sets the last norms of new blocks; plain layers, and branches that end with a convolution, keep what they have.

    Args:
        initialiser: what they start as.
        seed: of the random numbers.
    """

    def __init__(self, initialiser: Initialiser, seed: int) -> None:
        self.initialiser, self.draws = initialiser, torch.Generator().manual_seed(seed)

    def __call__(self, model: ElasticModel, before: Tensor, after: Tensor) -> None:
        """Called by :meth:`ElasticModel.resize` with the structures before and after, shape (structures,)."""
        space, draw = model.space, torch.randn if self.initialiser == "gaussian" else torch.rand
        for layer, born in zip(space.layers, (after & ~before)[space.filters :].tolist(), strict=True):
            tensors = [model.dense.get_parameter(name).detach() for name in layer.terminal if born]
            if tensors and tensors[0].ndim == 1:
                for tensor in tensors:
                    drawn = draw(tensor.shape, generator=self.draws)
                    tensor.copy_(torch.zeros_like(drawn) if self.initialiser == "zero" else drawn)

    def state_dict(self) -> dict[str, Any]:
        """Where the draws stand."""
        return {"draws": self.draws.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on drawing."""
        self.draws.set_state(state["draws"])


class AutoGrow(Method):
    """Grow deep while it helps, then train."""

    name = "autogrow"
    summary = "a block joins each stage in turn while the validation score rises; then training by the whole recipe"
    family = "growing"
    citation = "Wen et al., AutoGrow: Automatic Layer Growing in Deep Convolutional Networks, arXiv 1906.02909"
    Settings = Settings

    def skip(self, task: Task, network: nn.Module) -> str | None:
        """Networks whose depth is fixed."""
        space = discover(network, task.example().to(next(network.parameters()).device))
        return None if space.layers else "the backbone has no removable layer, and depth is all that grows"

    def run(self, job: Job) -> Run:
        """The growth, a period at a time; then the training of what has grown."""
        settings, model = self.settings, job.model()
        space, limit = model.space, job.budget * job.dense_macs
        period = max(1, round(settings.growth * job.total_steps / len(space.layers))) / job.steps_per_epoch  # K, epochs
        patience = max(1, round(settings.patience * job.epochs / period))  # J, periods
        large = max((share / 100 for share in range(101)), key=job.recipe.learning_rate_at)
        initialising = Initialising(settings.initialiser, job.seed)
        present = at_depth(space, torch.ones(len(space.layers), dtype=torch.bool), limit, job.granularity)
        present[space.filters :] = False
        model.resize(present)

        def grow(before: tuple[list[float], list[list[int]]]) -> Generator[Stage, None, Any]:
            """A period: takes and gives the best score after each so far, and the layers that every stage may still
            get, that whose turn it is first, the one that grew last at the end."""
            best, to_grow = before
            yield from job.fit(model, epochs=period, span=(large, large), searching=True)
            best = [*best, max([*best[-1:], job.score(model.network)])]
            if len(best) > patience and best[-1] - best[-1 - patience] < settings.threshold:
                to_grow = to_grow[:-1]
            to_grow = [stage for stage in to_grow if stage]
            if not to_grow:
                return None
            present = model.structures.clone()
            present[to_grow[0][0]] = True
            model.resize(present, newborn=initialising)
            return best, [*to_grow[1:], to_grow[0][1:]]

        yield from job.rounds(model, grow, ([], [stage.tolist() for stage in space.stages()]), initialising)
        model.resize(at_depth(space, model.structures[space.filters :], limit, job.granularity))
        yield from job.fit(model)
        return model.network
