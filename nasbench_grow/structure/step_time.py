"""What a training step of a sub-network takes, estimated from measured times of its layers: the price in seconds.

Fewer multiply-accumulates save time only as far as the hardware likes the smaller shapes. So every layer of the dense
network is timed once at a grid of widths, and a sub-network's step is the sum over its layers, each interpolated
between the measured widths. The table is kept for the next run on the same device with the same PyTorch.
"""

from __future__ import annotations

import copy
import json
import math
import platform
import re
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from nasbench_grow.base.calling import call
from nasbench_grow.base.errors import UserError
from nasbench_grow.base.files import write_whole
from nasbench_grow.base.folders import data_folder
from nasbench_grow.base.parallel import from_first
from nasbench_grow.base.trees import device_of
from nasbench_grow.structure.space import Axis, Space
from nasbench_grow.structure.subnetwork import is_channels_last

SHARES = (0.125, 0.25, 0.5, 0.75, 1.0)
"""Of a layer's outputs and inputs: the widths at which it is timed, and at one filter."""
REPEATS = 5

Entry = dict[str, Any]
"""Of a layer: "widths", the numbers of outputs and of inputs that were timed, and "seconds", a row for each output."""
Table = dict[str, Entry]
"""By a layer's description: layers of one description take the same time."""
Clock = Callable[[Callable[[], object], torch.device], float]
"""Seconds of a call that runs forward and backward."""


@dataclass(frozen=True)
class Timing:
    """How a training step is run."""

    batch_size: int = 128
    precision: str = "fp32"
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext
    """The precision, for everything that runs inside."""


def synchronise(device: torch.device) -> None:
    """Waits for everything that the device was given to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(step: Callable[[], object], device: torch.device) -> float:
    """The fewest seconds of a few calls, after one to warm up: what else runs on the machine only adds to it."""
    times = []
    for _ in range(REPEATS + 1):
        synchronise(device)
        start = time.perf_counter()
        step()
        synchronise(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])


class StepTime:
    """Estimated seconds of a training step (forward and backward) of a sub-network.

    A convolution is timed with a batch norm and a ReLU, which cost time and hardly any MACs; a linear or recurrent
    layer alone. Products that belong to no such layer (attention) are charged by their MACs, at the mean rate of the
    layers that are timed. Times are made to rise with the widths: where a wider layer is measured to be faster than
    a narrow one, the price that meets a budget could not be found by bisection.

    Args:
        space: the configuration space.
        model: the dense network, on the device and in the memory layout of the run.
        example: one input with a batch axis of 1.
        timing: how a step is run.
        clock: how a layer is timed.
        folder: where tables are kept; None: beside the data sets.
    """

    def __init__(
        self,
        space: Space,
        model: nn.Module,
        example: Any,
        timing: Timing,
        *,
        clock: Clock = seconds,
        folder: Path | None = None,
    ) -> None:
        self.space = space
        layers = _layers(space, model, example, timing)
        self._keys = {axes: layer.key if layer else "" for axes, layer in layers.items()}
        path = (folder or data_folder() / "step-times") / f"{_run_on(model, device_of(example), timing)}.json"
        timed = [layer for layer in layers.values() if layer]
        self.load_state_dict(from_first(lambda: _table(timed, clock, path)))

    def __call__(self, present: Tensor) -> float:
        """Seconds of a step of the network of ``present``, shape (structures,)."""
        return self.of(*self.space.counts(present))

    def of(self, counts: list[float], layers: list[bool]) -> float:
        """The same, from the number of filters in each group and the presence of each layer."""
        timed = timed_macs = other_macs = 0.0
        for cost, lengths in self.space.kept_costs(counts, layers):
            macs = cost.rate * math.prod(lengths)
            key = self._keys.get(cost.axes)
            if key is None:
                other_macs += macs
            else:
                timed_macs += macs
                timed += self._seconds[key](*lengths) if key else 0.0
        return timed + (other_macs * timed / timed_macs if timed_macs else other_macs)

    @property
    def dense_ms(self) -> float:
        """Estimated milliseconds of a step of the dense network."""
        return 1000 * self(self.space.full())

    def state_dict(self) -> Table:
        """The table: decisions depend on it, and timed again it would be another."""
        return copy.deepcopy(self._table)

    def load_state_dict(self, state: Table) -> None:
        """Goes on with the times that a run began with."""
        self._table = copy.deepcopy(state)
        self._seconds = {key: _interpolated(entry) for key, entry in state.items()}


def share_of_dense(budget_ms: float, dense_ms: float) -> float:
    """A budget in milliseconds as a share of the dense network's step, in (0, 1].

    Raises:
        UserError: it is longer than that, or nothing.
    """
    if not 0 < budget_ms <= dense_ms:
        raise UserError(
            f"budget {budget_ms:g} ms is out of range: a training step of the dense network takes {dense_ms:.1f} ms on "
            "this device; give a time above 0 and up to that"
        )
    return round(budget_ms / dense_ms, 4)


@dataclass(frozen=True)
class _Layer:
    """A layer that can be built with other widths."""

    key: str
    outputs: list[int]
    inputs: list[int]
    device: torch.device
    step: Callable[[int, int], Callable[[], object]]
    """Makes the training step of the layer with so many outputs and inputs."""


_Maker = Callable[[int, int], tuple[nn.Module, tuple[int, ...]]]
"""Makes a module with so many outputs and inputs, and says what shape of input it takes."""


def _layers(space: Space, model: nn.Module, example: Any, timing: Timing) -> dict[tuple[Axis, ...], _Layer | None]:
    """The layer behind each cost that belongs to one; None where its time is part of another cost's."""
    found: dict[tuple[Axis, ...], _Layer | None] = {}
    seen = _input_shapes(model, example)
    weights = dict(model.named_parameters())
    for cost in space.costs:
        if not cost.axes:
            continue
        name = cost.axes[0][0]
        path, _, tensor = name.rpartition(".")
        if name not in weights or path not in seen:
            continue
        module = model.get_submodule(path)
        if isinstance(module, nn.RNNBase) and tensor == "weight_hh_l0" and module.num_layers == 1:
            found[cost.axes] = None
        elif (described := _describe(module, tensor, (timing.batch_size, *seen[path][1:]))) is not None:
            key, maker, (outputs, inputs) = described
            step = partial(_step, maker, device_of(example), _channels_last(model), timing)
            found[cost.axes] = _Layer(key, outputs, inputs, device_of(example), step)
    return found


