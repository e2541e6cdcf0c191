"""Trains a network by replaying CUDA graphs: kernels of small networks take less time than their launch does."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn


class Graphed(nn.Module):
    """A network whose forward and backward pass are recorded once, on the first batch, and replayed from then on.

    What a replay would get wrong the network computes itself: batches of another shape, evaluation, a second pass
    before the first one's gradients were taken, and everything once its weights have moved in memory, a hook was added,
    or a part of it was frozen or put into evaluation mode. A GPU alone can record; several processes that share a
    batch cannot.

    Args:
        network: computes on a GPU; its parameters are trained in place.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self._replay: Callable[[Tensor], Tensor] | None = None
        self._recorded: tuple[object, ...] = ()
        self._awaited = False
        """Whether the gradients of the last replay have not been taken yet."""

    def forward(self, inputs: Tensor) -> Tensor:
        """The network's output."""
        if not (self.network.training and torch.is_grad_enabled()) or _hooked(self.network):
            return cast(Tensor, self.network(inputs))
        if self._replay is None:
            self._replay, self._recorded = self._record(inputs), self._state(inputs)
        if self._awaited or self._recorded != self._state(inputs):
            return cast(Tensor, self.network(inputs))
        self._awaited = True
        output = self._replay(inputs)
        output.register_hook(self._taken)
        return output

    def _taken(self, gradient: Tensor) -> None:
        self._awaited = False

    def _record(self, inputs: Tensor) -> Callable[[Tensor], Tensor]:
        """The passes as CUDA graphs; what the trial passes before the recording change is put back."""
        before = [each.clone() for each in self.network.buffers()]
        try:
            replay = torch.cuda.make_graphed_callables(_Held(self.network), (inputs.clone(),))
        except RuntimeError as error:
            warnings.warn(f"trained without CUDA graphs, which cannot record this network: {error}", stacklevel=2)
            replay = self.network
        for buffer, value in zip(self.network.buffers(), before, strict=True):
            buffer.copy_(value)
        return cast(Callable[[Tensor], Tensor], replay)

    def _state(self, inputs: Tensor) -> tuple[object, ...]:
        """What must be as it was when the graphs were recorded."""
        network = self.network
        return (
            (inputs.shape, inputs.stride(), inputs.dtype),
            [(each.data_ptr(), each.requires_grad) for each in network.parameters()],
            [each.data_ptr() for each in network.buffers()],
            [each.training for each in network.modules()],
        )


def _hooked(network: nn.Module) -> bool:
    """Whether anything is to be told of the pass, or to change it: a replay would not call it."""
    return any(
        each._forward_hooks or each._forward_pre_hooks or each._backward_hooks or each._backward_pre_hooks
        for each in network.modules()
    )


class _Held(nn.Module):
    """The network under another module, which is changed in its stead."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor) -> Tensor:
        return cast(Tensor, self.network(inputs))
