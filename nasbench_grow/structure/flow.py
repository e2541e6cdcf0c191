"""Which channels are coupled, read off the operations of one forward pass.

Every dimension of every tensor carries one number per entry: whose absence makes the entry disappear. Operations that
move entries are applied to the numbers themselves; operations that meet entry by entry, and sums of products, join the
numbers of both sides. Nothing is known of module classes, so that gates, splits, heads and parameters of a user's own
layers are followed alike.

Where one dimension becomes several (heads and the features of each), its entries can leave along one of them only:
a *site*, with an option a dimension. Which one the network lives with shows when it is run.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.weak import WeakIdKeyDictionary

from nasbench_grow.base.calling import call
from nasbench_grow.base.devices import DEVICE_ERRORS
from nasbench_grow.base.errors import UserError
from nasbench_grow.base.trees import map_tensors, tensors
from nasbench_grow.structure import flow_rules
from nasbench_grow.structure.exactness import OUTPUT
from nasbench_grow.structure.flow_einsum import Equations
from nasbench_grow.structure.registry import LayerKind, kind_of

Vector = np.ndarray
"""Numbers of the entries of one dimension, shape (length,), int64."""
Labels = list[Vector | None]
"""A vector for each dimension; None where no entry can leave, or where the tensor is made as long as it has to be."""
MOST_OPERATIONS = 20_000
"""Operations of a forward pass that are followed at most, so that discovery ends."""


@dataclass
class Site:
    """A place where a dimension was divided: its name, the dimension's numbers, how many options there are."""

    name: str
    vector: Vector
    options: int


@dataclass
class Product:
    """Multiply-accumulates of one operation: how many, along which dimensions they shrink, and in which module."""

    macs: int
    vectors: list[Vector]
    module: str


@dataclass
class Frame:
    """What was seen while one module's own ``forward`` ran (not those of its children)."""

    name: str
    given: Vector | None = None
    """Numbers along the channels of the module's first input."""
    sizes: list[tuple[int, Vector]] = field(default_factory=list)
    """Sizes that were handed to an operation, each with the dimension that came of it."""
    passed: list[tuple[int, Vector]] = field(default_factory=list)
    """Those of dimensions that were as long before."""
    lengths: list[tuple[int, Vector]] = field(default_factory=list)
    """Lengths of the dimensions that were seen."""
    written: list[tuple[int, Vector]] = field(default_factory=list)
    """Dimensions by their place in a shape that a tensor was told to take."""
    others: set[int] = field(default_factory=set)
    """Sizes that were handed to an operation for dimensions of which nothing can leave."""
    sites: int = 0


