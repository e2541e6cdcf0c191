"""Torch-Pruning's dependency graph, with three things put right that residual, dense and split networks run into.

Pieces of a split are told apart by which piece they are, not by the order in which tracing meets them. The pieces of an
even split shrink together, or it would cut the smaller tensor elsewhere. And where an entry is reached from two entries
of the root, both are kept (Torch-Pruning keeps the first, so that channels which one tensor ties together stay apart in
the others). Every entry is visited once, so that large groups take no longer.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import pairwise
from types import NoneType, SimpleNamespace
from typing import Any, NamedTuple

import torch_pruning
from torch import Tensor, nn
from torch_pruning import ops
from torch_pruning.dependency.dependency import Dependency
from torch_pruning.dependency.index_mapping import _GQAIndexMapping
from torch_pruning.dependency.node import Node


class Entry(NamedTuple):
    """An index of some node's channels, and the index of the root's channels that it depends on."""

    idx: int
    root_idx: int


class Coupled(NamedTuple):
    """Entries of one module that must leave together with entries of the root of their group, one to one."""

    dep: Any
    """The dependency that reached them: ``dep.target`` is the module's node, ``dep.handler`` says which side of it."""
    idxs: list[int]
    root_idxs: list[int]


MOST_OPERATIONS = 20_000
"""Operations of a forward pass that are followed at most, so that discovery ends."""
MOST_JOINED = 300
"""Tensors that one operation may join: Torch-Pruning compares every three of them."""
COUNTED_ON = 16
"""How far the entries of an operation are counted, in numbers that it gives."""
MOST_ENTRIES = 5_000_000
"""Entries that are visited at most, for all groups together."""


class DependencyGraph(torch_pruning.DependencyGraph):
    """Which channels depend on which; build it with ``build_dependency``.

    Attributes:
        unresolved: the modules whose dependencies are more than can be followed, with the reason.
    """

    def __init__(self) -> None:
        super().__init__()
        self.unresolved: dict[nn.Module, str] = {}
        self._left = MOST_ENTRIES

    def groups(self, types: tuple[type[nn.Module], ...]) -> Iterator[list[Coupled]]:
        """For every module of ``types`` that no earlier group makes channels with: all that depends on its outputs.

        The first item of a group is the root itself.
        """
        done: set[Any] = set()
        for module in list(self.module2node):
            if isinstance(module, types) and module not in done:
                group = self._reached(module)
                done |= {item.dep.target.module for item in group if self.is_out_channel_pruning_fn(item.dep.handler)}
                yield group

    def _reached(self, root: nn.Module) -> list[Coupled]:
        """Everything that can be reached from a module's outputs."""
        pruner, node = self.get_pruner_of_module(root), self.module2node[root]
        side = pruner.prune_out_channels
        start = Dependency(side, side, source=node, target=node)
        found = [Coupled(start, *[list(range(pruner.get_out_channels(root)))] * 2)]
        seen: dict[tuple[Node, Callable[..., Any]], dict[int, int]] = defaultdict(dict)
        seen[node, side] = {index: index for index in found[0].idxs}
        pending = [(node, side, [Entry(index, index) for index in found[0].idxs])]
        while pending:
            node, side, entries = pending.pop()
            for dependency in node.dependencies:
                if dependency.is_triggered_by(side):
                    reached = entries
                    for mapping in _mappings(dependency):
                        reached = mapping(reached)
                    known = seen[dependency.target, dependency.handler]
                    met = [entry for entry in reached if known.get(entry.idx, entry.root_idx) != entry.root_idx]
                    size = self._size(dependency.target)
                    new = [entry for entry in reached if entry.idx not in known and entry.idx < size]
                    self._left -= len(new)
                    if self._left < 0:
                        self.unresolved[root] = "its channels depend on more others than can be followed"
                        return found
                    known |= {entry.idx: entry.root_idx for entry in reversed(new)}
                    if met:
                        joined = [known[entry.idx] for entry in met]
                        found.append(Coupled(start, joined, [entry.root_idx for entry in met]))
                    if new:
                        found.append(
                            Coupled(dependency, [entry.idx for entry in new], [entry.root_idx for entry in new])
                        )
                        pending.append((dependency.target, dependency.handler, new))
        return found

    @staticmethod
    def _size(node: Node) -> float:
        """Where the count of an operation's entries ends: several times the numbers that it gives, as pieces of a whole
        are counted on. Loops would count on without end."""
        made = getattr(node.grad_fn, "_input_metadata", None)
        if (isinstance(node.module, nn.Module) and node.type is not ops.OPTYPE.ELEMENTWISE) or not made:
            return math.inf
        return COUNTED_ON * max(math.prod(each.shape) for each in made)

    def _build_dependency(self, module2node: dict[Any, Node]) -> None:
        """Gives every piece of a split a node of its own before Torch-Pruning counts them, and ties even pieces."""
        splits = [node for node in module2node.values() if node.type == ops.OPTYPE.SPLIT]
        for split in splits:
            self._separate(split, module2node)
        super()._build_dependency(module2node)
        for split in splits:
            if len(set(split.grad_fn._saved_split_sizes)) == 1:
                for one, other in pairwise(split.outputs):
                    side = self.get_pruner_of_module(one.module).prune_out_channels
                    one.dependencies.append(Dependency(side, side, source=one, target=other))
                    other.dependencies.append(Dependency(side, side, source=other, target=one))

    def _separate(self, split: Node, module2node: dict[Any, Node]) -> None:
        """Puts a node for each piece between a split and what takes the piece."""
        sizes = _piece_sizes(split.grad_fn)
        pieces = []
        for _ in sizes:
            piece = Node(ops._ElementWiseOp(self._op_id, "piece"), grad_fn=None)
            self._op_id += 1
            piece.add_input(split)
            module2node[piece.module] = piece
            pieces.append(piece)
        for taker in dict.fromkeys(split.outputs):
            numbers = [number for function, number in taker.grad_fn.next_functions if function is split.grad_fn]
            places = [place for place, given in enumerate(taker.inputs) if given is split]
            for place, number in zip(places, numbers, strict=True):
                taker.inputs[place] = pieces[number]
                pieces[number].add_output(taker)
        split.outputs = pieces
        split.grad_fn = SimpleNamespace(_saved_split_sizes=sizes, _saved_dim=split.grad_fn._saved_dim)


