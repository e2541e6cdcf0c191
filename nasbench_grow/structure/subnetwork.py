"""Physical sub-networks: ordinary smaller modules that hold only the filters and layers that are present.

``extract`` builds one from the dense network, which keeps every weight, ``absorb`` writes it back after training,
``carry_optimizer`` and ``carry_state`` take the optimizer's and a recurrent network's state from one sub-network to the
next. Between these calls nothing touches an absent structure (section 3.2).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from nasbench_grow.structure import attention, recurrent
from nasbench_grow.structure.attributes import set_attributes
from nasbench_grow.structure.given import check_structures
from nasbench_grow.structure.space import Space


def extract(space: Space, dense: nn.Module, present: Tensor) -> nn.Module:
    """The sub-network of ``present``: copies of the dense network's weights and buffers, cut to what is there.

    Args:
        space: the configuration space of ``dense``.
        dense: the full network; not changed.
        present: shape (structures,), bool; every channel group needs at least one filter.

    Returns:
        A module of the dense network's classes in its training mode; absent layers are ``nn.Identity``.

    Raises:
        UserError: ``space`` is of another model, or ``present`` no choice of its structures.
    """
    check_structures(space, dense, present)
    network = skeleton(space, dense, present)
    replace_tensors(network, lambda name, tensor: _cut(space, present, name, tensor))
    fit(network, dense)
    set_attributes(space, present, network)
    return recurrent.flatten(network)


def skeleton(space: Space, dense: nn.Module, present: Tensor) -> nn.Module:
    """The modules of the sub-network of ``present``, still of the dense network's sizes and with its very tensors."""
    detach_kept(dense)
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*dense.parameters(), *dense.buffers())}
    for index, layer in enumerate(space.layers):
        if not space.layer_present(present, index):
            memo |= {id(dense.get_submodule(path)): nn.Identity() for path in layer.paths}
    return copy.deepcopy(dense, memo)  # copies modules, but none of what the memo has a copy for already


def replace_tensors(network: nn.Module, make: Callable[[str, Tensor], Tensor]) -> None:
    """Puts what ``make`` gives for the name and values of each parameter and buffer in its place; a tensor that several
    modules have stays one."""
    done: dict[int, Tensor] = {}
    replaced = []  # kept alive, or another tensor might get the identity of one
    for prefix, module in network.named_modules():
        for key, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is None:
                continue
            if id(tensor) not in done:
                made = make(f"{prefix}.{key}" if prefix else key, tensor.detach())
                parameter = key in module._parameters
                done[id(tensor)] = nn.Parameter(made, requires_grad=tensor.requires_grad) if parameter else made
                replaced.append(tensor)
            tensors: dict[str, Any] = module._parameters if key in module._parameters else module._buffers
            tensors[key] = done[id(tensor)]


def detach_kept(model: nn.Module) -> None:
    """Takes the history, with which no module can be copied, from tensors that modules keep as plain attributes:
    weights that a normalisation computed, say. Every forward pass computes them anew."""
    for module in model.modules():
        for key, value in vars(module).items():
            if isinstance(value, Tensor) and value.grad_fn is not None:
                vars(module)[key] = value.detach()


def fit(network: nn.Module, full: nn.Module) -> None:
    """Sets the sizes that modules keep as attributes (channels, groups, features) from the shapes of their tensors.

    Args:
        network: the network to mend.
        full: the network it was cut from, for what shapes alone do not say (channels per convolution group).
    """
    for name, module in network.named_modules():
        original = full.get_submodule(name)
        if isinstance(module, recurrent.RECURRENT):
            recurrent.resize(module, original)
        elif attention.is_attention(original):
            attention.resize(module, original)
        weight = _weight(module)
        if weight is None:
            continue
        shape = weight.shape
        if isinstance(module, nn.modules.conv._ConvNd):
            assert isinstance(original, nn.modules.conv._ConvNd)
            if module.transposed:
                module.groups = original.groups * shape[0] // original.in_channels if original.groups > 1 else 1
                module.in_channels, module.out_channels = shape[0], shape[1] * module.groups
            else:
                module.groups = original.groups * shape[0] // original.out_channels if original.groups > 1 else 1
                module.in_channels, module.out_channels = shape[1] * module.groups, shape[0]
        elif isinstance(module, nn.Linear):
            module.out_features, module.in_features = shape
        elif isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
            module.embedding_dim = shape[1]
        elif isinstance(module, nn.Bilinear):
            module.out_features, module.in1_features, module.in2_features = shape
        elif isinstance(module, nn.GroupNorm):
            assert isinstance(original, nn.GroupNorm)
            if original.num_groups > 1:
                module.num_groups = original.num_groups * shape[0] // original.num_channels
            module.num_channels = shape[0]
        elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
            module.normalized_shape = tuple(shape)
        elif isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)):
            module.num_features = shape[0]
        elif isinstance(module, nn.PReLU):
            module.num_parameters = shape[0]


