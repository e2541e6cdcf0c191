"""Set-ups: on what device, in what memory layout, precision and width granularity a cell runs."""

from __future__ import annotations

import os
import shutil
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar, cast

import torch
from torch import Tensor, distributed, nn

from nasbench_grow.harness import heap
from nasbench_grow.harness.graphs import Graphed

Precision = Literal["fp32", "tf32", "bf16"]
_Place = TypeVar("_Place", Tensor, nn.Module)

_DETERMINING = ("device", "channels_last", "granularity", "precision", "adaptive", "compiled")
ADAPTIVE, COMPILED, GRAPHS, PARALLEL = "-adaptive", "-compiled", "-graphs", "-ddp"
CPU_PROCESSES = 2
"""Processes of the CPU's set-up with several: they gain nothing over threads, but show that it works."""


@dataclass(frozen=True)
class Setup:
    """How the machine is used. All cells of one comparison share a set-up."""

    name: str
    summary: str
    device: str = "cpu"
    channels_last: bool = False
    """Keep 4-d activations and weights as NHWC in memory; shapes stay NCHW."""
    granularity: int = 8
    """Widths are rounded to multiples of this: odd widths save multiply-accumulates but hardly any time."""
    precision: Precision = "fp32"
    """Of products: fp32; tf32, which rounds their factors to 10 bits; bf16, in which activations are kept too (products
    that stay in fp32 are those of tf32). Weights, gradients and the optimizer's state are fp32 in all of them."""
    adaptive: bool = False
    """The batch grows as the network shrinks (:mod:`nasbench_grow.harness.adaptive`)."""
    compiled: bool = False
    """Networks whose structure stays are compiled for training."""
    graphs: bool = False
    """Networks whose structure stays are trained by CUDA graphs (:mod:`nasbench_grow.harness.graphs`)."""
    parallel: bool = False
    """Several processes share every batch (:mod:`nasbench_grow.harness.ranks`)."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the factors of products, as tensors."""
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    def definition(self) -> dict[str, Any]:
        """What of the set-up determines results, for the run key; sharing a batch among processes does not, nor does
        launching the same kernels together."""
        return {field: getattr(self, field) for field in _DETERMINING}

    def processes(self) -> int:
        """How many processes a cell is run by: one for each GPU of this machine, or :data:`CPU_PROCESSES`."""
        if not self.parallel:
            return 1
        return torch.cuda.device_count() if self.device == "cuda" else CPU_PROCESSES

    def available(self) -> tuple[bool, str]:
        """Whether this machine can run the set-up and, if not, why not."""
        if self.parallel and not distributed.is_available():
            return False, "this PyTorch was built without torch.distributed"
        if self.device == "cuda" and not torch.cuda.is_available():
            return False, "PyTorch finds no CUDA device"
        if self.compiled and not _compiler(self.device):
            name, variable = ("g++", "CXX") if self.device == "cpu" else ("gcc", "CC")
            return False, f"torch.compile finds no compiler: install {name}, or name one in the variable {variable}"
        if self.device == "cpu":
            if self.precision == "bf16" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
                return False, "this processor has no bf16 units"
            if self.channels_last and torch.backends.cpu.get_cpu_capability() == "AVX2":
                return False, _OVERWRITES
            return True, ""
        if self.precision != "fp32" and torch.cuda.get_device_capability() < (8, 0):
            return False, f"{torch.cuda.get_device_name()} has no {self.precision} units: they came with Ampere (8.0)"
        if self.parallel and torch.cuda.device_count() < 2:
            return False, f"the machine has one GPU; use {self.name.removesuffix(PARALLEL)!r}"
        return True, ""

    def activate(self) -> None:
        """Makes PyTorch compute as the set-up says, in this process, from now on."""
        if self.compiled:
            torch.compiler.reset()  # it gives up after a few shapes, and an earlier cell's count
        if self.device == "cpu":
            heap.keep_freed()
        else:  # cuDNN's search for the fastest kernel stays off: it takes longer than a step, for each new shape anew
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = self.precision != "fp32"

    def autocast(self) -> AbstractContextManager[object]:
        """The precision of everything that runs inside."""
        # Without its cache of cast weights, which outlives a step: the next one would compute with the old weights.
        return torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bf16", cache_enabled=False)

    def accelerate(self, network: nn.Module) -> nn.Module:
        """A module that trains the network's parameters: compiled, or by CUDA graphs, if the set-up says so.

        On a GPU the kernels of a compiled network are launched as one graph, too.
        """
        if self.graphs:
            return Graphed(network)
        if not self.compiled:
            return network
        mode = "reduce-overhead" if self.device == "cuda" else None
        return cast(nn.Module, torch.compile(network, dynamic=False, mode=mode))

    def place(self, thing: _Place) -> _Place:
        """The tensor or module on the set-up's device in its memory layout."""
        memory_format = torch.channels_last if self.channels_last else torch.contiguous_format
        if isinstance(thing, Tensor) and thing.ndim != 4:
            return thing.to(self.device)
        return thing.to(self.device, memory_format=memory_format)  # type: ignore[call-overload]


_OVERWRITES = (
    "without AVX-512 PyTorch's kernels of this layout write beyond their memory: the gradient of a 1 x 1 convolution "
    "with a stride and fewer than 8 input channels"
)
"""oneDNN's ``brgconv_strided:avx2``, as of PyTorch 2.15: a process dies by it, or goes on with other numbers."""

_BASES = (
    Setup("cpu", "CPU, tensors in PyTorch's default layout (NCHW)"),
    Setup("cpu-channels-last", "CPU, tensors with channels last in memory (NHWC)", channels_last=True),
    Setup(
        "cpu-bf16",
        "CPU, channels last, half-size products and activations",
        channels_last=True,
        precision="bf16",
    ),
    Setup("cuda-fp32", "CUDA GPU, channels last, single precision", "cuda", channels_last=True),
    Setup("cuda-tf32", "CUDA GPU, channels last, products of rounded factors", "cuda", True, precision="tf32"),
    Setup("cuda-bf16", "CUDA GPU, channels last, half-size products and activations", "cuda", True, precision="bf16"),
)


def _compiler(device: str) -> str | None:
    """The compiler that torch.compile uses, of C++ on CPUs and, for what launches its kernels, of C on GPUs."""
    variable, usual = ("CXX", ("g++",)) if device == "cpu" else ("CC", ("gcc", "clang"))
    names = (os.environ[variable],) if variable in os.environ else usual
    return next(filter(None, map(shutil.which, names)), None)


def _with_options(base: Setup) -> tuple[Setup, ...]:
    """A set-up as it is, with the adaptive batch, compiled, by CUDA graphs on GPUs, and with several processes."""
    graphs = replace(
        base,
        name=base.name + GRAPHS,
        summary=f"{base.summary}; kernels launched together where the structure stays",
        graphs=True,
    )
    sharing = f"{CPU_PROCESSES} processes" if base.device == "cpu" else "all GPUs of the machine"
    return (
        base,
        replace(
            base,
            name=base.name + ADAPTIVE,
            summary=f"{base.summary}; the batch grows as the network shrinks",
            adaptive=True,
        ),
        replace(
            base,
            name=base.name + COMPILED,
            summary=f"{base.summary}; torch.compile where the structure stays",
            compiled=True,
        ),
        *((graphs,) if base.device == "cuda" else ()),
        replace(base, name=base.name + PARALLEL, summary=f"{base.summary}; {sharing} share each batch", parallel=True),
    )


SETUPS = {setup.name: setup for base in _BASES for setup in _with_options(base)}
