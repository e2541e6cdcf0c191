"""Finds the configuration space of any model: which channels are coupled, which layers can be removed, what they cost.

Torch-Pruning's dependency graph says which entries of which tensors must leave together; from its answer every entry
gets an owner. Grouped convolutions and group normalisations tie the channels of one of their groups into one filter.
Removable layers are found by their definition: with the last norm or convolution of the branch at zero, the block
returns its input. What the model does not survive (shown by running it) is fixed, with the reason.
"""

from __future__ import annotations

import copy
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from nasbench_grow.cost import count_macs, macs_by_module
from nasbench_grow.errors import UserError
from nasbench_grow.space import Axis, ChannelGroup, Layer, Space, WeightCost

CONVS = nn.modules.conv._ConvNd
NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm)
SLICEABLE = (*NORMS, CONVS, nn.Linear, nn.PReLU)
INPUTS = -1
"""Dimension number of a grouped convolution's inputs: they are coupled, but no dimension of the weight holds them."""


def discover(model: nn.Module, example: Tensor) -> Space:
    """The configuration space of ``model``, which is left as it is.

    Args:
        model: any module with one tensor input.
        example: one input with a batch axis, as the model takes it (its values do not matter).

    Raises:
        UserError: the model cannot be traced, or two of its modules share a weight.
    """
    from nasbench_grow.exactness import unfaithful

    _refuse_shared_weights(model)
    dense_macs = count_macs(model, example)
    probe, example = _probe(model, example)
    couplings = _Couplings(probe)
    couplings.trace(example)
    layers = _removable_layers(probe, example)
    weights = _weight_costs(probe, example, layers)
    rejected: dict[str, str] = {}
    while True:
        space = couplings.space(layers, weights, dense_macs, rejected)
        reasons = unfaithful(space, probe, example)
        if not reasons:
            return space
        rejected |= {name.partition("#")[0]: reason for name, reason in reasons.items()}


def _refuse_shared_weights(model: nn.Module) -> None:
    """A weight with two names would be cut twice, in two ways."""
    first: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        other = first.setdefault(id(parameter), name)
        if other != name:
            raise UserError(
                f"{other} and {name} are one tensor: a model with shared weights cannot be grown; untie them"
            )


def _probe(model: nn.Module, example: Tensor) -> tuple[nn.Module, Tensor]:
    """A copy of the model and a batch on which a wrong coupling shows.

    Random affine parameters (fresh networks often start branches at zero), batch statistics (signals neither vanish nor
    explode), no dropout, double precision.
    """
    generator = torch.Generator().manual_seed(0)
    probe = copy.deepcopy(model).double().eval().requires_grad_(True)
    for module in probe.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
    for parameter in probe.parameters():
        if parameter.ndim == 1:
            parameter.data = (0.5 + torch.rand(parameter.shape, generator=generator, dtype=torch.double)).to(parameter)
    if example.is_floating_point():
        batch = torch.randn(4, *example.shape[1:], generator=generator, dtype=torch.double)
        return probe, batch.to(example.device)
    return probe, example


