"""Which entries of which tensors leave together, by Torch-Pruning's dependency graph, and the space that comes of it.

From the graph's answer every entry gets an owner. Grouped convolutions and group normalisations tie the channels of one
of their groups into one filter.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from nasbench_grow.base.calling import call, shapes
from nasbench_grow.base.devices import DEVICE_ERRORS
from nasbench_grow.base.errors import UserError
from nasbench_grow.base.trees import tensors
from nasbench_grow.structure.attention import (
    Attention,
    attention_layers,
    bridge_heads,
    features_axis,
    head_axes,
)
from nasbench_grow.structure.exactness import OUTPUT
from nasbench_grow.structure.layers import CONVS, NORMS
from nasbench_grow.structure.recurrent import (
    RECURRENT,
    features,
    filter_axes,
    input_axes,
    original_name,
    outputs,
    state_axes,
    with_stand_ins,
)
from nasbench_grow.structure.space import Axis, ChannelGroup, Layer, Space, WeightCost
from nasbench_grow.structure.tied import second_names
from nasbench_grow.structure.trial import Trial

if TYPE_CHECKING:
    from nasbench_grow.structure.dependencies import Coupled, DependencyGraph

MAKERS = (CONVS, nn.Linear, nn.Embedding, RECURRENT)
"""Modules that create channels."""
SLICEABLE = (*NORMS, *MAKERS, nn.PReLU)
NO_DIMENSION = -1
"""Number of a dimension that no tensor has: the inputs of a grouped convolution, the outputs of a recurrent layer."""
FIXED = 0
"""The number of the entries that always stay."""


class Couplings:
    """Numbers every entry of every axis and joins those that must leave together."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.modules = dict(model.named_modules())
        self.shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        self.offsets: dict[Axis, int] = {}
        self.lengths: dict[Axis, int] = {}
        self.total = 1  # the first number is FIXED
        self.rows: list[np.ndarray] = []
        self.columns: list[np.ndarray] = []
        self.roots: dict[str, np.ndarray] = {}
        self.order = {name: position for position, name in enumerate(self.modules)}
        self.fixed: dict[str, str] = {}
        self.consumers: dict[Axis, None] = {}
        self.late: list[Axis] = []
        self.own_makers: set[Axis] = set()
        self.second_names = second_names(model)

    def trace(self, example: Any) -> None:
        """Reads every dependency group of the model as it runs now."""
        from nasbench_grow.structure.dependencies import DependencyGraph, followable  # imports torch_pruning

        graph = DependencyGraph()
        attentions = attention_layers(self.model, example)
        traced = bridge_heads(with_stand_ins(self.model), attentions)
        try:
            with torch.enable_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                graph.build_dependency(
                    traced,
                    example,
                    forward_fn=call,
                    output_transform=lambda output: followable(tensors(output)),
                    verbose=False,
                )
        except DEVICE_ERRORS:
            raise
        except Exception as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise UserError(
                f"cannot trace {type(self.model).__name__} with an input of shape {shapes(example)}: {reason}; "
                "give a model and an example input that run together"
            ) from error
        originals = ((original_name(name), module) for name, module in traced.named_modules())
        names = {id(module): name for name, module in originals if name in self.modules}
        names |= {id(parameter): name for name, parameter in traced.named_parameters()}
        for name in _makers_of_output(self.model, example):
            self.fixed[name] = OUTPUT
        for name, module in self.modules.items():
            self._tie(name, module)
        for name, attention in attentions.items():
            self._tie_heads(name, attention)
        for group in graph.groups((CONVS, nn.Linear, nn.Embedding)):
            if id(group[0].dep.target.module) in names:
                self._couple(graph, group, names)
        self.fixed |= {names[id(module)]: reason for module, reason in graph.unresolved.items() if id(module) in names}

    def _couple(self, graph: DependencyGraph, group: list[Coupled], names: dict[int, str]) -> None:
        """Joins the entries of a dependency group, on whichever side of their modules they are; ``names`` are those of
        the traced modules and parameters, by identity."""
        root = names[id(group[0].dep.target.module)]
        root_ids = self._root(root)
        for item in group:
            target, handler = item.dep.target.module, item.dep.handler
            if id(target) not in names:
                continue
            name = names[id(target)]
            if isinstance(target, nn.Parameter):
                axes: Iterable[Axis] = [(name, item.dep.target.pruning_dim)]
            elif not isinstance(self.modules[name], SLICEABLE):
                if any(True for _ in target.parameters()):
                    self.fixed[root] = f"{name} is a {type(target).__name__}, which cannot be sliced"
                continue
            elif graph.is_out_channel_pruning_fn(handler):
                axes = _output_axes(name, self.modules[name])
                if isinstance(self.modules[name], MAKERS):
                    self._root(name)
            else:
                axes = list(_input_axes(name, self.modules[name]))
                if isinstance(self.modules[name], MAKERS):
                    self.consumers |= dict.fromkeys(axes)
            for axis in axes:
                if max(item.idxs, default=0) >= self._length(axis):
                    self.fixed[root] = f"its coupling to {axis[0]} could not be resolved"
                else:
                    self._join(self._ids(axis, item.idxs), root_ids[np.asarray(item.root_idxs, dtype=np.int64)])

    def _root(self, name: str) -> np.ndarray:
        """Notes a module as one that creates channels; the numbers of its outputs."""
        axis = next(iter(_output_axes(name, self.modules[name])))
        self.roots[name] = self._ids(axis, range(self._length(axis)))
        return self.roots[name]

    def _length(self, axis: Axis) -> int:
        name, dim = axis
        if dim == NO_DIMENSION:
            module = self.modules[name.rpartition(".")[0]]
            if isinstance(module, RECURRENT):
                return outputs(module)
            assert isinstance(module, CONVS)
            return module.in_channels
        return (self.shapes[name] if name in self.shapes else self.model.get_buffer(name).shape)[dim]

    def _ids(self, axis: Axis, index: Iterable[int]) -> np.ndarray:
        """Numbers of some entries of an axis, registered on first sight."""
        if axis not in self.offsets:
            self.offsets[axis], self.lengths[axis] = self.total, self._length(axis)
            self.total += self.lengths[axis]
        return self.offsets[axis] + np.fromiter(index, dtype=np.int64)

    def _join(self, one: np.ndarray, other: np.ndarray) -> None:
        self.rows.append(one)
        self.columns.append(other)

    def _tie(self, name: str, module: nn.Module) -> None:
        """Joins the channels of each group of a grouped convolution or a group normalisation, and all that belongs to
        one unit of a recurrent layer."""
        if isinstance(module, RECURRENT):
            self._tie_units(name, module)
            return
        if isinstance(module, CONVS) and module.groups > 1:
            axes = [next(iter(_output_axes(name, module))), (f"{name}.weight", NO_DIMENSION)]
            groups = module.groups
        elif isinstance(module, nn.GroupNorm) and module.affine and module.num_groups > 1:
            axes, groups = [(f"{name}.weight", 0)], module.num_groups
        else:
            return
        leaders = self._ids(axes[0], range(0, self._length(axes[0]), self._length(axes[0]) // groups))
        for axis in axes:
            length = self._length(axis)
            self._join(self._ids(axis, range(length)), np.repeat(leaders, length // groups))

    def _tie_units(self, name: str, layer: nn.RNNBase) -> None:
        output = self._root(name)
        filters = output[: features(layer)]
        self._join(output, np.resize(filters, len(output)))
        for axis, owner in filter_axes(name, layer):
            self._join(self._ids(axis, range(len(owner))), filters[owner])
            if axis[1] == 1:
                self.consumers[axis] = None
                self.late.append(axis)

    def _tie_heads(self, name: str, attention: Attention) -> None:
        """Joins all that belongs to one head."""
        joined = features_axis(name)
        features = self._ids(joined, range(self._length(joined)))
        leaders = features[:: len(features) // attention.num_heads]
        for axis, heads in head_axes(name, attention):
            self._join(self._ids(axis, range(len(heads))), leaders[heads])
        self.consumers[joined] = None
        self.late.append(joined)

    def space(self, trial: Trial, rates: dict[tuple[Axis, ...], float], rejected: dict[str, str]) -> Space:
        """The space in which every joined set of entries is one filter, without the rejected groups and layers."""
        labels = self._components()
        self._prepare(labels)
        fixed = {**self.fixed, **rejected}
        stuck = {int(label) for name in fixed.keys() & self.roots.keys() for label in labels[self.roots[name]]}
        stuck.add(int(labels[FIXED]))
        touched: dict[int, list[Axis]] = defaultdict(list)
        for axis, offset in self.offsets.items():
            for label in np.unique(labels[offset : offset + self.lengths[axis]]):
                touched[int(label)].append(axis)
        families: dict[tuple[Axis, ...], dict[int, str]] = defaultdict(dict)
        for root in sorted(self.roots, key=self._place):
            for label in labels[self.roots[root]].tolist():
                if label not in stuck:
                    families[tuple(touched[label])].setdefault(label, root)
        groups, owners = self._number(families, labels)
        found = [*trial.blocks, *self._passing(trial.plain, groups, owners)]
        layers = [layer for layer in found if layer.name not in rejected]
        for index, (group, axes) in enumerate(zip(groups, families, strict=True)):
            groups[index] = replace(group, layer=_enclosing(layers, index, [name for name, _ in axes]))
        consumers = [axis for axis in self.consumers if axis in owners]
        costs = [WeightCost(rate, axes, _enclosing(layers, None, [axes[0][0]])) for axes, rate in rates.items()]
        space = Space(groups, layers, owners, self._gated(owners), consumers, fixed, self.shapes, costs)
        self._complete(space, labels)
        for name, first in self.second_names.items():
            owners |= {(name, dim): owner for (named, dim), owner in owners.items() if named == first}
        space.constant_macs = trial.dense_macs - space.macs(space.full())
        return space

    def _prepare(self, labels: np.ndarray) -> None:
        """Notes what only some couplings know, before the filters are numbered."""

    def _complete(self, space: Space, labels: np.ndarray) -> None:
        """Adds what only some couplings know, once the space is there."""

    def _place(self, root: str) -> int:
        """Where a root, a module or a parameter of one, stands among the modules."""
        return self.order[root] if root in self.order else self.order[root.rpartition(".")[0]]

    def _components(self) -> np.ndarray:
        """Number of the joined set that each entry belongs to."""
        from scipy.sparse import coo_matrix
        from scipy.sparse.csgraph import connected_components

        rows = np.concatenate([*self.rows, np.empty(0, np.int64)])
        columns = np.concatenate([*self.columns, np.empty(0, np.int64)])
        graph = coo_matrix((np.ones(len(rows), dtype=np.int8), (rows, columns)), shape=(self.total, self.total))
        return np.asarray(connected_components(graph, directed=False)[1])

    def _number(
        self, families: dict[tuple[Axis, ...], dict[int, str]], labels: np.ndarray
    ) -> tuple[list[ChannelGroup], dict[Axis, Tensor]]:
        """Numbers the filters family by family (a family of filters that live in the same axes is a channel group);
        returns the groups and the owners of all axes."""
        structure = np.full(int(labels.max(initial=-1)) + 1, -1, dtype=np.int64)
        groups: list[ChannelGroup] = []
        start = 0
        for members in families.values():
            structure[list(members)] = np.arange(start, start + len(members))
            maker = next(iter(members.values()))
            before = sum(group.name.partition("#")[0] == maker for group in groups)
            name = f"{maker}#{before + 1}" if before else maker  # a module may make channels of several groups
            groups.append(ChannelGroup(name, start, len(members), layer=None))
            start += len(members)
        owners = {}
        for axis, offset in self.offsets.items():
            owner = structure[labels[offset : offset + self.lengths[axis]]]
            if axis[1] != NO_DIMENSION and (owner >= 0).any():
                owners[axis] = torch.from_numpy(owner)
        for name, module in self.modules.items():
            if isinstance(module, RECURRENT):
                owners |= {axis: owners[like] for axis, like in state_axes(name, module) if like in owners}
        return groups, owners

    def _passing(self, plain: list[Layer], groups: list[ChannelGroup], owners: dict[Axis, Tensor]) -> Iterator[Layer]:
        """The plain layers that can pass on what they take in: both sides are one whole group each, channel by channel
        in the same order, and nothing else makes channels of the second."""
        whole = {tuple(range(group.start, group.start + group.size)): index for index, group in enumerate(groups)}
        nothing = torch.empty(0)
        for layer in plain:
            weight = f"{layer.paths[0]}.weight"
            given, got = (whole.get(tuple(owners.get((weight, dim), nothing).tolist())) for dim in (1, 0))
            if given is not None and got is not None and given != got:
                first = groups[got].start
                makers = [name for name in self.roots if first in owners.get(self._made(name), nothing)]
                if [name for name in makers if not _is_grouped(self.modules[name])] == [layer.paths[0]]:
                    yield replace(layer, bypass=(given, got))

    def _made(self, name: str) -> Axis:
        """An axis that runs along the channels that a module makes."""
        return next(
            axis for axis in (*_output_axes(name, self.modules[name]), (f"{name}.weight_hh_l0", 1)) if axis[1] >= 0
        )

    def _gated(self, owners: dict[Axis, Tensor]) -> list[Axis]:
        """The axes that carry the filters' gates: those of affine norm parameters; where a filter meets no norm, of the
        weights and biases that create it (a scale before a normalisation would be divided away), but for recurrent
        units, which gates squash, and heads, in which a softmax weighs values: of the weights that take them in."""
        normed = torch.zeros(1 + max((int(owner.max()) for owner in owners.values()), default=0), dtype=torch.bool)
        late = normed.clone()
        for axis in self.late:
            if axis in owners:
                late[owners[axis][owners[axis] >= 0]] = True
        norms, makers = [], []
        for axis, owner in owners.items():
            name, dim = axis
            path, _, key = name.rpartition(".")
            module, mine = self.modules[path], owner[owner >= 0]
            if isinstance(module, NORMS) and key in ("weight", "bias"):
                norms.append(axis)
                normed[mine] = True
            elif (
                isinstance(module, nn.Embedding)
                or axis in self.own_makers
                or (dim == 0 and isinstance(module, (CONVS, nn.Linear)))
            ):
                makers.append(axis)
        bare = [axis for axis in makers if not (normed | late)[owners[axis].clamp(min=0)].any()]
        taken_in = [axis for axis in self.consumers if axis in owners and late[owners[axis].clamp(min=0)].any()]
        return norms + bare + taken_in


def _output_axes(name: str, module: nn.Module) -> Iterator[Axis]:
    """The axes of a module's tensors that run along its output channels."""
    if isinstance(module, RECURRENT):
        yield f"{name}.weight_hh_l0", NO_DIMENSION
        return
    second = isinstance(module, nn.Embedding) or (isinstance(module, CONVS) and module.transposed)
    for key, dim in (("weight", int(second)), ("bias", 0), ("running_mean", 0), ("running_var", 0)):
        tensor = getattr(module, key, None)
        if tensor is not None and not (isinstance(module, nn.PReLU) and tensor.numel() == 1):
            yield f"{name}.{key}", dim


def _input_axes(name: str, module: nn.Module) -> Iterator[Axis]:
    """The axes of a module's tensors that run along its input channels."""
    if isinstance(module, CONVS):
        yield f"{name}.weight", NO_DIMENSION if module.groups > 1 else 0 if module.transposed else 1
    elif isinstance(module, nn.Linear):
        yield f"{name}.weight", 1
    elif isinstance(module, RECURRENT):
        yield from input_axes(name, module)
    else:
        yield from _output_axes(name, module)


def _is_grouped(module: nn.Module) -> bool:
    """Whether a module only passes channels on, each group of them by itself."""
    return isinstance(module, CONVS) and module.groups > 1


def _enclosing(layers: list[Layer], group: int | None, tensors: list[str]) -> int | None:
    """The removable layer that makes the group, or else holds all of these tensors, if there is one."""
    for index, layer in enumerate(layers):
        if all(map(layer.holds, tensors)) or (layer.bypass is not None and layer.bypass[1] == group):
            return index
    return None


def _makers_of_output(model: nn.Module, example: Any) -> list[str]:
    """The modules whose output is the model's output (up to a view of it)."""
    outputs: dict[str, Tensor] = {}  # all kept alive: freed memory would be given out again, at the same address

    def note(name: str, output: Any) -> None:
        if isinstance(output, Tensor):
            outputs[name] = output

    hooks = [
        module.register_forward_hook(lambda _, __, output, name=name: note(name, output))
        for name, module in model.named_modules()
        if isinstance(module, (CONVS, nn.Linear))
    ]
    with torch.no_grad():
        last = {tensor.data_ptr() for tensor in tensors(call(model, example))}
    for hook in hooks:
        hook.remove()
    return [name for name, tensor in outputs.items() if tensor.data_ptr() in last]
