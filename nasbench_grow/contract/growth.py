"""What methods have in common that grow the widths of a network on a schedule while it trains.

All of them begin with a narrow network of all layers and end with the network of ``uniform``: the same share of filters
in every channel group, at the budget. So the difference to that control is the growing alone, and the difference
between two of them is how newborn filters start.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from nasbench_grow.base.errors import UserError
from nasbench_grow.contract.callback import Callback
from nasbench_grow.contract.job import Job
from nasbench_grow.contract.method import Method, Run
from nasbench_grow.contract.settings import check_share
from nasbench_grow.structure.elastic import ElasticModel
from nasbench_grow.structure.selection import select, uniform_keys
from nasbench_grow.structure.space import Space


@dataclass(frozen=True)
class GrowthSettings:
    """From which network, when and in how many steps it grows; by default as ``grow`` does."""

    seed_share: float = 0.25
    """Width of the first network, as a share of the last one's in every channel group; at least one filter."""
    steps: int = 10
    """Growth steps, evenly over the time of growth; each adds the same number of filters."""
    begin: float = 0.0
    """Share of the run before the network grows."""
    growth: float = 0.05
    """Share of the run over which it grows; the last step is at the end of it."""

    def __post_init__(self) -> None:
        """Refuses a setting outside its range with a UserError."""
        check_share(self, "seed_share", "growth")
        if self.steps < 1:
            raise UserError(f"steps {self.steps} is out of range: give 1 or more")
        if not 0 <= self.begin < 1:
            raise UserError(f"begin {self.begin:g} is out of range: it is a share, 0 <= begin < 1")
        if self.begin + self.growth >= 1:
            raise UserError(
                f"begin {self.begin:g} and growth {self.growth:g} leave nothing of the run to train the last network; "
                "give two shares that add up to less than 1"
            )

    def stages(self) -> list[tuple[float, float]]:
        """When each network begins to train and how wide it is, from the first one (0, ``seed_share``) to the last one
        (..., 1): shares of the run, rising, and of the last network's widths."""
        done = [step / self.steps for step in range(self.steps + 1)]
        widths = [self.seed_share + (1 - self.seed_share) * share for share in done]
        return [(0.0, widths[0])] + [
            (self.begin + self.growth * share, width) for share, width in zip(done[1:], widths[1:], strict=True)
        ]


class Widening(Callback):
    """Makes a network wider, stage by stage; a subclass says how newborn filters start, and what else they need.

    Which stage it is follows from the step alone, so there is nothing here to resume.

    Args:
        job: the cell.
        model: to be grown; becomes the first stage's network.
        settings: whose :meth:`GrowthSettings.stages` are gone through.
    """

    def __init__(self, job: Job, model: ElasticModel, settings: GrowthSettings) -> None:
        self.job, self.settings = job, settings
        self.begins = [begin for begin, _ in settings.stages()]
        last = target(job, model.space)
        self.networks = [self.structures(model.space, last, share) for _, share in settings.stages()]
        """The structures of each stage, shape (structures,), bool."""
        model.resize(self.networks[0])

    def structures(self, space: Space, last: Tensor, share: float) -> Tensor:
        """The structures of a stage: all layers of the last network, and of each group's filters the first ones.

        Args:
            space: the configuration space.
            last: structures of the last network, shape (structures,).
            share: of its widths.
        """
        present = last.clone()
        for group in space.groups:
            filters = torch.nonzero(last[group.structures]).flatten()
            present[group.start + filters[max(1, round(share * len(filters))) :]] = False
        return present

    def stage(self, step: int, steps: int) -> int:
        """Number of the stage, from 0, that ``step`` of ``steps`` trains; the last one trains for a step at least."""
        return sum(step >= min(round(begin * steps), steps - 1) for begin in self.begins[1:])

    def before_step(self, model: ElasticModel, step: int, steps: int) -> None:
        """The growth steps."""
        present = self.networks[self.stage(step, steps)]
        if not torch.equal(present, model.structures):
            self.grow(model, present)

    def grow(self, model: ElasticModel, present: Tensor) -> None:
        """One growth step, to these structures, shape (structures,), bool."""
        model.resize(present, self.start)

    def start(self, model: ElasticModel, before: Tensor, after: Tensor) -> None:
        """Sets the entries of newborn filters, and what else must change with them, in ``model.dense``.

        Here nothing: they have the initial weights of the dense network. ``model.network`` is still the network of
        ``before``, with the very weights that ``model.dense`` has: run it on what ``job.calibrate`` gives, which is
        billed, if gradients are needed.

        Args:
            model: in the middle of :meth:`~nasbench_grow.contract.ElasticModel.resize`.
            before, after: its structures, shape (structures,), bool.
        """


def copy_filters(model: ElasticModel, origin: Tensor, present: Tensor) -> None:
    """Gives every filter all that another one has in ``model.dense``: what makes it, scales it and shifts it, its
    running statistics, and how its consumers take it in.

    Args:
        model: whose dense model is changed.
        origin: number of the filter that each one copies, shape (structures,); of the same channel group, and itself
            where nothing is copied.
        present: the layers to change, shape (structures,), bool; those that it lacks stay as they are.
    """
    copied = origin != torch.arange(len(origin))
    tensors = model.dense.state_dict()
    for (name, dim), owner in model.space.owners.items():
        if name not in tensors or not model.space.layer_present(present, model.space.layer_of(name)):
            continue
        entries = torch.nonzero((owner >= 0) & copied[owner.clamp(min=0)]).flatten()
        if len(entries):
            # The entries of one filter keep their order: a recurrent unit has one in each gate.
            ranked, order = torch.sort(owner, stable=True)
            rank = torch.argsort(order)[entries] - torch.searchsorted(ranked, owner[entries])
            source = order[torch.searchsorted(ranked, origin[owner[entries]]) + rank]
            tensor = tensors[name]
            entries, source = entries.to(tensor.device), source.to(tensor.device)
            tensor.index_copy_(dim, entries, tensor.index_select(dim, source))


def scale_consumers(model: ElasticModel, factor: Tensor, present: Tensor) -> None:
    """Multiplies what takes in each filter in ``model.dense`` by its ``factor``, shape (structures,): zero for a filter
    that nothing heeds. ``present`` is as for :func:`copy_filters`."""
    tensors = model.dense.state_dict()
    for name, dim in model.space.consumers:
        if model.space.layer_present(present, model.space.layer_of(name)):
            owner, tensor = model.space.owners[name, dim], tensors[name]
            factors = torch.where(owner >= 0, factor[owner.clamp(min=0)], 1.0).to(tensor)
            tensor.mul_(factors.view(-1, *[1] * (tensor.ndim - 1 - dim)))


def target(job: Job, space: Space) -> Tensor:
    """The structures of ``uniform`` at the job's budget, shape (structures,), bool."""
    return select(space, uniform_keys(space), job.budget * space.macs(space.full()), job.granularity)


class Growth(Method):
    """One training in which the network becomes wider; a subclass names the callback that does it."""

    family: ClassVar[Any] = "growing"
    Settings: ClassVar[type[Any]] = GrowthSettings
    Callback: ClassVar[type[Widening]] = Widening
    """Makes the network wider: takes job, model and settings."""

    def run(self, job: Job) -> Run:
        """One training, through all of the recipe's schedule."""
        model = job.model()
        yield from job.fit(model, self.Callback(job, model, self.settings))
        return model.network
