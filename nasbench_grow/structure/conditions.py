"""The copy of a model that discovery examines, and how it runs there: the same at each call, in one precision.

Models make numbers of their own while they run: they cast to single precision, begin with states of zero, drop what
chance picks. Examined so, two networks that compute the same would seem to differ. So inside a probe all floating point
numbers have the probe's precision, the random ones that torch gives are the middle of what they could be (noise is
zero, nothing is dropped), and all other randomness starts anew at each call.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nasbench_grow.base import randomness
from nasbench_grow.base.calling import call, shapes
from nasbench_grow.base.devices import DEVICE_ERRORS
from nasbench_grow.base.errors import UserError, one_line
from nasbench_grow.base.precision import COMPLEX
from nasbench_grow.base.trees import device_of, tensors
from nasbench_grow.structure.probing import random_batch, randomised, repeat

PRECISIONS = {torch.double: 1e-8, torch.float: 1e-3}
"""Those to examine a model in, the better one first, with the largest difference that is taken for rounding, as a share
of the largest output."""
SEEDS, MOST_VIEWS = 8, 4
"""With how many seeds a random model is tried, and how many of its ways are examined at most."""

_WEIGHTED = (nn.modules.conv._ConvNd, nn.Linear, nn.Embedding, nn.RNNBase)
_CASTS = (Tensor.float, Tensor.double, Tensor.half, Tensor.bfloat16)
_TYPES = (torch.half, torch.bfloat16, torch.float, torch.double)
_DROPS = ("dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
_MIDDLES = {"randn": 0.0, "randn_like": 0.0, "normal_": 0.0, "rand": 0.5, "rand_like": 0.5, "uniform_": 0.5}
_MIDDLES |= {"bernoulli": 1.0, "bernoulli_": 1.0, "normal": 0.0}


class Probe:
    """A copy of a model on which a wrong coupling shows, and a batch to run it on.

    Args:
        model: left as it is.
        example: one input with a batch axis.
        precision: one of :data:`PRECISIONS`.

    Attributes:
        module: the copy; its own copies run as it does.
        inputs: for :func:`nasbench_grow.base.calling.call`.
        training: whether the parts of it that are no layers are in training mode, and go through what runs only there.
        seed: of what is random in it and cannot be set to the middle.
        random: whether it was seen to ask for random numbers.
    """

    def __init__(self, model: nn.Module, example: Any, precision: torch.dtype) -> None:
        self.precision, self.training, self.seed, self.random = precision, False, 0, False
        self.module = randomised(model, precision)
        self.inputs = repeat(example, precision)
        running: list[ExitStack] = []
        self.module.register_forward_pre_hook(lambda root, _: running.append(self._enter(root)))
        self.module.register_forward_hook(lambda *_: running.pop().close(), always_call=True)
        self.inputs = random_batch(self.module, example, precision)
        self.random = False

    @property
    def tolerance(self) -> float:
        """Largest difference from a definition that is taken for rounding, as a share of the largest output."""
        return PRECISIONS[self.precision]

    def views(self) -> Iterator[None]:
        """Evaluation mode and whatever the model does otherwise in training or by chance: the probe is set to each."""
        for training, seed in self._views:
            self.training, self.seed = training, seed
            try:
                yield
            finally:
                self.training, self.seed = False, 0

    @cached_property
    def _views(self) -> list[tuple[bool, int]]:
        """Modes and seeds in which the model calls other layers, or gives something else than in evaluation mode.

        Raises:
            UserError: layers that did not run in evaluation mode may run in training, where the model does not run on
                the example.
        """
        called, outputs = self._calls(False, 0)
        views, seen = [(False, 0)], [called]
        chances = [(False, seed) for seed in range(1, SEEDS)] if self.random else []
        self.random = False
        try:
            others, given = self._calls(True, 0)
        except DEVICE_ERRORS:
            raise
        except Exception as error:
            self._refuse_hidden(called, error)
        else:
            chances += [(True, seed) for seed in range(1, SEEDS)] if self.random else []
            same = len(given) == len(outputs) and all(map(torch.equal, outputs, given))
            if others != called or not same:
                views.append((True, 0))
                seen.append(others)
        for view in chances:
            others, _ = self._calls(*view)
            if others not in seen:
                views.append(view)
                seen.append(others)
        return views[:MOST_VIEWS]

    def _refuse_hidden(self, called: list[str], error: Exception) -> None:
        """Raises if layers may have been missed because of an error in training mode."""
        makers = [name for name, module in self.module.named_modules() if isinstance(module, _WEIGHTED)]
        hidden = [name for name in makers if name not in called]
        if hidden:
            raise UserError(
                f"{', '.join(hidden[:3])} may run in training, where the model does not run on the example "
                f"({one_line(error)}); give an example that it takes in training, too, or a model without them"
            ) from error

    def _calls(self, training: bool, seed: int) -> tuple[list[str], list[Tensor]]:
        """What :meth:`calls` gives in a mode and with a seed."""
        self.training, self.seed = training, seed
        try:
            return self.calls()
        finally:
            self.training, self.seed = False, 0

    def _enter(self, root: nn.Module) -> ExitStack:
        """What holds during one call of the module or of a copy of it."""
        stack = ExitStack()
        stack.enter_context(self._anew(device_of(self.inputs)))
        stack.enter_context(_buffers_kept(root))
        if self.training:
            stack.enter_context(_in_training(root))
        default = torch.get_default_dtype()
        torch.set_default_dtype(self.precision)
        stack.callback(torch.set_default_dtype, default)
        uniform = stack.enter_context(_Uniform(self.precision))
        stack.callback(lambda: setattr(self, "random", self.random or uniform.dropped))
        return stack

    @contextmanager
    def _anew(self, device: torch.device) -> Iterator[None]:
        """All generators start at the seed, and go on afterwards as if nothing had been drawn."""
        states = randomness.states(device)
        randomness.seed_all(self.seed)
        before = randomness.states(device)
        try:
            yield
        finally:
            now = randomness.states(device)
            drawn = any(now[name] != before[name] for name in ("python", "numpy"))
            self.random |= drawn or not torch.equal(now["torch"], before["torch"])
            randomness.put_back(states, device)

    def calls(self) -> tuple[list[str], list[Tensor]]:
        """The modules with parameters of their own that a call runs, in order, and the tensors that it gives."""
        order: list[str] = []
        hooks = [
            module.register_forward_hook(lambda *_, name=name: order.append(name))
            for name, module in self.module.named_modules()
            if next(module.parameters(recurse=False), None) is not None
        ]
        try:
            with torch.no_grad():
                return order, tensors(call(self.module, self.inputs))
        finally:
            for hook in hooks:
                hook.remove()


def probe_of(model: nn.Module, example: Any) -> Probe:
    """A probe in the best precision in which the model runs.

    Raises:
        UserError: it runs in none, or it cannot be copied.

    Warns:
        UserWarning: it is random even in evaluation mode.
    """
    for precision in PRECISIONS:
        try:
            probe = Probe(model, example, precision)
            probe.calls()
        except DEVICE_ERRORS:
            raise
        except Exception as error:
            reason = one_line(error)
            continue
        if probe.random:
            warnings.warn(
                f"the forward pass of {type(model).__name__} is random even in evaluation mode; it was examined with "
                "its random numbers fixed",
                stacklevel=4,
            )
        return probe
    raise UserError(
        f"cannot examine a copy of {type(model).__name__} on an input of shape {shapes(example)}: {reason}; "
        "give a model that runs on several random inputs and can be copied"
    )


@contextmanager
def _buffers_kept(root: nn.Module) -> Iterator[None]:
    """Copies stand in for all buffers: some modules change theirs in a call, and another network may have the same."""
    held = [(module, dict(module._buffers)) for module in root.modules()]
    copies = {id(buffer): buffer.clone() for buffer in root.buffers()}
    for module, buffers in held:
        module._buffers.update({key: copies.get(id(buffer), buffer) for key, buffer in buffers.items()})
    try:
        yield
    finally:
        for module, buffers in held:
            module._buffers.update(buffers)


@contextmanager
def _in_training(root: nn.Module) -> Iterator[None]:
    """All modules but torch's own layers, of which some drop, are in training mode."""
    flags = [(module, module.training) for module in root.modules()]
    for module, flag in flags:
        module.training = flag or not type(module).__module__.startswith("torch.nn.modules")
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag


