"""How a model is called with whatever structure of tensors it takes.

What a model takes is written as one value: a dict holds keyword arguments, a tuple or a list positional ones, and
anything else is the one argument.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from nasbench_grow.base.trees import map_tensors, tensors


class Stepped:
    """A training batch that the user's own function makes a loss of, in the place of a model's inputs.

    Args:
        step: ``step(network, batch)``, a scalar loss.
        batch: whatever it needs.
    """

    def __init__(self, step: Callable[[nn.Module, Any], Tensor], batch: Any) -> None:
        self.step, self.batch = step, batch
        self.samples = 0
        """How many inputs the network was called with the last time; where the step calls parts of the network alone,
        how many the batch holds."""

    def run_on(self, network: nn.Module) -> Tensor:
        """The loss of a network, whose inputs are counted."""
        seen = []

        def count(_: nn.Module, positional: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            seen.append(batch_length(positional or keywords))

        hook = network.register_forward_pre_hook(count, with_kwargs=True)
        try:
            return self.step(network, self.batch)
        finally:
            hook.remove()
            self.samples = sum(seen) or batch_length(self.batch)


def call(model: nn.Module, inputs: Any) -> Any:
    """What a model gives for its ``inputs``; the loss, where they are :class:`Stepped`."""
    if isinstance(inputs, Stepped):
        return inputs.run_on(model)
    positional, keywords = arguments(inputs)
    return model(*positional, **keywords)


def arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The positional and the keyword arguments that ``inputs`` stand for."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if type(inputs) in (tuple, list):  # a named tuple, such as a packed sequence, is one argument
        return tuple(inputs), {}
    return (inputs,), {}


def batch_length(inputs: Any) -> int:
    """How many samples a model's inputs hold: the length of the first axis of the first tensor that has axes.

    Of a list of images, tensors of up to three axes each, as detectors take, it is their number; of :class:`Stepped`,
    what the network was last called with.
    """
    if isinstance(inputs, Stepped):
        return inputs.samples
    positional, keywords = arguments(inputs)
    for given in (*positional, *keywords.values()):
        if isinstance(given, PackedSequence):
            return int(given.batch_sizes[0])
        if isinstance(given, list) and given and all(isinstance(one, Tensor) and one.ndim <= 3 for one in given):
            return len(given)
        for tensor in tensors(given):
            if tensor.ndim:
                return len(tensor)
    return 1


def first_samples(inputs: Any, count: int) -> Any:
    """The first samples in a model's inputs, at most ``count``; tensors without a batch axis stay as they are."""
    samples = batch_length(inputs)
    return map_tensors(lambda each: each[:count] if each.ndim and len(each) == samples else each, inputs)


def shapes(inputs: Any) -> str:
    """The shapes of the tensors in a model's inputs, for a message."""
    return ", ".join(str(tuple(tensor.shape)) for tensor in tensors(inputs)) or "no tensor"


@contextmanager
def flattened(model: nn.Module, example: Any) -> Iterator[tuple[Tensor, ...]]:
    """Lets a model take the tensors of ``example``, which are given, one by one, and give a tuple of tensors: what
    tracers can follow."""
    forward, own = model.forward, "forward" in vars(model)

    def flat(*given: Tensor) -> tuple[Tensor, ...]:
        rest = iter(given)
        positional, keywords = arguments(map_tensors(lambda _: next(rest), example))
        return tuple(tensors(forward(*positional, **keywords)))

    model.forward = flat
    try:
        yield tuple(tensors(example))
    finally:
        if own:
            model.forward = forward
        else:
            del model.forward
