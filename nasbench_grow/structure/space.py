"""The two-level configuration space: which filters and layers of a network can be present or absent.

A *structure* is one removable thing: a filter (in general one slice through every tensor of a channel group) or a
layer. All structures of a network are numbered: the filters of the first group, of the second, ..., then the layers.
The state of the network is then one boolean vector ``present`` (m in the paper, section 3.1), and everything that the
method does - sampling, pricing, growing - is arithmetic on vectors of that length.

A :class:`Space` describes a network; it holds no weights. :func:`nasbench_grow.structure.discovery.discover` makes one
from any model, :mod:`nasbench_grow.structure.subnetwork` builds the networks that a ``present`` vector stands for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Structures = Literal["both", "filters", "layers"]
"""What is grown."""

Axis = tuple[str, int]
"""A dimension of a tensor: its name in ``model.state_dict()`` and the dimension's number."""


@dataclass(frozen=True)
class ChannelGroup:
    """Filters that are coupled one to one across tensors: a residual stream, the inside of a block, a plain layer."""

    name: str
    """The module that creates the group's channels (the first, where several are added up; with #2, #3, ... where one
    module makes the channels of several groups)."""
    start: int
    """Number of the group's first structure."""
    size: int
    """How many structures (filters) the full network has in this group."""
    layer: int | None
    """Index in :attr:`Space.layers` of the removable layer that encloses the group, if one does."""

    @property
    def structures(self) -> slice:
        """Where the group stands in a vector over all structures."""
        return slice(self.start, self.start + self.size)


@dataclass(frozen=True)
class Layer:
    """A part of the model whose removal leaves the identity: a residual block, ``y = x + m * g(x)``, or a plain layer,
    ``y = m * g(x) + (1 - m) * x``."""

    paths: tuple[str, ...]
    """Names of its modules: of a block one, of a plain layer the convolution and what follows it."""
    terminal: tuple[str, ...]
    """The tensors (weight and bias of a branch's last norm or convolution) that its gate scales; a plain layer is
    there or not, its gate scales nothing."""
    bypass: tuple[int, int] | None = None
    """Of a plain layer: the group of the channels that it takes in and of those that it gives out. Without the layer
    the latter are the former."""

    @property
    def name(self) -> str:
        """What the layer is called: the block's path, or ``layer`` and the convolution's."""
        return self.paths[0] if self.bypass is None else f"layer {self.paths[0]}"

    def holds(self, name: str) -> bool:
        """Whether a module or tensor of that name is part of the layer."""
        return any(name == path or name.startswith(path + ".") for path in self.paths)


@dataclass(frozen=True)
class Length:
    """Length of an axis: a constant plus a number of entries for each filter of some groups."""

    constant: int
    terms: tuple[tuple[int, float], ...]

    def __call__(self, counts: list[float]) -> float:
        return self.constant + sum(entries * counts[group] for group, entries in self.terms)


@dataclass(frozen=True)
class WeightCost:
    """MACs as a product: ``rate`` x the kept lengths of some axes.

    Of a weight, its outputs and inputs; of the products inside an attention layer, the features of its heads; of what
    else multiplies (two activations with each other), the axes that it runs over.
    """

    rate: float
    """MACs per entry of each of the axes, e.g. per (output, input) pair of a weight."""
    axes: tuple[Axis, ...]
    layer: int | None
    lengths: tuple[Length, ...] = ()
    """Of axes that are no tensor's of the model."""


