"""Weights shared between networks from step to step: single-path one-shot (arXiv 1904.00420), slimmable (1812.08928).

Every path is the physical sub-network of some ``present`` whose weights are differentiable cuts of the dense network's.
A step on it costs what the sub-network costs, and its gradients are those of the dense network's own parameters.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from nasbench_grow.structure.given import check_space
from nasbench_grow.structure.recurrent import RECURRENT
from nasbench_grow.structure.space import Space
from nasbench_grow.structure.subnetwork import carry_state, fit, replace_tensors, skeleton

KEPT_PATHS = 64
"""Paths whose modules are kept for their next step; then the oldest goes."""


class SharedWeights:
    """The sub-networks of one dense network, all with its weights.

    Of a step on a path, what the path does not hold gets gradients of zero, or none where it holds nothing of a tensor.
    In training mode batch normalisations use the statistics of the batch, and no path changes the running ones of the
    dense network. In evaluation mode a path takes its part of those, which hardly fit it: evaluate a network that was
    extracted and recalibrated (:func:`nasbench_grow.structure.recalibrating.recalibrate`). The state that a recurrent
    network carries from batch to batch goes on from path to path; that of new units starts at zero.

    Args:
        space: the configuration space of ``dense``.
        dense: the full network, on the device where it stays. Its mode is that of every path.
    """

    def __init__(self, space: Space, dense: nn.Module) -> None:
        check_space(space, dense)
        self.space, self.dense = space, dense
        self._stateful = any(name not in space.shapes for name, _ in dense.named_buffers())
        self._paths: dict[bytes, _Path] = {}
        self._last: _Path | None = None

    def __call__(self, present: Tensor, inputs: Any) -> Any:
        """Output of the sub-network of ``present``, shape (structures,), bool, for its ``space.macs(present)`` MACs."""
        path = self._path(present)
        if self._stateful and self._last is not None and self._last is not path:
            carry_state(self.space, (self._last.present, self._last.network), (path.present, path.network))
        self._last = path
        return path(inputs)

    def path(self, present: Tensor) -> nn.Module:
        """The sub-network of ``present`` as a module: its parameters and its mode are those of the dense network."""
        return _PathModule(self, present)

    def _path(self, present: Tensor) -> _Path:
        key = present.numpy().tobytes()
        if key not in self._paths:
            if len(self._paths) == KEPT_PATHS:
                del self._paths[next(iter(self._paths))]
            self._paths[key] = _Path(self.space, self.dense, present.clone())
        return self._paths[key]


class _PathModule(nn.Module):
    def __init__(self, shared: SharedWeights, present: Tensor) -> None:
        super().__init__()
        self.dense, self.shared, self.present = shared.dense, shared, present

    def forward(self, inputs: Any) -> Any:
        return self.shared(self.present, inputs)


class _Path:
    """The modules of one sub-network, without parameters, and the cuts to call them with.

    Its buffers are its own: batch normalisations may write into them. In evaluation mode those of the dense network
    take their place.
    """

    def __init__(self, space: Space, dense: nn.Module, present: Tensor) -> None:
        self.present = present
        self.network = skeleton(space, dense, present)
        holders = dict(dense.named_modules())
        self.modules = [(module, holders[name]) for name, module in self.network.named_modules()]
        self.parameters = [_Cut(space, present, holders, name) for name, _ in self.network.named_parameters()]
        buffers = [_Cut(space, present, holders, name) for name, _ in self.network.named_buffers()]
        self.statistics = [buffer for buffer in buffers if buffer.name in space.shapes]
        made = {parameter.name: torch.empty(parameter.shape, device="meta") for parameter in self.parameters}
        made |= {buffer.name: buffer().clone() for buffer in buffers}
        replace_tensors(self.network, lambda name, _: made[name])
        fit(self.network, dense)

    def __call__(self, inputs: Any) -> Any:
        for module, original in self.modules:
            module.training = original.training
        tensors = {cut.name: cut() for cut in self.parameters}
        tensors |= {cut.name: cut() for cut in self.statistics if not cut.holder.training}
        return functional_call(self.network, tensors, (inputs,))


class _Cut:
    """What a path takes of one tensor of the dense network."""

    def __init__(self, space: Space, present: Tensor, holders: dict[str, nn.Module], name: str) -> None:
        self.name = name
        path, _, self.key = name.rpartition(".")
        self.holder = holders[path]
        tensor = getattr(self.holder, self.key)
        self.shape, self.kept = list(tensor.shape), list[tuple[int, int | Tensor]]()
        for dim, length in enumerate(tensor.shape):
            kept = space.kept(present, (name, dim))
            if kept is not None and len(kept) < length:
                first = bool(kept[-1] == len(kept) - 1)
                self.kept.append((dim, len(kept) if first else kept.to(tensor.device)))
                self.shape[dim] = len(kept)

    def __call__(self) -> Tensor:
        """The entries as they are now: a view of the dense tensor where the first ones are kept, else a copy."""
        tensor: Tensor = getattr(self.holder, self.key)
        for dim, kept in self.kept:
            tensor = tensor.narrow(dim, 0, kept) if isinstance(kept, int) else tensor.index_select(dim, kept)
        # On a GPU a recurrent layer moves its weights into one piece of memory: not those of the dense network.
        return tensor.clone() if isinstance(self.holder, RECURRENT) else tensor