def _describe(
    module: nn.Module, tensor: str, shape: tuple[int, ...]
) -> tuple[str, _Maker, tuple[list[int], list[int]]] | None:
    """A module's description, how it is made anew, and the widths to time; None for kinds that are not timed.

    ``shape`` is that of its input. Widths are the lengths of the weight's first two axes.
    """
    if isinstance(module, nn.Conv2d):
        depthwise = module.groups == module.in_channels
        options: dict[str, Any] = {
            name: getattr(module, name) for name in ("kernel_size", "stride", "padding", "dilation")
        }
        fixed_groups = module.groups

        def convolution(outputs: int, inputs: int) -> tuple[nn.Module, tuple[int, ...]]:
            groups = outputs if depthwise else fixed_groups
            layer = nn.Conv2d(groups * inputs, outputs, groups=groups, bias=False, **options)
            with_norm = nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))
            return with_norm, (shape[0], groups * inputs, *shape[2:])

        sizes = module.out_channels, module.in_channels // fixed_groups
        grids = _grid(sizes[0], 1 if depthwise else fixed_groups), _grid(sizes[1])
        return f"conv {sizes} groups {fixed_groups} {sorted(options.items())} on {shape}", convolution, grids
    if isinstance(module, nn.Linear):
        bias = module.bias is not None

        def linear(outputs: int, inputs: int) -> tuple[nn.Module, tuple[int, ...]]:
            return nn.Linear(inputs, outputs, bias), (*shape[:-1], inputs)

        sizes = module.out_features, module.in_features
        return f"linear {sizes} bias {bias} on {shape[:-1]}", linear, (_grid(sizes[0]), _grid(sizes[1]))
    if isinstance(module, nn.RNNBase) and tensor == "weight_ih_l0" and module.num_layers == 1:
        kind: Any = type(module)
        batch_first, units = module.batch_first, module.hidden_size
        gates = module.get_parameter("weight_ih_l0").shape[0] // units

        def recurrent(outputs: int, inputs: int) -> tuple[nn.Module, tuple[int, ...]]:
            return kind(inputs, outputs // gates, batch_first=batch_first), (*shape[:-1], inputs)

        sizes = gates * units, module.input_size
        grids = _grid(sizes[0], gates), _grid(sizes[1])
        return f"{kind.__name__} {sizes} on {shape[:-1]}", recurrent, grids
    return None


def _grid(size: int, multiple: int = 1) -> list[int]:
    """The widths at which an axis of ``size`` entries is timed, multiples of ``multiple``."""
    units = size // multiple
    return sorted({multiple, *(max(1, round(share * units)) * multiple for share in SHARES)})


def _step(
    maker: _Maker, device: torch.device, channels_last: bool, timing: Timing, outputs: int, inputs: int
) -> Callable[[], object]:
    """The training step of a layer with so many outputs and inputs."""
    with torch.random.fork_rng():  # the run's random numbers stay what they are
        module, shape = maker(outputs, inputs)
        batch = torch.randn(shape)
    module.to(device)
    batch = batch.to(device)
    if channels_last and batch.ndim == 4:
        module.to(memory_format=torch.channels_last)
        batch = batch.to(memory_format=torch.channels_last)
    batch.requires_grad_()

    recurrent = isinstance(module, nn.RNNBase)  # which the backbones run outside of autocast
    autocast = nullcontext if recurrent else timing.autocast

    def step() -> None:
        with autocast():
            output = module(batch)
        output = output[0] if isinstance(output, tuple) else output
        output.backward(torch.ones_like(output))

    return step


def _input_shapes(model: nn.Module, example: Any) -> dict[str, tuple[int, ...]]:
    """The shape of what each module takes in first when the model runs on the example."""
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs and isinstance(inputs[0], Tensor):
            shapes.setdefault(name, tuple(inputs[0].shape))

    hooks = [module.register_forward_pre_hook(partial(note, name)) for name, module in model.named_modules()]
    training = model.training
    try:
        with torch.no_grad():
            call(model.eval(), example)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return shapes


def _table(layers: list[_Layer], clock: Clock, path: Path) -> Table:
    """The entries of the layers: those that the file at ``path`` has, the others timed and added to it."""
    kept: Table = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    missing = {layer.key: layer for layer in layers if layer.key not in kept}
    points = sum(len(layer.outputs) * len(layer.inputs) for layer in missing.values())
    with tqdm(total=points, desc="timing layers", leave=False, disable=None) as bar:
        for key, layer in missing.items():
            rows = []
            for outputs in layer.outputs:
                rows.append([clock(layer.step(outputs, inputs), layer.device) for inputs in layer.inputs])
                bar.update(len(layer.inputs))
            kept[key] = {"widths": [layer.outputs, layer.inputs], "seconds": rows}
    if missing:
        write_whole(path, json.dumps(kept).encode())
    return {layer.key: kept[layer.key] for layer in layers}


def _interpolated(entry: Entry) -> Callable[[float, float], float]:
    """Seconds at any numbers of outputs and inputs: linear between those that were timed, and rising."""
    rising = np.maximum.accumulate(np.maximum.accumulate(np.array(entry["seconds"]), axis=0), axis=1)
    widths = [np.array(axis) for axis in entry["widths"]]
    for axis, timed in enumerate(widths):
        if len(timed) == 1:  # an axis that cannot shrink
            widths[axis], rising = np.append(timed, timed + 1), np.repeat(rising, 2, axis)
    from scipy.interpolate import RegularGridInterpolator  # takes a second, which a list of names need not wait for

    between = RegularGridInterpolator(tuple(widths), rising)

    @cache
    def at(outputs: float, inputs: float) -> float:
        point = [np.clip(value, axis[0], axis[-1]) for value, axis in zip((outputs, inputs), widths, strict=True)]
        return float(between(point)[0])

    return at


def _channels_last(model: nn.Module) -> bool:
    """Whether the weights lie in memory with channels last."""
    return any(map(is_channels_last, model.parameters()))


def _run_on(model: nn.Module, device: torch.device, timing: Timing) -> str:
    """A file name for everything that times depend on but the layers."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.node()
    threads = "" if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    layout = "channels last" if _channels_last(model) else ""
    parts = [name, threads, timing.precision, layout, f"torch {torch.__version__}"]
    return re.sub(r"[^A-Za-z0-9.+]+", "-", " ".join(part for part in parts if part))