def _weight(module: nn.Module) -> Tensor | None:
    """The weight of a module, or the tensor of the same shape that a reparametrization computes it from."""
    parametrized = getattr(module, "parametrizations", None)
    if parametrized is not None and "weight" in parametrized:
        pair = parametrized.weight
        return pair.original1 if hasattr(pair, "original1") else pair.original
    for key in ("weight_orig", "weight_v", "weight"):
        if isinstance(getattr(module, key, None), Tensor):
            return getattr(module, key)
    return None


def absorb(space: Space, dense: nn.Module, present: Tensor, network: nn.Module) -> None:
    """Writes the weights and persistent buffers of the sub-network of ``present`` back into the dense
    network."""
    check_structures(space, dense, present)
    tensors = dense.state_dict()
    for name, small in network.state_dict().items():
        _paste(space, present, name, tensors[name], small)


def newborn(space: Space, before: Tensor, after: Tensor) -> Tensor:
    """The structures that exist after but not before. Both vectors and the result have shape (structures,), bool.

    A filter inside an absent layer does not exist; the filters of an absent plain layer are those of its input.
    """
    there_before, there_after = (space.resolved(space.effective(present)) for present in (before, after))
    return there_after & ~there_before


def zero_init(space: Space, dense: nn.Module, before: Tensor, after: Tensor, *, normalised_only: bool = False) -> None:
    """Joins what is in ``after`` but not in ``before`` by zeros, so that both sub-networks compute the same.

    The dense network's consumers ignore a newborn filter at first, and a newborn layer adds nothing; what makes a
    filter keeps its initial weights, and so do the filters inside a newborn layer, or nothing there could ever learn. A
    newborn plain layer cannot join so: it takes the place of the identity.

    With ``normalised_only`` filters that no normalisation scales join by their initial weights. Those are small, and so
    is what such a filter adds; a normalised one would act at full strength at once.
    """
    filters = newborn(space, before, after)
    layers_born = filters[space.filters :].tolist()
    parameters = {name: parameter.detach() for name, parameter in dense.named_parameters()}
    if normalised_only:
        filters &= _normalised(space, parameters)
    for group in space.groups:
        if group.layer is not None and layers_born[group.layer]:
            filters[group.structures] = False
    for name, dim in space.consumers:
        owner = space.owners[name, dim]
        ignored = torch.nonzero((owner >= 0) & filters[owner.clamp(min=0)]).flatten()
        parameters[name].index_fill_(dim, ignored.to(parameters[name].device), 0)
    for layer, born in zip(space.layers, layers_born, strict=True):
        for name in layer.terminal if born else ():
            parameters[name].zero_()


def _normalised(space: Space, parameters: dict[str, Tensor]) -> Tensor:
    """The filters whose output a normalisation scales, shape (structures,), bool."""
    found = torch.zeros(len(space), dtype=torch.bool)
    for (name, _), owner in space.owners.items():
        if name in parameters and is_scale(name, parameters[name]):
            found[owner[owner >= 0]] = True
    return found


def is_scale(name: str, parameter: Tensor) -> bool:
    """Whether a parameter holds the factors of a normalisation, one for each filter."""
    return parameter.ndim == 1 and "bias" not in name.rpartition(".")[2]


def carry_optimizer(
    space: Space,
    before: tuple[Tensor, nn.Module, torch.optim.Optimizer],
    after: tuple[Tensor, nn.Module, torch.optim.Optimizer],
) -> None:
    """Gives the optimizer of a new sub-network the state of the old one's.

    State of the parameter's own shape (momentum) or with one number for all entries along one of its dimensions
    (Adafactor's) is carried entry by entry: surviving entries keep theirs bit by bit, newborn ones start where a fresh
    optimizer does (at zero, but for Adagrad and Rprop), also where a structure left earlier and returns. Other state
    (step counts) is copied. A parameter that was not there at all starts at zero too or, where an optimizer keeps other
    state, without any. What the new optimizer does not hold gets none, and what it holds beside the network goes on.

    Args:
        space: the configuration space of both.
        before: ``present``, network and optimizer that ran; ``after``: those to run next.
    """
    old_present, old_network, old_optimizer = before
    new_present, new_network, new_optimizer = after
    old = dict(old_network.named_parameters())
    groups = {parameter: group for group in new_optimizer.param_groups for parameter in group["params"]}
    kept = {key for state in old_optimizer.state.values() for key in state}
    all_entrywise = all(
        _is_entrywise(value, parameter) for parameter, state in old_optimizer.state.items() for value in state.values()
    )
    for name, parameter in new_network.named_parameters():
        if parameter not in groups:
            continue
        state = old_optimizer.state.get(old[name], {}) if name in old else {}
        if not state and all_entrywise:
            # A fused optimizer does not take some parameters with momentum and some without.
            new_optimizer.state[parameter].update({key: torch.zeros_like(parameter) for key in kept})
        for key, value in state.items():
            summed = _summed(key, value, old[name])
            if summed is not None or _is_entrywise(value, old[name]):
                shape = [1 if dim == summed else length for dim, length in enumerate(space.shapes[name])]
                fresh = new_optimizer.state[parameter].get(key)
                start = groups[parameter]["lr"] if key == "step_size" else 0 if fresh is None else fresh.max()
                whole = value.new_full(shape, float(start))
                _paste(space, old_present, name, whole, value.reshape(_like(old[name], summed)), summed)
                value = _cut(space, new_present, name, whole, summed)
                if summed is None:  # laid out alike, as fused optimizers need it
                    value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
                elif state[key].ndim < value.ndim:
                    value = value.squeeze(summed)
            elif isinstance(value, Tensor):
                value = value.clone()
            new_optimizer.state[parameter][key] = value
    apart = groups.keys() - set(new_network.parameters())
    new_optimizer.state.update({each: old_optimizer.state[each] for each in apart if each in old_optimizer.state})


