"""A network in training whose structure can change.

What trains is an ordinary small module: the physical sub-network of the structures that are present. The dense model
keeps the weights of everything else. :meth:`ElasticModel.resize` moves from one set of structures to the next: weights
are written back, the next sub-network is cut out, optimizer and running state follow entry by entry.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from nasbench_grow.base.errors import UserError
from nasbench_grow.base.trees import device_of
from nasbench_grow.cost.macs import count_macs
from nasbench_grow.structure.discovery import find_space
from nasbench_grow.structure.space import Space
from nasbench_grow.structure.subnetwork import absorb, carry_optimizer, carry_state, extract, is_scale, zero_init

Newborn = Literal["initial", "zero", "quiet"] | Callable[["ElasticModel", Tensor, Tensor], None]
"""How structures that join start: with the weights that the dense model has for them (initial ones, where they never
trained); with outgoing weights of zero, so that the network's function stays as it was; quiet, which is so only where a
normalisation would make a filter act at full strength at once; or as a function of (model, structures before,
structures after) sets the entries of ``model.dense``."""

WeightRole = Literal["creating", "consuming", "scale", "shift"]
"""What a weight is to a filter: a matrix or convolution that creates it, or that takes it in; the factor of a
normalisation or whatever else scales it; what is added to it, a bias."""


class _OwnedAxis(NamedTuple):
    """An axis of one of the network's weights whose entries belong to filters."""

    role: WeightRole
    name: str
    """Of the weight."""
    dim: int
    entries: Tensor
    """Places on the axis that a filter owns."""
    numbers: Tensor
    """Of the filter that owns each of them."""
    filters: Tensor
    """The same numbers, each once."""
    places: Tensor
    """Where in ``filters`` each of ``numbers`` is."""


