"""Gates on a sub-network: each present filter and layer scaled by its own factor, after the normalisation.

The sub-network stays an ordinary module; for each forward pass the scaled tensors take the place of the plain ones
(``w * m`` in the paper's objective), so one autograd pass yields the gradients of both. ``fold`` makes the scales
permanent: the result computes the same with no gates at all.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from nasbench_grow.space import Space


class GatedNetwork(nn.Module):
    """A sub-network together with what is needed to scale its structures.

    Args:
        space: the configuration space.
        present: the structures that ``network`` holds, shape (structures,).
        network: the sub-network that :func:`nasbench_grow.subnetwork.extract` gave for ``present``.
    """

    def __init__(self, space: Space, present: Tensor, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self._numbers: dict[str, list[tuple[int, Tensor]]] = {}
        parameters = dict(network.named_parameters())
        device = next(iter(parameters.values())).device
        for name, dim in space.gated:
            if name in parameters:
                owner = space.owners[name, dim]
                kept = space.kept(present, (name, dim))
                assert kept is not None
                self._numbers.setdefault(name, []).append((dim, owner[kept].to(device)))
        for index, layer in enumerate(space.layers):
            for name in layer.terminal:
                if name in parameters:
                    number = torch.tensor(space.filters + index, device=device)
                    self._numbers.setdefault(name, []).append((0, number))

    def scaled(self, gates: Tensor) -> dict[str, Tensor]:
        """The gated tensors, scaled. ``gates`` has shape (structures,)."""
        factors = torch.cat([gates, gates.new_ones(1)])  # number -1, an entry that no structure owns, is never scaled
        parameters = dict(self.network.named_parameters())
        result: dict[str, Tensor] = {}
        for name, numbers in self._numbers.items():
            tensor: Tensor = parameters[name]
            for dim, number in numbers:
                tensor = tensor * factors[number].view(-1, *[1] * (tensor.ndim - 1 - dim))
            result[name] = tensor
        return result

    def forward(self, inputs: Any, gates: Tensor) -> Any:
        """Output of the sub-network under ``gates``, shape (structures,)."""
        return functional_call(self.network, self.scaled(gates), (inputs,))

    def fold(self, gates: Tensor) -> nn.Module:
        """A copy of the sub-network with the scales multiplied into its weights."""
        network = copy.deepcopy(self.network)
        with torch.no_grad():
            parameters = dict(network.named_parameters())
            for name, tensor in self.scaled(gates).items():
                parameters[name].copy_(tensor)
        return network
