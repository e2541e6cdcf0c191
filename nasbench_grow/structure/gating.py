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

from nasbench_grow.base.calling import call
from nasbench_grow.base.given import check_model
from nasbench_grow.structure.given import check_present
from nasbench_grow.structure.recurrent import flatten
from nasbench_grow.structure.space import Space
from nasbench_grow.structure.subnetwork import detach_kept


class GatedNetwork(nn.Module):
    """A sub-network together with what is needed to scale its structures.

    Args:
        space: the configuration space.
        present: the structures that ``network`` holds, shape (structures,).
        network: the sub-network that :func:`nasbench_grow.structure.subnetwork.extract` gave for ``present``.
    """

    def __init__(self, space: Space, present: Tensor, network: nn.Module) -> None:
        super().__init__()
        check_present(space, present)
        check_model(network)
        self.network = network
        self._structures = len(space)
        self._axes: list[tuple[str, int]] = []
        numbers = []  # of the structure that scales each entry of each axis
        parameters = dict(network.named_parameters())
        for name, dim in space.gated:
            if name in parameters:
                owner = space.owners[name, dim]
                kept = space.kept(present, (name, dim))
                assert kept is not None
                self._axes.append((name, dim))
                numbers.append(owner[kept])
        for index, layer in enumerate(space.layers):
            for name in layer.terminal:
                if name in parameters:
                    self._axes.append((name, 0))
                    numbers.append(torch.full((len(parameters[name]),), space.filters + index))
        self._sizes = [len(each) for each in numbers]
        device = next(iter(parameters.values())).device
        # Number -1, an entry that no structure owns, becomes the last one of all, which nothing scales.
        nothing = torch.empty(0, dtype=torch.int64)  # a seed without layers may have nothing to scale
        self._numbers = torch.cat([nothing, *numbers]).remainder(len(space) + 1).to(device)

    def scaled(self, gates: Tensor) -> dict[str, Tensor]:
        """The gated tensors, scaled. ``gates`` has shape (structures,)."""
        factors = torch.cat([gates, gates.new_ones(1)]).index_select(0, self._numbers).split(self._sizes)
        result = dict(self.network.named_parameters())
        for (name, dim), factor in zip(self._axes, factors, strict=True):
            result[name] = result[name] * factor.view(-1, *[1] * (result[name].ndim - 1 - dim))
        return {name: result[name] for name, _ in self._axes}

    def forward(self, inputs: Any, gates: Tensor | None = None) -> Any:
        """Output of the sub-network under ``gates``, shape (structures,); None: all are 1."""
        if gates is None:
            return call(self.network, inputs)
        scaled = {f"network.{name}": tensor for name, tensor in self.scaled(gates).items()}
        return functional_call(self, scaled, (inputs,))

    @torch.no_grad()
    def gradients(self) -> Tensor:
        """Gradients of the last loss along the gates where all are 1, shape (structures,): by the chain rule from those
        that the network's weights have. Zero for absent structures, no number for those with frozen weights."""
        parameters = dict(self.network.named_parameters())
        along = torch.zeros(self._structures + 1, device=self._numbers.device)
        products = [along[:0]]
        for (name, dim), size in zip(self._axes, self._sizes, strict=True):
            weight = parameters[name]
            if weight.grad is None:  # frozen, or nothing that the loss depends on
                products.append(along.new_full((size,), 0.0 if weight.requires_grad else torch.nan))
            else:
                product = (weight * weight.grad.to_dense()).movedim(dim, 0).reshape(size, -1)
                products.append(product.sum(1, dtype=along.dtype))
        return along.index_add(0, self._numbers, torch.cat(products))[:-1]

    def fold(self, gates: Tensor | None = None) -> nn.Module:
        """A copy of the sub-network with the scales multiplied into its weights; None: all are 1."""
        detach_kept(self.network)
        network = copy.deepcopy(self.network)
        if gates is not None:
            with torch.no_grad():
                parameters = dict(network.named_parameters())
                for name, tensor in self.scaled(gates).items():
                    parameters[name].copy_(tensor)
        return flatten(network)