class ElasticModel:
    """The dense model, the sub-network of it that is present, and that one's optimizer.

    Args:
        dense: the dense model; its weights are changed by training.
        example: one input with a batch axis of 1, on the device of the run.
        make_optimizer: makes the optimizer of a network.

    Attributes:
        network: the module that trains now; at first the dense model itself.
        optimizer: holds the parameters of ``network``.
        present: the structures of ``network``, shape (structures,), bool; None: nothing was ever removed.
        unchanged: optimizer steps since the structure last changed.
        epochs: epochs begun by schedules of the model's own, so that the next one draws other batches.

    Raises:
        UserError: the dense model has no parameters.
    """

    def __init__(
        self, dense: nn.Module, example: Any, make_optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    ) -> None:
        self.dense, self.example, self.make_optimizer = dense, example, make_optimizer
        if next(dense.parameters(), None) is None:
            raise UserError("this model has no parameters: there is nothing to train; give another one")
        self.network = dense
        self.optimizer = make_optimizer(dense)
        self.present: Tensor | None = None
        self.unchanged = self.epochs = 0
        self._macs: int | None = None
        self._axes: list[_OwnedAxis] | None = None

    @cached_property
    def space(self) -> Space:
        """What of the dense model can be present or absent; discovered when first asked for."""
        return find_space(self.dense, self.example)

    @property
    def structures(self) -> Tensor:
        """The structures of the network, shape (structures,), bool."""
        return self.space.full() if self.present is None else self.present

    @property
    def macs(self) -> int:
        """Forward MACs of the network for one input."""
        if self._macs is None:
            self._macs = (
                count_macs(self.network, self.example) if self.present is None else self.space.macs(self.present)
            )
        return self._macs

    @torch.profiler.record_function("restructuring")
    def resize(self, present: Tensor, newborn: Newborn = "initial") -> None:
        """Makes ``present`` the structures that train from now on; nothing happens if they are.

        Args:
            present: shape (structures,), bool; every channel group needs at least one filter.
            newborn: how structures that join start.

        Raises:
            UserError: a channel group has no filter left.
        """
        before = self.structures
        if torch.equal(before, present):
            return
        for group in self.space.groups:
            if not present[group.structures].any():
                raise UserError(f"no filter of {group.name!r} is left; keep at least one in every channel group")
        if self.network is not self.dense:
            absorb(self.space, self.dense, before, self.network)
        if callable(newborn):
            newborn(self, before, present)
        elif newborn != "initial":
            zero_init(self.space, self.dense, before, present, normalised_only=newborn == "quiet")
        old = (before, self.network, self.optimizer)
        self._take_up(present)
        carry_optimizer(self.space, old, (present, self.network, self.optimizer))
        carry_state(self.space, old[:2], (present, self.network))

    def variants(self, structures: Iterable[Tensor]) -> Iterator[nn.Module]:
        """Sub-networks of other structures with the weights as they are now, to look at: they do not train, and what
        they change of their own (running statistics) is dropped with them."""
        if self.network is not self.dense:
            absorb(self.space, self.dense, self.structures, self.network)
        for present in structures:
            network = extract(self.space, self.dense, present).train(self.network.training)
            carry_state(self.space, (self.structures, self.network), (present, network))
            yield network

    def filter_sums(
        self,
        measure: Callable[[nn.Parameter], Tensor | None],
        of: Collection[str] = ("creating",),
        each: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Sums a measure of the weights over all that belong to a filter. Can be differentiated.

        Args:
            measure: gives a tensor of the shape of a weight, e.g. ``torch.abs``, or ``lambda w: (w * w.grad).abs()``;
                None: that weight does not count.
            of: which weights count (:data:`WeightRole`).
            each: what to make of a filter's sum in one weight before those of several weights are added, elementwise:
                of squares the root, for the sum of its norms; None: nothing.

        Returns:
            shape (structures,): zero for absent filters and for layers.
        """
        total = torch.zeros(len(self.space), device=device_of(self.example))
        parameters = dict(self.network.named_parameters())
        for axis in self._owned_axes:
            values = measure(parameters[axis.name]) if axis.role in of else None
            if values is None:
                continue
            sums = values.movedim(axis.dim, 0).unsqueeze(-1).flatten(1).sum(1)[axis.entries].to(total.dtype)
            if each is None:
                total = total.index_add(0, axis.numbers, sums)
            else:
                whole = sums.new_zeros(len(axis.filters)).index_add(0, axis.places, sums)
                total = total.index_add(0, axis.filters, each(whole))
        return total

    def filter_vectors(self, of: Collection[str] = ("creating",)) -> list[Tensor]:
        """The weights that belong to each filter, side by side.

        Args:
            of: which weights count (:data:`WeightRole`).

        Returns:
            for each group a copy of shape (its present filters, weights of one), in the order of the space.
        """
        parts: list[list[Tensor]] = [[] for _ in self.space.groups]
        parameters = dict(self.network.named_parameters())
        for axis in self._owned_axes:
            if axis.role in of:
                slices = parameters[axis.name].detach().movedim(axis.dim, 0).unsqueeze(-1).flatten(1)
                for group, found in zip(self.space.groups, parts, strict=True):
                    inside = (axis.numbers >= group.start) & (axis.numbers < group.start + group.size)
                    at = axis.entries[inside][torch.argsort(axis.numbers[inside], stable=True)]
                    if len(at):  # a filter may own several entries of an axis, as a recurrent unit does in each gate
                        found.append(slices[at].view(int(axis.numbers[inside].unique().numel()), -1))
        nothing = torch.zeros(0, 0, device=device_of(self.example))
        return [torch.cat(found, 1) if found else nothing for found in parts]

    @property
    def _owned_axes(self) -> list[_OwnedAxis]:
        """The axes of the network's weights that filters own."""
        if self._axes is None:
            self._axes = []
            taken_in = set(self.space.consumers)
            for name, weight in self.network.named_parameters():
                for dim in range(weight.ndim):
                    owner = self.space.owners.get((name, dim))
                    if owner is None:
                        continue
                    if (name, dim) in taken_in:
                        role: WeightRole = "consuming"
                    elif weight.ndim > 1:
                        role = "creating"
                    else:
                        role = "scale" if is_scale(name, weight) else "shift"
                    kept = self.space.kept(self.structures, (name, dim))
                    numbers = owner if kept is None else owner[kept]
                    entries = torch.nonzero(numbers >= 0).flatten()
                    filters, places = torch.unique(numbers[entries], return_inverse=True)
                    indices = (each.to(weight.device) for each in (entries, numbers[entries], filters, places))
                    self._axes.append(_OwnedAxis(role, name, dim, *indices))
        return self._axes

    def _take_up(self, present: Tensor) -> None:
        self.present = present.clone()
        self.network = extract(self.space, self.dense, present).train(self.network.training)
        self.optimizer = self.make_optimizer(self.network)
        self.unchanged = 0
        self._macs, self._axes = None, None

    def state_dict(self) -> dict[str, Any]:
        """Everything that training changes."""
        return {
            "dense": None if self.network is self.dense else self.dense.state_dict(),
            "present": self.present,
            "network": self.network.state_dict(),
            "running": _running_state(self.network),
            "optimizer": self.optimizer.state_dict(),
            "unchanged": self.unchanged,
            "epochs": self.epochs,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what :meth:`state_dict` gave, in a model made from the same dense one."""
        if state["present"] is None:
            if self.present is not None:
                self.network, self.present, self._macs, self._axes = self.dense, None, None, None
                self.optimizer = self.make_optimizer(self.dense)
        else:
            self.space  # noqa: B018  (discovered while the dense model is as it was made)
            self.dense.load_state_dict(state["dense"])
            if self.present is None or not torch.equal(self.present, state["present"]):
                self._take_up(state["present"])  # else what the method did to the network's modules is left alone
        self.network.load_state_dict(state["network"])
        for name, tensor in state["running"].items():
            path, _, key = name.rpartition(".")
            self.network.get_submodule(path)._buffers[key] = tensor.to(device_of(self.example), copy=True)
        self.optimizer.load_state_dict(state["optimizer"])
        self.unchanged, self.epochs = state["unchanged"], state["epochs"]


def _running_state(network: nn.Module) -> dict[str, Tensor]:
    """The buffers that no checkpoint of a network holds: what a recurrent one hands from batch to batch."""
    kept = network.state_dict()
    return {name: buffer for name, buffer in network.named_buffers() if name not in kept}