class _Couplings:
    """Numbers every entry of every axis and joins those that must leave together."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.modules = dict(model.named_modules())
        self.shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        self.offsets: dict[Axis, int] = {}
        self.lengths: dict[Axis, int] = {}
        self.total = 0
        self.rows: list[np.ndarray] = []
        self.columns: list[np.ndarray] = []
        self.roots: dict[str, np.ndarray] = {}
        self.order = {name: position for position, name in enumerate(self.modules)}
        self.fixed: dict[str, str] = {}

    def trace(self, example: Tensor) -> None:
        """Reads every dependency group of the model."""
        from nasbench_grow.dependencies import DependencyGraph

        graph = DependencyGraph()
        try:
            with torch.enable_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                graph.build_dependency(self.model, example_inputs=example, verbose=False)
        except Exception as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise UserError(
                f"cannot trace {type(self.model).__name__} with an input of shape {tuple(example.shape)}: {reason}; "
                "give a model and an example input that run together"
            ) from error
        names = {id(module): name for name, module in self.modules.items()}
        names |= {id(parameter): name for name, parameter in self.model.named_parameters()}
        for name in _makers_of_output(self.model, example):
            self.fixed[name] = "its channels are the model's output"
        for name, module in self.modules.items():
            self._tie(name, module)
        for group in graph.groups((CONVS, nn.Linear)):
            root = group[0].dep.target.module
            root_ids = self._root(names[id(root)], root)
            for item in group:
                module, handler = item.dep.target.module, item.dep.handler
                if id(module) not in names:
                    continue
                name = names[id(module)]
                if isinstance(module, nn.Parameter):
                    axes: Iterable[Axis] = [(name, item.dep.target.pruning_dim)]
                elif not isinstance(module, SLICEABLE):
                    if any(True for _ in module.parameters()):
                        self.fixed[names[id(root)]] = f"{name} is a {type(module).__name__}, which cannot be sliced"
                    continue
                elif graph.is_out_channel_pruning_fn(handler):
                    axes = _output_axes(name, module)
                    if isinstance(module, (CONVS, nn.Linear)):
                        self._root(name, module)
                else:
                    axes = _input_axes(name, module)
                for axis in axes:
                    if max(item.idxs, default=0) >= self._length(axis):
                        self.fixed[names[id(root)]] = f"its coupling to {axis[0]} could not be resolved"
                    else:
                        self._join(self._ids(axis, item.idxs), root_ids[np.asarray(item.root_idxs, dtype=np.int64)])

    def _root(self, name: str, module: nn.Module) -> np.ndarray:
        """Notes a module as one that creates channels; the numbers of its outputs."""
        axis = next(iter(_output_axes(name, module)))
        self.roots[name] = self._ids(axis, range(self._length(axis)))
        return self.roots[name]

    def _length(self, axis: Axis) -> int:
        name, dim = axis
        if dim == INPUTS:
            module = self.modules[name.rpartition(".")[0]]
            assert isinstance(module, CONVS)
            return module.in_channels
        return self.shapes[name][dim]

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
        """Joins the channels of each group of a grouped convolution or a group normalisation."""
        if isinstance(module, CONVS) and module.groups > 1:
            axes = [next(iter(_output_axes(name, module))), (f"{name}.weight", INPUTS)]
            groups = module.groups
        elif isinstance(module, nn.GroupNorm) and module.affine and module.num_groups > 1:
            axes, groups = [(f"{name}.weight", 0)], module.num_groups
        else:
            return
        leaders = self._ids(axes[0], range(0, self._length(axes[0]), self._length(axes[0]) // groups))
        for axis in axes:
            length = self._length(axis)
            self._join(self._ids(axis, range(length)), np.repeat(leaders, length // groups))

    def space(self, layers: list[Layer], weights: list[WeightCost], dense_macs: int, rejected: dict[str, str]) -> Space:
        """The space in which every joined set of entries is one filter, without the rejected groups."""
        labels = self._components()
        fixed = {**self.fixed, **rejected}
        stuck = {int(label) for name in fixed.keys() & self.roots.keys() for label in labels[self.roots[name]]}
        touched: dict[int, list[Axis]] = defaultdict(list)
        for axis, offset in self.offsets.items():
            for label in np.unique(labels[offset : offset + self.lengths[axis]]):
                touched[int(label)].append(axis)
        families: dict[tuple[Axis, ...], dict[int, str]] = defaultdict(dict)
        for root in sorted(self.roots, key=self.order.__getitem__):
            for label in labels[self.roots[root]].tolist():
                if label not in stuck:
                    families[tuple(touched[label])].setdefault(label, root)
        return self._assemble(families, labels, layers, weights, dense_macs, fixed)

    def _components(self) -> np.ndarray:
        """Number of the joined set that each entry belongs to."""
        from scipy.sparse import coo_matrix
        from scipy.sparse.csgraph import connected_components

        rows = np.concatenate([*self.rows, np.empty(0, np.int64)])
        columns = np.concatenate([*self.columns, np.empty(0, np.int64)])
        graph = coo_matrix((np.ones(len(rows), dtype=np.int8), (rows, columns)), shape=(self.total, self.total))
        return np.asarray(connected_components(graph, directed=False)[1])

    def _assemble(
        self,
        families: dict[tuple[Axis, ...], dict[int, str]],
        labels: np.ndarray,
        layers: list[Layer],
        weights: list[WeightCost],
        dense_macs: int,
        fixed: dict[str, str],
    ) -> Space:
        """Numbers the filters family by family (a family of filters that live in the same axes is a channel group)."""
        structure = np.full(int(labels.max(initial=-1)) + 1, -1, dtype=np.int64)
        groups: list[ChannelGroup] = []
        start = 0
        for axes, members in families.items():
            structure[list(members)] = np.arange(start, start + len(members))
            enclosing = _enclosing(layers, [name for name, _ in axes])
            maker = next(iter(members.values()))
            before = sum(group.name.partition("#")[0] == maker for group in groups)
            name = f"{maker}#{before + 1}" if before else maker  # a module may make channels of several groups
            groups.append(ChannelGroup(name, start, len(members), enclosing))
            start += len(members)
        owners = {}
        for axis, offset in self.offsets.items():
            owner = structure[labels[offset : offset + self.lengths[axis]]]
            if axis[1] != INPUTS and (owner >= 0).any():
                owners[axis] = torch.from_numpy(owner)
        space = Space(groups, layers, owners, self._gated(owners), fixed, self.shapes, weights)
        space.constant_macs = dense_macs - space.macs(space.full())
        return space

    def _gated(self, owners: dict[Axis, Tensor]) -> list[str]:
        """The tensors that carry the filters' gates: affine norm parameters; where a filter meets no norm, the
        weights and biases that create it (a scale before a normalisation would be divided away)."""
        normed = torch.zeros(1 + max((int(owner.max()) for owner in owners.values()), default=0), dtype=torch.bool)
        norms, makers = [], []
        for name, dim in owners:
            module = self.modules[name.rpartition(".")[0]]
            if isinstance(module, NORMS) and name.endswith(("weight", "bias")):
                norms.append(name)
                owner = owners[name, dim]
                normed[owner[owner >= 0]] = True
            elif dim == 0 and isinstance(module, (CONVS, nn.Linear)) and name.endswith(("weight", "bias")):
                makers.append(name)
        bare = [name for name in makers if not normed[owners[name, 0].clamp(min=0)].any()]
        return norms + bare


def _output_axes(name: str, module: nn.Module) -> Iterator[Axis]:
    """The axes of a module's tensors that run along its output channels."""
    transposed = isinstance(module, CONVS) and module.transposed
    for key, dim in (("weight", int(transposed)), ("bias", 0), ("running_mean", 0), ("running_var", 0)):
        tensor = getattr(module, key, None)
        if tensor is not None and not (isinstance(module, nn.PReLU) and tensor.numel() == 1):
            yield f"{name}.{key}", dim