class Flow(TorchDispatchMode):
    """Follows the entries of all axes through whatever runs inside.

    Args:
        model: the network to be run; its parameters and floating-point buffers are numbered.
        number: gives the numbers of the entries of a tensor's dimension, by the tensor's name.
        join: takes two vectors of one length whose entries leave together, one to one.
        choices: the option to take at each site (0 where none is named).
        ties: modules whose output must be as wide as their input, channel by channel.
    """

    def __init__(
        self,
        model: nn.Module,
        number: Callable[[str, int], Vector],
        join: Callable[[Vector, Vector], None],
        choices: dict[str, int],
        ties: set[str],
    ) -> None:
        super().__init__()
        self.model, self.number, self.join, self.choices, self.ties = model, number, join, choices, ties
        self.labels: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self.weights: WeakIdKeyDictionary = WeakIdKeyDictionary()
        held = [*model.named_buffers(), *model.named_parameters()]
        self.names = {id(tensor): name for name, tensor in held}
        self.dimensions = {name: tensor.ndim for name, tensor in held}
        self.chosen: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self.rooted: set[int] = set()
        self.roots: dict[str, Vector] = {}
        self.makers: dict[tuple[str, int], None] = {}
        self.taken_in: dict[tuple[str, int], None] = {}
        self.added: dict[tuple[str, int], None] = {}
        self.origin: dict[int, tuple[str, int]] = {}
        self.picked: list[Vector] = []
        self.reasons: list[tuple[Vector, str]] = []
        self.sites: list[Site] = []
        self.products: list[Product] = []
        self.frames: dict[str, Frame] = {}
        self.stack: list[Frame] = [Frame("")]
        self.operations = 0

    def run(self, inputs: Any, views: Iterable[None] = (None,), more: Any = None) -> None:
        """Runs the model on one sample, whose own entries all stay, as do those of its output.

        Args:
            inputs: one sample.
            views: while each is given, the model runs in another way (:meth:`Probe.views`). The first must succeed and
                is the one that costs.
            more: several samples, for layers that one does not reach (experts that it does not choose).
        """
        hooks = []
        for name, module in self.model.named_modules():
            hooks.append(module.register_forward_pre_hook(lambda _, given, name=name: self._enter(name, given)))
            hooks.append(module.register_forward_hook(lambda *_: self._leave()))
            kind = kind_of(module)
            if kind is not None:
                self._replace(name, module, kind)
        inputs = map_tensors(torch.clone, inputs)
        for tensor in tensors(inputs):
            self.labels[tensor] = [np.zeros(length, np.int64) for length in tensor.shape]
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            for number, _ in enumerate(views):
                costs = list(self.products)
                try:
                    self._run_once(inputs)
                except DEVICE_ERRORS:
                    raise
                except Exception:  # in training, one sample may be too few
                    if not number:
                        raise
                if number:
                    self.products = costs
                elif more is not None and self._unreached():
                    costs = list(self.products)
                    with suppress(IndexError, RuntimeError, TypeError, ValueError):
                        self._run_once(map_tensors(torch.clone, more))
                    self.products = costs
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
            for hook in hooks:
                hook.remove()

    def _unreached(self) -> bool:
        """Whether there are parameters that nothing was done with."""
        return any(self.labels.get(parameter) is None for parameter in self.model.parameters())

    def _run_once(self, inputs: Any) -> None:
        self.stack = [Frame("")]
        with torch.no_grad(), self, Equations(self):
            output = call(self.model, inputs)
        for tensor in tensors(output):
            self.use_chosen(tensor)
            self.fix(tensor, OUTPUT)

    def _enter(self, name: str, given: tuple[Any, ...]) -> None:
        frame = self.frames.setdefault(name, Frame(name))
        frame.sites = 0  # in each call and run the same places have the same names
        tensors = [tensor for tensor in given if isinstance(tensor, Tensor)]
        vectors = [vector for vector in self.of(tensors[0]) if self.can_leave(vector)] if tensors else []
        if vectors:
            frame.given = vectors[-1]
        self.stack.append(frame)

    def _leave(self) -> None:
        self.stack.pop()

    def _replace(self, name: str, module: nn.Module, kind: LayerKind) -> None:
        """Lets a registered layer couple its input and output as it was registered."""
        own = module.forward

        def forward(inputs: Tensor, *rest: Any, **named: Any) -> Any:
            with torch.utils._python_dispatch._disable_current_modes():
                output = own(inputs, *rest, **named)
            axes = {side: [(f"{name}.{key}", dim) for key, dim in getattr(kind, side).items()] for side in kind.SIDES}
            vectors = {side: [self.number(*axis) for axis in axes[side]] for side in kind.SIDES}
            given = self.of(inputs)[kind.channels]
            self.joined([given, *vectors["inputs"], *vectors["both"]], consumed=axes["inputs"])
            made = self.joined(vectors["outputs"]) if vectors["outputs"] else given
            if vectors["outputs"]:
                self.root(axes["outputs"][0])
                self.added |= dict.fromkeys(axes["outputs"][1:])
            labels: Labels = [None] * output.ndim
            labels[kind.channels] = self.joined([made, *vectors["both"]]) if not vectors["outputs"] else made
            self.labels[output] = labels
            return output

        module.forward = forward

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operation and labels what it gives."""
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        tensors = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, Tensor)]
        self.operations += 1
        if self.operations > MOST_OPERATIONS:
            raise UserError(
                f"a forward pass has more than {MOST_OPERATIONS} operations, as of a loop over a long input; give a "
                "shorter one"
            )
        if tensors:
            flow_rules.apply(self, func, args, kwargs, output, tensors)
        return output

    # What the rules use

    def of(self, tensor: Tensor) -> Labels:
        """The labels of a tensor; those of a parameter are made on first sight."""
        known = self.labels.get(tensor)
        if known is None:
            known = [None] * tensor.ndim
            name = self.names.get(id(tensor))
            if name is not None and (tensor.is_floating_point() or tensor.is_complex()):
                known = [self.number(name, dim) if length > 1 else None for dim, length in enumerate(tensor.shape)]
                for dim, vector in enumerate(known):
                    if vector is not None:
                        self.origin |= dict.fromkeys(vector.tolist(), (name, dim))
                self.weights[tensor] = name
            self.labels[tensor] = known
        return known

    def weight(self, tensor: Tensor) -> str | None:
        """The name of the parameter that a tensor was computed from, and nothing else."""
        self.of(tensor)
        return self.weights.get(tensor)

    def give(self, output: Any, labels: Labels, sources: Iterable[Tensor] = ()) -> None:
        """Labels a result. What is made of one parameter alone counts as that parameter."""
        if not isinstance(output, Tensor):
            return
        self.labels[output] = [
            vector if vector is not None and len(vector) == length > 1 else None
            for vector, length in zip(labels, output.shape, strict=True)
        ]
        names = [self.weight(tensor) for tensor in sources]
        if names and names[0] is not None and all(names):
            self.weights[output] = names[0]
        frame = self.stack[-1]
        frame.lengths += [(len(vector), vector) for vector in self.labels[output] if self.can_leave(vector)]

    def joined(self, vectors: Iterable[Vector | None], consumed: Iterable[tuple[str, int]] = ()) -> Vector | None:
        """Joins vectors entry by entry; the one to go on with (of a module that makes channels, if there is one)."""
        self.taken_in |= dict.fromkeys(consumed)
        known = [vector for vector in vectors if vector is not None]
        for vector in known[1:]:
            if len(vector) == len(known[0]):
                self.join(known[0], vector)
            else:
                self.stay(vector, "it meets a tensor of another length")
        return min(known, key=lambda vector: not self.can_leave(vector), default=None)

    def stay(self, vector: Vector | None, reason: str) -> None:
        """Notes that all entries of a dimension stay."""
        if vector is not None and vector.any():
            self.reasons.append((vector, reason))

    def use_chosen(self, tensor: Tensor) -> None:
        """Says that all entries stay among which the numbers in a tensor choose: the rest would have other numbers."""
        for vector in self.chosen.get(tensor, ()):
            self.stay(vector, "one of its channels is chosen by its number")

    def fix(self, tensor: Tensor, reason: str) -> None:
        """Says that all entries of a tensor stay."""
        for vector in self.of(tensor):
            self.stay(vector, reason)

    def root(self, axis: tuple[str, int]) -> None:
        """Notes an axis as one that makes channels. A weight of more than two dimensions may make several kinds."""
        name, dim = axis
        path, _, key = name.rpartition(".")
        root = path if key == "weight" else name
        if root in self.roots and axis not in self.makers and self.dimensions[name] > 2:
            root = f"{root}[{dim}]"
        if axis not in self.taken_in and root not in self.roots:
            self.roots[root] = self.number(name, dim)
            self.makers[axis] = None
            self.rooted |= set(self.roots[root].tolist())

    def contract(self, left: Vector | None, right: Vector | None, tensors: tuple[Tensor, Tensor]) -> None:
        """Joins the two dimensions that a product sums over; a weight takes them in."""
        for vector, tensor in ((left, tensors[0]), (right, tensors[1])):
            other = tensors[1] if tensor is tensors[0] else tensors[0]
            if vector is not None and self.weight(tensor) and not self.weight(other):
                self.taken_in |= {self.origin[int(each)]: None for each in vector[:1] if int(each) in self.origin}
        self.joined([left, right])

    def made(self, vector: Vector | None, tensor: Tensor, other: Tensor) -> None:
        """Notes the dimension of a weight along which a product makes channels."""
        if vector is not None and self.weight(tensor) and not self.weight(other):
            for axis in dict.fromkeys(self.origin[int(each)] for each in vector if int(each) in self.origin):
                self.root(axis)

    def multiplied(self, macs: int, vectors: Iterable[Vector | None]) -> None:
        """Notes what a product costs."""
        self.products.append(Product(macs, [vector for vector in vectors if vector is not None], self.stack[-1].name))

    def note(self, size: int, vector: Vector | None, new: bool = True) -> None:
        """Notes a size that an operation was given and the dimension it stands for; whether there was none like it."""
        if vector is not None:
            frame = self.stack[-1]
            (frame.sizes if new else frame.passed).append((size, vector))

    def moved(self, numbers: Tensor, length: int) -> tuple[int, Vector] | None:
        """The dimension of a tensor of numbers along which these vary, and its vector; entries are joined where they
        vary along several.

        Args:
            numbers: what an operation made of the numbers of one dimension.
            length: how many those were.
        """
        shape = numbers.shape
        along = [
            dim for dim in range(numbers.ndim) if shape[dim] > 1 and bool((numbers != numbers.narrow(dim, 0, 1)).any())
        ]
        if not along:
            return None
        if len(along) > 1:
            frame = self.stack[-1]
            name, frame.sites = f"{frame.name}/{frame.sites}", frame.sites + 1
            dim = along[self.choices.get(name, 0) % len(along)]
        else:
            dim, name = along[0], ""
        first = numbers
        for other in range(numbers.ndim):
            if other != dim:
                first = first.narrow(other, 0, 1)
        if name:
            pairs = torch.stack([numbers.flatten(), first.expand(shape).flatten()]).unique(dim=1).numpy()
            self.join(pairs[0], pairs[1])
            self.sites.append(Site(name, pairs[0], len(along)))
        return dim, first.flatten().numpy()

    def tie(self, vector: Vector) -> None:
        """Joins what a module gives with what it was given, where that was asked for."""
        frame = self.stack[-1]
        tied = frame.name in self.ties and frame.given is not None and len(frame.given) == len(vector)
        if tied and self.can_leave(vector):
            self.join(frame.given, vector)  # type: ignore[arg-type]

    def prefer(self, one: Vector, other: Vector) -> tuple[Vector, Vector]:
        """Of two vectors that would share a dimension: the one that goes on, and the one whose entries must stay."""
        return (one, other) if self.can_leave(one) or not self.can_leave(other) else (other, one)

    def can_leave(self, vector: Vector | None) -> bool:
        """Whether entries of a dimension are, by all that was seen so far, channels that some module makes."""
        return vector is not None and not self.rooted.isdisjoint(vector.tolist())


def size_attributes(flow: Flow) -> Iterator[tuple[str, str, int | None, Vector]]:
    """The attributes in which modules keep the length of a dimension: module, attribute, the place in it where it is a
    list or tuple, and the numbers of the dimension's entries.

    Another number may have the same value (the side of a window that of heads). Where it may, what is counted is a
    site, too: all attributes of the module that have the value, each alone, none.
    """
    found: dict[tuple[str, int], list[tuple[str, Vector]]] = defaultdict(list)
    for name, key, place, vector in _candidates(flow):
        if place is None:
            found[name, len(vector)].append((key, vector))
        else:
            yield name, key, place, vector
    for (name, length), several in found.items():
        site = f"{name}/={length}"
        option = flow.choices.get(site, 0)
        choices = [several]
        if len(several) > 1:
            choices += [[each] for each in several]
        if length in flow.frames[name].others:
            choices.append([])
        flow.sites += [Site(site, vector, len(choices)) for _, vector in several]
        for key, vector in choices[option]:
            yield name, key, None, vector


def _candidates(flow: Flow) -> Iterator[tuple[str, str, int | None, Vector]]:
    modules = dict(flow.model.named_modules())
    for name, frame in flow.frames.items():
        module = modules[name]
        torchs = type(module).__module__.startswith("torch.nn") and not isinstance(module, nn.MultiheadAttention)
        for key, value in vars(module).items():
            if key.startswith("_") or isinstance(value, bool):
                continue
            if isinstance(value, int) and value > 1:
                seen = frame.sizes if torchs else [*frame.sizes, *reversed(frame.passed), *reversed(frame.lengths)]
                found = _standing_for(flow, value, seen)
                if found is not None:
                    yield name, key, None, found
            elif isinstance(value, (list, tuple)) and value and all(type(each) is int for each in value):
                remaining = list(frame.sizes)
                for place, each in enumerate(value):
                    found = _standing_for(flow, each, remaining)
                    if found is not None:
                        yield name, key, place, found
                        remaining = [(size, vector) for size, vector in remaining if vector is not found]


def _standing_for(flow: Flow, value: int, seen: list[tuple[int, Vector]]) -> Vector | None:
    """The first of the dimensions that are ``value`` long and that can shrink."""
    return next((vector for size, vector in seen if size == value == len(vector) and flow.can_leave(vector)), None)
