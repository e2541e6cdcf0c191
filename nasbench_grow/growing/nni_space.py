"""The sub-networks of one network as a search space for the strategies of NNI's neural architecture search.

::

    space = GrowableSpace(timm.create_model("resnet18"), torch.zeros(1, 3, 224, 224), budget=0.5)
    experiment = NasExperiment(space, FunctionalEvaluator(train_and_evaluate), RegularizedEvolution(), config)

A sample says how wide every channel group is and which removable layers are there. The filters of a group are
exchangeable before training, so the widths are the whole architecture.

All networks of a space have one budget. Samples that are drawn dimension by dimension miss it: of those of ResNet-20,
8% are within 0.02 of a budget of 0.25, 0.1% of one of 0.5, and none of one of 0.75. So they are not rejected, they are
brought to the budget: all widths are scaled by one factor (see :meth:`GrowableSpace.at_budget`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from nni.mutable import Categorical, SampleValidationError, frozen_context
from nni.nas.nn.pytorch import ModelSpace
from torch import Tensor, nn

from nasbench_grow.base.errors import UserError
from nasbench_grow.growing.growing import check_budget
from nasbench_grow.structure.discovery import discover
from nasbench_grow.structure.selection import UNUSED, allowed_width, check_granularity, select
from nasbench_grow.structure.space import ChannelGroup
from nasbench_grow.structure.subnetwork import extract

Sample = dict[str, Any]
"""An architecture: the width of each channel group, whether each removable layer is there, and the ``budget``. The
width of a group inside a layer that is not there does not matter."""

CHOICES = 8
"""A group has at most so many widths to choose from: eighths of its full width, rounded to allowed ones."""


class GrowableSpace(ModelSpace):
    """All networks of one budget that are left of a dense one when filters and layers are taken away (section 3.1).

    Args:
        model: the dense network; it stays as it is.
        example: one input with a batch axis, for discovery and for counting.
        budget: MACs of every network of the space as a share of the dense network's, in (0, 1].
        granularity: of the widths (:func:`nasbench_grow.structure.selection.allowed_width`); 1: any width.

    Raises:
        UserError: nothing in the model can be grown, or the budget is outside (0, 1] or below what its smallest
            sub-network costs.
    """

    def __init__(self, model: nn.Module, example: Tensor, budget: float = 0.5, granularity: int = 8) -> None:
        super().__init__()
        self.dense, self.example = model, example
        check_granularity(granularity)
        self.budget, self.granularity = budget, granularity
        self.structures = discover(model, example)
        dense_macs = self.structures.macs(self.structures.full())
        self._limit = budget * dense_macs
        self._enough = self._limit - UNUSED * dense_macs
        check_budget(budget, self.structures, "both", self.structures.macs(self.structures.seed()) / max(dense_macs, 1))
        for group in self.structures.groups:
            self.add_mutable(Width(group, granularity))
        for layer in self.structures.layers:
            self.add_mutable(Categorical([True, False], label=layer.name))
        self.add_mutable(Budget(budget, self.at_budget))  # after all others: it changes their values

    def sample_of(self, present: Tensor) -> Sample:
        """The sample that says the same as ``present``, shape (structures,), but for which filters of a group it is."""
        sample: Sample = {group.name: int(present[group.structures].sum()) for group in self.structures.groups}
        for index, layer in enumerate(self.structures.layers):
            sample[layer.name] = self.structures.layer_present(present, index)
        return {**sample, BUDGET: self.budget}

    def sample_of_network(self, network: nn.Module) -> Sample:
        """The sample that a sub-network of the dense one is, by the shapes of its tensors; a group inside a layer that
        is gone has its full width.

        Args:
            network: what a method left of the dense network.
        """
        shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
        sample: Sample = {group.name: group.size for group in self.structures.groups}
        for (name, dim), owner in self.structures.owners.items():
            for group in self.structures.groups:
                own = (owner >= group.start) & (owner < group.start + group.size)
                if name in shapes and own.any() and bool((own | (owner < 0)).all()):  # no other group's on this axis
                    each = int(own.sum()) // group.size  # entries of a filter
                    sample[group.name] = (shapes[name][dim] - int((owner < 0).sum())) // each
        for layer in self.structures.layers:
            sample[layer.name] = not isinstance(network.get_submodule(layer.paths[0]), nn.Identity)
        return {**sample, BUDGET: self.budget}

    def at_budget(self, sample: Sample) -> Sample:
        """The sample with all widths scaled by one factor, so that its network costs the budget and not more.

        The layers stay as they are, unless they cannot use up the budget at full width (the first of the others join)
        or exceed it with one filter a group (the last of them leave). A sample that costs the budget already (or up to
        :data:`~nasbench_grow.structure.selection.UNUSED` less, which rounded widths leave) is returned as it is, so
        that bringing it to the budget twice is the same as once.
        """
        present = self.present(sample)
        while not self._is_at_budget(present):
            scaled = self._scaled(present)
            if self.structures.macs(scaled) <= self.structures.macs(present) <= self._limit:
                break  # a filter is too large a part of this network to come nearer
            present = scaled
        return self.sample_of(present)

    def freeze(self, sample: Sample) -> nn.Module:
        """The network of a sample, brought to the budget: the first filters of each group, with the dense weights.

        Args:
            sample: changed in place where it has to be brought to the budget.

        Raises:
            SampleValidationError: a group or layer is missing, or has a value that it cannot have.
            UserError: the sample is empty.
        """
        if not sample:
            raise UserError(
                "the sample is empty, as NNI 3.0's GridSearch leaves it in the raw format; "
                "use NasExperimentConfig('sequential', 'simplified') with GridSearch"
            )
        self.validate(sample)
        return extract(self.structures, self.dense, self.present(sample))

    @classmethod
    def create_fixed_module(cls, sample: Sample, *args: Any, **kwargs: Any) -> nn.Module:
        """What NNI's ``simplified`` format builds in place of a space with these arguments: the sample's network."""
        with frozen_context.bypass():
            return cls(*args, **kwargs).freeze(sample)

    def present(self, sample: Sample) -> Tensor:
        """The first filters of each group and the layers of a sample, shape (structures,), bool."""
        present = torch.zeros(len(self.structures), dtype=torch.bool)
        for group in self.structures.groups:
            present[group.start : group.start + sample[group.name]] = True
        for index, layer in enumerate(self.structures.layers):
            present[self.structures.filters + index] = sample[layer.name]
        return present

    def _is_at_budget(self, present: Tensor) -> bool:
        return self._enough <= self.structures.macs(present) <= self._limit

    def _scaled(self, present: Tensor) -> Tensor:
        """Widths in the proportions of ``present`` that cost the budget, and its layers, if they can."""
        keys = torch.full((len(self.structures),), -torch.inf)
        for group in self.structures.groups:
            width = int(present[group.structures].sum())
            keys[group.structures] = -(torch.arange(group.size) + 0.5) / width
        there = present.clone()
        there[: self.structures.filters] = False
        keys[there] = 1.0  # before any filter
        widest = present.clone()
        widest[: self.structures.filters] = True
        if self.structures.macs(widest) < self._enough:
            keys[~widest] = -float(len(self.structures))  # after every filter
        return select(self.structures, keys, self._limit, self.granularity)


class Width(Categorical):
    """How many filters a channel group has: a choice of a few, but any width is one that a sample may name."""

    def __init__(self, group: ChannelGroup, granularity: int) -> None:
        eighths = (max(1, group.size * part // CHOICES) for part in range(1, CHOICES + 1))
        widths = {allowed_width(width, group.size, granularity) for width in eighths}
        super().__init__(sorted(widths, reverse=True), label=group.name)  # NNI's default is the first: the full width
        self.size = group.size

    def check_contains(self, sample: Sample) -> SampleValidationError | None:
        """What is wrong with the sample's width, if anything."""
        width = sample.get(self.label)
        if isinstance(width, int) and 1 <= width <= self.size:  # scaled to the budget it need not be one of the few
            return None
        return super().check_contains(sample)


BUDGET = "budget"


class Budget(Categorical):
    """The budget of all samples, a choice of one, and what brings a sample to it.

    NNI 3.0 shows a space the sample that a strategy has drawn only to have it validated, and then records that very
    sample: so validating is where it is brought to the budget, in place. What NNI exports, and what evolution breeds
    from, is then the network that was trained.
    """

    def __init__(self, budget: float, at_budget: Callable[[Sample], Sample]) -> None:
        super().__init__([budget], label=BUDGET)
        self.at_budget = at_budget

    def check_contains(self, sample: Sample) -> SampleValidationError | None:
        """Whether the sample names this budget; brings it there."""
        problem = super().check_contains(sample)
        if problem is None:
            sample.update(self.at_budget(sample))
        return problem

    def random(self, memo: Sample | None = None, random_state: Any = None) -> float:
        """The budget; a memo of the other values is brought to it."""
        return self.values[0] if memo is None else self.default(memo)

    def grid(self, memo: Sample | None = None, granularity: int | None = None) -> Iterator[float]:
        """The budget, once. A memo of the other values is at it until the grid goes on, from what they were."""
        if memo is None:
            yield self.values[0]
            return
        before = dict(memo)
        yield self.default(memo)
        memo.clear()
        memo.update(before)