def _input_axes(name: str, module: nn.Module) -> Iterator[Axis]:
    """The axes of a module's tensors that run along its input channels."""
    if isinstance(module, CONVS):
        yield f"{name}.weight", INPUTS if module.groups > 1 else 0 if module.transposed else 1
    elif isinstance(module, nn.Linear):
        yield f"{name}.weight", 1
    else:
        yield from _output_axes(name, module)


def _enclosing(layers: list[Layer], tensors: list[str]) -> int | None:
    """The removable layer that holds all of these tensors, if there is one."""
    for index, layer in enumerate(layers):
        if all(tensor.startswith(layer.path + ".") for tensor in tensors):
            return index
    return None


def _makers_of_output(model: nn.Module, example: Tensor) -> list[str]:
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
        output = model(example)
    for hook in hooks:
        hook.remove()
    tensors = [output] if isinstance(output, Tensor) else list(output)
    last = {tensor.data_ptr() for tensor in tensors if isinstance(tensor, Tensor)}
    return [name for name, tensor in outputs.items() if tensor.data_ptr() in last]


def _removable_layers(model: nn.Module, example: Tensor) -> list[Layer]:
    """The outermost modules that return their input once the end of their branch is zero."""
    inputs: dict[str, Tensor] = {}
    calls: dict[str, int] = defaultdict(int)
    order: list[str] = []
    hooks = []

    def before(name: str, arguments: tuple[Any, ...]) -> None:
        if len(arguments) == 1 and isinstance(arguments[0], Tensor):
            inputs[name] = arguments[0].clone()  # the block may change its input in place

    def after(name: str, output: Any) -> None:
        calls[name] += 1
        order.append(name)
        if name in inputs and not (isinstance(output, Tensor) and output.shape == inputs[name].shape):
            del inputs[name]

    for name, module in model.named_modules():
        hooks.append(module.register_forward_hook(lambda _, __, output, name=name: after(name, output)))
        if name and any(True for _ in module.children()):
            hooks.append(module.register_forward_pre_hook(lambda _, arguments, name=name: before(name, arguments)))
    with torch.no_grad():
        model(example)
    for hook in hooks:
        hook.remove()

    layers: list[Layer] = []
    for path, module in model.named_modules():
        nested = any(path.startswith(layer.path + ".") for layer in layers)
        if path in inputs and calls[path] == 1 and not nested:
            terminal = _branch_end(path, module, inputs[path], order)
            if terminal:
                layers.append(Layer(path, terminal))
    return layers


def _branch_end(path: str, block: nn.Module, given: Tensor, order: list[str]) -> tuple[str, ...]:
    """Weight and bias of the norm, convolution or linear that ends a block's branch: the block is the identity if they
    are zero. Looked for from the end, past what follows the branch's last norm (squeeze and excitation)."""
    candidates = []
    for name in reversed([name for name in order if name.startswith(path + ".")]):
        module = block.get_submodule(name[len(path) + 1 :])
        if isinstance(module, (CONVS, nn.Linear, *NORMS)) and module.weight is not None:
            candidates.append(name)
    for name in candidates[:5]:
        module = block.get_submodule(name[len(path) + 1 :])
        keys = [key for key, _ in module.named_parameters(recurse=False)]
        zeros = {f"{name}.{key}"[len(path) + 1 :]: torch.zeros_like(module.get_parameter(key)) for key in keys}
        with torch.no_grad():
            if torch.equal(functional_call(block, zeros, (given,)), given):
                return tuple(f"{name}.{key}" for key in keys)
    return ()


def _weight_costs(model: nn.Module, example: Tensor, layers: list[Layer]) -> list[WeightCost]:
    """MACs per pair of output and input entry of every weight that multiplies, from the one counter."""
    costs = []
    modules = dict(model.named_modules())
    for name, macs in macs_by_module(model, example).items():
        module = modules.get(name)
        if isinstance(module, (CONVS, nn.Linear)):
            outputs, inputs = module.weight.shape[:2]
            weight = f"{name}.weight"
            costs.append(WeightCost(macs / (outputs * inputs), weight, _enclosing(layers, [weight])))
    return costs