_SUMMED = {"row_var": -1, "col_var": -2, "exp_avg_sq_row": -1, "exp_avg_sq_col": -2}
"""Names of state with one number for all entries along a dimension, which is of length 1 or left out."""


def can_follow(key: str, value: Any, parameter: Tensor) -> bool:
    """Whether a piece of an optimizer's state can be carried to a sub-network in which its parameter is cut."""
    if isinstance(value, Tensor):
        return value.numel() == 1 or _is_entrywise(value, parameter) or _summed(key, value, parameter) is not None
    return value is None or isinstance(value, (bool, int, float, str))


def _is_entrywise(value: Any, parameter: Tensor) -> bool:
    """Whether a piece of an optimizer's state has an entry for every entry of its parameter."""
    return isinstance(value, Tensor) and value.shape == parameter.shape


def _summed(key: str, value: Any, parameter: Tensor) -> int | None:
    """The dimension along which a piece of an optimizer's state has one number for all entries; None: there is none."""
    if key not in _SUMMED or not isinstance(value, Tensor) or parameter.ndim < 2:
        return None
    dim = parameter.ndim + _SUMMED[key]
    with_it, without = _like(parameter, dim), [*parameter.shape[:dim], *parameter.shape[dim + 1 :]]
    return dim if list(value.shape) in (with_it, without) else None


def _like(parameter: Tensor, summed: int | None) -> list[int]:
    """The shape of a parameter, 1 along the dimension that is summed."""
    return [1 if dim == summed else length for dim, length in enumerate(parameter.shape)]


def carry_state(space: Space, before: tuple[Tensor, nn.Module], after: tuple[Tensor, nn.Module]) -> None:
    """Gives a new sub-network the running state of the old one: what a recurrent network hands from batch to batch, in
    buffers that are not persistent. Surviving units keep their state, newborn ones start at zero.

    Args:
        space: the configuration space of both.
        before: ``present`` and network that ran; ``after``: those to run next.
    """
    old_present, old_network = before
    new_present, new_network = after
    states = dict(old_network.named_buffers())
    for name, _ in list(new_network.named_buffers()):
        if name in states and name not in space.shapes:
            state = states[name].detach()
            full = [len(space.owners.get((name, dim), range(length))) for dim, length in enumerate(state.shape)]
            whole = state.new_zeros(full)
            _paste(space, old_present, name, whole, state)
            path, _, key = name.rpartition(".")
            new_network.get_submodule(path)._buffers[key] = _cut(space, new_present, name, whole)


def _cut(space: Space, present: Tensor, name: str, tensor: Tensor, whole: int | None = None) -> Tensor:
    """A copy of what ``present`` keeps of a full tensor, in its memory layout; all along the dimension ``whole``."""
    small = tensor
    for dim in range(tensor.ndim):
        kept = None if dim == whole else space.kept(present, (name, dim))
        if kept is not None:
            small = small.index_select(dim, kept.to(tensor.device))
    if small is tensor:
        return small.clone(memory_format=torch.preserve_format)
    return laid_out_like(tensor, small)


def laid_out_like(tensor: Tensor, other: Tensor) -> Tensor:
    """``other`` in the memory layout of ``tensor``: channels last or default."""
    return other.contiguous(memory_format=torch.channels_last if is_channels_last(tensor) else torch.contiguous_format)


def is_channels_last(tensor: Tensor) -> bool:
    """Whether a tensor lies in memory with channels last and could not as well be said to lie in the default layout."""
    return tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()


def _paste(space: Space, present: Tensor, name: str, tensor: Tensor, small: Tensor, whole: int | None = None) -> None:
    """Writes ``small`` over the entries of a full tensor that ``present`` keeps; over all along ``whole``."""
    kept = [None if dim == whole else space.kept(present, (name, dim)) for dim in range(tensor.ndim)]
    while kept and kept[-1] is None:  # whole trailing dimensions need no index: much faster for convolutions
        kept.pop()
    if not kept:
        tensor.copy_(small)
        return
    lengths = zip(kept, tensor.shape[: len(kept)], strict=True)
    indices = [torch.arange(length) if index is None else index for index, length in lengths]
    tensor[torch.meshgrid(*(index.to(tensor.device) for index in indices), indexing="ij")] = small