class _Uniform(TorchFunctionMode):
    """Floating point numbers of one precision, random ones in the middle of their range, but for single ones, by which
    a model may choose its way; notes whether anything would have been dropped."""

    def __init__(self, precision: torch.dtype) -> None:
        super().__init__()
        self.precision = precision
        self.dropped = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        kwargs = {key: self._cast(value) for key, value in (kwargs or {}).items()}
        args = tuple(map(self._cast, args))
        if func in _CASTS:
            return args[0].to(self.precision)
        if name.removesuffix("_") in _DROPS:
            self.dropped |= bool(kwargs.get("training", args[2] if len(args) > 2 else True))
            return args[0] if args else kwargs["input"]
        if "dropout_p" in kwargs:  # of attention
            kwargs["dropout_p"] = 0.0
        result = func(*args, **kwargs)
        if name in _MIDDLES and result.numel() > 1:
            mean = (*args, kwargs.get("mean", 0.0))[0] if name == "normal" else _MIDDLES[name]
            with torch.no_grad():
                result.copy_(torch.as_tensor(mean))
        return result

    def _cast(self, argument: Any) -> Any:
        if isinstance(argument, torch.dtype) and argument in COMPLEX.values():
            return COMPLEX[self.precision]
        return self.precision if isinstance(argument, torch.dtype) and argument in _TYPES else argument
