"""Recurrent layers in the configuration space: a hidden unit is a filter.

A unit leaves all gates, the recurrent weights, the running state and every consumer's input together. The layers and
directions inside one module have one width, so their units leave together too. Where an LSTM projects its units to
fewer features, a filter is a feature with its share of the units; where they cannot be shared evenly, all units stay.
The dependency graph cannot follow a recurrent module; while it is traced, a linear layer of the same sizes stands in
for it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

RECURRENT = nn.RNNBase

_Axis = tuple[str, int]


def features(layer: nn.RNNBase) -> int:
    """Features that one direction of a recurrent layer gives at each time step: its units, or what they project to."""
    return layer.proj_size or layer.hidden_size


def outputs(layer: nn.RNNBase) -> int:
    """Features that a recurrent layer gives at each time step."""
    return features(layer) * (1 + layer.bidirectional)


def filter_axes(name: str, layer: nn.RNNBase) -> Iterator[tuple[_Axis, np.ndarray]]:
    """The axes of the module's weights that its filters run along, each with the filter of every entry: all of them
    once a gate or direction, in the same order each time."""
    filters = np.arange(features(layer))
    units, rest = divmod(layer.hidden_size, len(filters))
    for key, parameter in layer.named_parameters():
        for dim, length in enumerate(parameter.shape):
            if dim == int(key.startswith("weight_hr")):  # along units
                if not rest:
                    yield (f"{name}.{key}", dim), np.resize(np.repeat(filters, units), length)
            elif not key.startswith("weight_ih_l0"):
                yield (f"{name}.{key}", dim), np.resize(filters, length)


def input_axes(name: str, layer: nn.RNNBase) -> Iterator[_Axis]:
    """The axes that run along the inputs of the first layer, one a direction."""
    for key, _ in layer.named_parameters():
        if key.startswith("weight_ih_l0"):
            yield f"{name}.{key}", 1


def state_axes(name: str, layer: nn.RNNBase) -> Iterator[tuple[_Axis, _Axis]]:
    """The axes of the module's buffers, in which a network may carry states along, each with an axis of its weights
    that has the same filters: units, or what they project to, come last."""
    for key, buffer in layer.named_buffers(recurse=False):
        projected = layer.proj_size and buffer.shape[-1] == layer.hidden_size
        yield (f"{name}.{key}", buffer.ndim - 1), (f"{name}.{'weight_hr_l0' if projected else 'weight_hh_l0'}", 1)


def resize(layer: nn.RNNBase, original: nn.Module) -> None:
    """Sets the sizes that a cut recurrent layer keeps as attributes from the shapes of its weights."""
    assert isinstance(original, RECURRENT)
    gates = original.get_parameter("weight_hh_l0").shape[0] // original.hidden_size
    layer.input_size = layer.get_parameter("weight_ih_l0").shape[1]
    layer.hidden_size = layer.get_parameter("weight_hh_l0").shape[0] // gates
    if layer.proj_size:
        layer.proj_size = layer.get_parameter("weight_hh_l0").shape[1]


def flatten(network: nn.Module) -> nn.Module:
    """The network itself, with the weights of each recurrent layer in one piece, as cuDNN takes them without a copy."""
    for module in network.modules():
        if isinstance(module, RECURRENT):
            module._init_flat_weights()  # what it holds in its list may be the weights that it was copied from
    return network


def with_stand_ins(model: nn.Module) -> nn.Module:
    """A copy of ``model`` with a linear layer in place of each recurrent one; see :func:`original_name`."""
    copied = copy.deepcopy(model)
    for name, module in list(copied.named_modules()):
        if isinstance(module, RECURRENT):
            copied.set_submodule(name, _StandIn(module))
    return copied


def original_name(name: str) -> str:
    """The name that a module or parameter of the copy, or what it stands in for, has in the model."""
    return name.removesuffix(".stand_in")


class _StandIn(nn.Module):
    """Takes and returns tensors of the sizes that a recurrent layer takes and returns."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        like = layer.weight_hh_l0
        self.stand_in = nn.Linear(layer.input_size, outputs(layer), device=like.device, dtype=like.dtype)
        vars(self).update({key: getattr(layer, key) for key in nn.RNNBase.__constants__})  # the model may ask for them
        self.is_lstm, self.features, self.num_layers = isinstance(layer, nn.LSTM), features(layer), layer.num_layers
        for name, buffer in layer.named_buffers(recurse=False):
            self.register_buffer(name, buffer, persistent=False)

    def forward(self, inputs: Tensor, state: Any = None) -> Any:
        """Output at every time step; the last one as the state of every layer and direction."""
        output = self.stand_in(inputs)
        last = output.select(1 if self.batch_first else 0, -1)
        ends = list(last.split(self.features, dim=-1)) if self.bidirectional else [last]
        state = torch.stack(ends * self.num_layers)
        if not self.is_lstm:
            return output, state
        return output, (state, state.new_zeros(*state.shape[:-1], self.hidden_size) if self.proj_size else state)