@dataclass
class Space:
    """What can be present or absent in one network, and what it costs.

    Attributes:
        groups: the channel groups, in forward order.
        layers: the removable layers, in forward order.
        owners: for each axis that shrinks, the structure that owns each of its entries (-1: always there).
        gated: axes whose entries are scaled by their filter's gate: the affine parameters of the normalisations; where
            no normalisation follows, the weights and biases of the convolutions; the weights that take in the units of
            a recurrent layer or the heads of an attention layer.
        consumers: axes that run along what a weight takes in.
        fixed: what cannot be grown, and why.
        costs: the MACs of every weight, and of all other products.
        constant_macs: MACs that no structure changes.
        attributes: those in which modules keep the length of something that shrinks (module, attribute, and the place
            in it where it is a list or tuple), each with the owner of every entry that it counts.
        written: those that a module's code writes down (module, and :func:`nasbench_grow.structure.written.place`).
    """

    groups: list[ChannelGroup]
    layers: list[Layer]
    owners: dict[Axis, Tensor]
    gated: list[Axis]
    consumers: list[Axis]
    fixed: dict[str, str]
    shapes: dict[str, tuple[int, ...]]
    costs: list[WeightCost] = field(default_factory=list)
    constant_macs: float = 0.0
    attributes: dict[tuple[str, str, int | None], Tensor] = field(default_factory=dict)
    written: dict[tuple[str, str], Tensor] = field(default_factory=dict)

    @cached_property
    def filters(self) -> int:
        """Number of filter structures; the layers follow them."""
        return sum(group.size for group in self.groups)

    def __len__(self) -> int:
        """Number of structures: filters and layers."""
        return self.filters + len(self.layers)

    def layer_of(self, tensor: str) -> int | None:
        """Index of the removable layer that a tensor lies in, if any."""
        for index, layer in enumerate(self.layers):
            if layer.holds(tensor):
                return index
        return None

    def stages(self) -> list[Tensor]:
        """Numbers of the removable layers, those together that add to the same filters (the blocks of a stage), or
        that follow each other (plain layers of one width)."""
        stages: dict[str, list[int]] = {}
        first: dict[int, int] = {}
        for index, layer in enumerate(self.layers):
            if layer.bypass is None:
                owner = self.owners.get((layer.terminal[0], 0), torch.tensor([-1]))
                stage = f"adds to {int(owner[0])}"
            else:
                given, got = layer.bypass
                first[got] = first.get(given, given)
                stage = f"follows {first[got]}"
            stages.setdefault(stage, []).append(self.filters + index)
        return [torch.tensor(numbers) for numbers in stages.values()]

    def full(self) -> Tensor:
        """The dense network: every structure present. Shape (structures,), bool."""
        return torch.ones(len(self), dtype=torch.bool)

    def seed(self, structures: Structures = "both") -> Tensor:
        """The seed architecture: one filter in every group, no removable layer (section 3.2).

        Where only filters or only layers are to be grown, the others are all there.
        """
        present = torch.zeros(len(self), dtype=torch.bool)
        present[[group.start for group in self.groups]] = True
        present[: self.filters] |= structures == "layers"
        present[self.filters :] = structures == "filters"
        return present

    def layer_present(self, present: Tensor, layer: int | None) -> bool:
        """Whether a layer (None: the fixed part of the network) is there."""
        return layer is None or bool(present[self.filters + layer])

    def resolved(self, present: Tensor) -> Tensor:
        """``present`` with the channels that plain layers pass on where they are absent in place of their own."""
        if not self._bypasses:
            return present
        result, layers = present.clone(), present[self.filters :].tolist()
        for index, given, got in self._bypasses:
            if not layers[index]:
                result[self.groups[got].structures] = result[self.groups[given].structures]
        return result

    @cached_property
    def _bypasses(self) -> list[tuple[int, int, int]]:
        """Index of each plain layer and its two groups, in forward order."""
        return [(index, *layer.bypass) for index, layer in enumerate(self.layers) if layer.bypass]

    def effective(self, present: Tensor) -> Tensor:
        """``present`` without the filters whose layer is absent: what physically exists."""
        result, layers = present.clone(), present[self.filters :].tolist()
        for group in self.groups:
            if group.layer is not None and not layers[group.layer]:
                result[group.structures] = False
        return result

    def widths(self, present: Tensor) -> dict[str, int]:
        """Filters present in each group, by the group's name; 0 inside an absent layer."""
        now = self.effective(present)
        return {group.name: int(now[group.structures].sum()) for group in self.groups}

    def kept(self, present: Tensor, axis: Axis) -> Tensor | None:
        """Indices of the entries that an axis keeps, or None where it keeps all."""
        owner = self.owners.get(axis)
        if owner is None:
            return None
        return torch.nonzero((owner < 0) | self.resolved(present)[owner.clamp(min=0)]).flatten()

    def sizes(self, present: Tensor) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Name and shape of every tensor of the sub-network (section 3.2: what is absent does not exist)."""
        for name, shape in self.shapes.items():
            if self.layer_present(present, self.layer_of(name)):
                lengths = []
                for dim, length in enumerate(shape):
                    kept = self.kept(present, (name, dim))
                    lengths.append(length if kept is None else len(kept))
                yield name, tuple(lengths)

    def macs(self, present: Tensor) -> int:
        """Forward MACs of the sub-network for one input; equals :func:`count_macs` of the extracted network."""
        return self.macs_of(*self.counts(present))

    def counts(self, present: Tensor) -> tuple[list[float], list[bool]]:
        """The number of filters in each group and the presence of each layer: all that a cost depends on."""
        return [present[group.structures].sum().item() for group in self.groups], present[self.filters :].tolist()

    def macs_of(self, counts: Sequence[float], layers: Sequence[bool]) -> int:
        """MACs from what :meth:`counts` gives."""
        entries, constants, rates, layer = self._products
        lengths = constants + np.array(self._passed_on(counts, layers)) @ entries  # shape (axes, costs)
        there = np.array([*layers, True])[layer]
        return round(self.constant_macs + float((rates * there) @ lengths.prod(0)))

    @cached_property
    def _products(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The costs as arrays: of each of their axes the entries per filter of each group, shape (axes, groups, costs),
        and the constant length, shape (axes, costs); the rates and the layers (-1: none), shape (costs,)."""
        axes = max((len(cost.axes) + len(cost.lengths) for cost in self.costs), default=0)
        entries, constants = np.zeros((axes, len(self.groups), len(self.costs))), np.ones((axes, len(self.costs)))
        for number, (_, lengths) in enumerate(self._lengths):
            for axis, length in enumerate(lengths):
                constants[axis, number] = length.constant
                for group, each in length.terms:
                    entries[axis, group, number] += each
        rates = np.array([cost.rate for cost in self.costs])
        return (
            entries,
            constants,
            rates,
            np.array([-1 if cost.layer is None else cost.layer for cost in self.costs], int),
        )

    def kept_costs(self, counts: Sequence[float], layers: Sequence[bool]) -> Iterator[tuple[WeightCost, list[float]]]:
        """The costs that are there, each with the kept lengths of its axes."""
        counts = self._passed_on(counts, layers)
        for cost, lengths in self._lengths:
            if cost.layer is None or layers[cost.layer]:
                yield cost, [length(counts) for length in lengths]

    def _passed_on(self, counts: Sequence[float], layers: Sequence[bool]) -> list[float]:
        """``counts`` with those of the channels that absent plain layers pass on in place of their own."""
        passed = list(counts)
        for index, given, got in self._bypasses:
            if not layers[index]:
                passed[got] = passed[given]
        return passed

    @cached_property
    def _lengths(self) -> list[tuple[WeightCost, list[Length]]]:
        """The length of each axis of a cost as a function of the groups' filter counts."""
        return [(cost, [*map(self._length, cost.axes), *cost.lengths]) for cost in self.costs]

    def _length(self, axis: Axis) -> Length:
        name, dim = axis
        owner = self.owners.get(axis)
        if owner is None:
            return Length(self.shapes[name][dim], ())
        terms = []
        for index, group in enumerate(self.groups):
            entries = ((owner >= group.start) & (owner < group.start + group.size)).sum().item()
            if entries:
                terms.append((index, entries / group.size))
        return Length(int((owner < 0).sum()), tuple(terms))

    def marginal_macs(self, present: Tensor) -> Tensor:
        """MACs that one more filter of each group, or each layer, adds to the present network (c_i).

        Shape (structures,), float64. For a filter inside an absent layer: what it would add if the layer were there.
        """
        counts, layers = self.counts(present)
        result = torch.zeros(len(self), dtype=torch.float64)
        for index, group in enumerate(self.groups):
            shown = layers if group.layer is None else [*layers[: group.layer], True, *layers[group.layer + 1 :]]
            more = [*counts[:index], counts[index] + 1, *counts[index + 1 :]]
            result[group.structures] = self.macs_of(more, shown) - self.macs_of(counts, shown)
        for index in range(len(self.layers)):
            with_it = [*layers[:index], True, *layers[index + 1 :]]
            without = [*layers[:index], False, *layers[index + 1 :]]
            result[self.filters + index] = self.macs_of(counts, with_it) - self.macs_of(counts, without)
        return result