def followable(outputs: list[Tensor]) -> list[Tensor]:
    """The outputs that depend on what can be traced.

    Raises:
        ValueError: too many operations lead to them.
    """
    outputs = [output for output in outputs if output.grad_fn is not None]
    seen, pending = set[Any](), [output.grad_fn for output in outputs]
    while pending:
        function = pending.pop()
        if function is None or function in seen:
            continue
        seen.add(function)
        joined = len(function.next_functions)
        if len(seen) > MOST_OPERATIONS or joined > MOST_JOINED:
            number, what = (MOST_JOINED, "tensors in one") if joined > MOST_JOINED else (MOST_OPERATIONS, "operations")
            raise ValueError(f"more than {number} {what}, as of a loop over a long input; give a shorter one")
        pending += [given for given, _ in function.next_functions]
    return outputs


def _mappings(dependency: Any) -> list[Callable[[list[Entry]], list[Entry]]]:
    """How indices change along a dependency. A reshaped parameter (a scale made to fit images) is never a flattening,
    nor is every expansion of five dimensions one of attention heads, for which Torch-Pruning may take them."""
    for node in (dependency.source, dependency.target):
        if node.type == ops.OPTYPE.RESHAPE and any(given.type == ops.OPTYPE.PARAMETER for given in node.inputs):
            return []
    return [mapping for mapping in dependency.index_mapping if not isinstance(mapping, (NoneType, _GQAIndexMapping))]


def _piece_sizes(function: Any) -> list[int]:
    """Lengths of the pieces that a split's gradient function was made for."""
    if hasattr(function, "_saved_split_sizes"):
        return list(function._saved_split_sizes)
    shape, dim, size = function._saved_self_sym_sizes, function._saved_dim, function._saved_split_size
    length = shape[dim if dim < len(shape) else dim - 2**64]  # a negative dimension is kept as an unsigned number
    return [min(size, length - start) for start in range(0, length, size)]
