"""Layer classes that discovery cannot see into, and how to cut them: told by their authors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import nn

from nasbench_grow.base.errors import UserError


@dataclass(frozen=True)
class LayerKind:
    """How to cut a layer: by the names of its tensors, the dimension along which its channels run."""

    SIDES: ClassVar[tuple[str, ...]] = ("inputs", "outputs", "both")

    inputs: Mapping[str, int] = field(default_factory=dict)
    outputs: Mapping[str, int] = field(default_factory=dict)
    both: Mapping[str, int] = field(default_factory=dict)
    channels: int = 1


_KINDS: dict[type[nn.Module], LayerKind] = {}


def register_layer(
    layer: type[nn.Module],
    *,
    inputs: Mapping[str, int] | None = None,
    outputs: Mapping[str, int] | None = None,
    both: Mapping[str, int] | None = None,
    channels: int = 1,
) -> None:
    """Tells discovery how to cut a class of layers whose operations it cannot follow.

    Each mapping takes the name of a parameter or buffer of the layer to the dimension of it along which channels run.
    A layer that registers no ``outputs`` gives the channels that it takes. What a layer computes for the channels that
    stay must not depend on those that leave but through the tensors named; discovery checks that.

    Args:
        layer: the class; instances of subclasses are cut alike.
        inputs: tensors along the channels that the layer takes in, e.g. ``{"weight": 1}``.
        outputs: tensors along the channels that it makes, e.g. ``{"weight": 0, "bias": 0}``; the first is the one that
            makes them.
        both: tensors along channels that pass through, e.g. ``{"scale": 0}``.
        channels: the dimension of the layer's first input and of its output that holds the channels.

    Raises:
        UserError: ``layer`` is no class of modules, no tensor is named, or channels pass through a layer that makes its
            own.
    """
    if not (isinstance(layer, type) and issubclass(layer, nn.Module)):
        raise UserError(f"{layer!r} is not a class of modules; give a subclass of torch.nn.Module")
    kind = LayerKind(inputs or {}, outputs or {}, both or {}, channels)
    if not (kind.inputs or kind.outputs or kind.both):
        raise UserError(f"no tensor of {layer.__name__} is named; give inputs, outputs or both")
    if kind.both and kind.outputs:
        raise UserError(
            f"{layer.__name__} has both={dict(kind.both)!r} and outputs={dict(kind.outputs)!r}: its channels pass "
            "through or are made; give one of the two"
        )
    for side in kind.SIDES:
        for key, dim in getattr(kind, side).items():
            if not isinstance(dim, int) or dim < 0:
                raise UserError(
                    f"{side}[{key!r}] of {layer.__name__} is {dim!r}; give the number of a dimension, 0 or more"
                )
    _KINDS[layer] = kind


def kind_of(module: nn.Module) -> LayerKind | None:
    """How a module was registered to be cut, if it was."""
    return next((_KINDS[each] for each in type(module).__mro__ if each in _KINDS), None)
