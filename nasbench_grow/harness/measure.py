"""What is measured around a run: the machine, the versions, memory, latency, and a network's fingerprint."""

from __future__ import annotations

import copy
import gc
import hashlib
import math
import os
import platform
import resource
import statistics
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nasbench_grow.base import parallel
from nasbench_grow.data.evaluating import evaluating
from nasbench_grow.harness import heap

_PACKAGES = ("torch", "timm", "fvcore", "torch-pruning", "numpy")

SHORTEST_TIMING_S = 0.002
"""Shorter stretches are not timed: the clock and the call would count."""
LEAST_ROUNDS = 6
"""Fewer values have no interval that holds their median with 95 % confidence."""
ROUNDS_S = 0.6
"""Seconds that the rounds of one latency may take, unless :data:`LEAST_ROUNDS` take longer."""


@cache
def hardware() -> dict[str, Any]:
    """The machine: processor, the vector instructions that PyTorch uses of it (machines of one name may differ in
    them), usable cores, processes that share a batch, threads that PyTorch uses in each, memory in GiB, GPU, operating
    system."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": _processor(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "processes": parallel.processes(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(memory / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "platform": platform.platform(),
    }


@cache
def versions() -> dict[str, str | None]:
    """The versions that a result may depend on; None for a package that is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in _PACKAGES:
        found[package] = _version(package)
    found["torch"] = str(torch.__version__)  # names the build (+cpu, +cu130) too
    return {**found, "nasbench_grow": _version("nasbench-grow")}


@cache
def code_version() -> str | None:
    """``git describe`` of the checkout that this code runs from, else the package's version."""
    root = Path(__file__).resolve().parents[2]
    if (root / ".git").exists():
        command = ["git", "-C", str(root), "describe", "--always", "--dirty"]
        with suppress(OSError, subprocess.SubprocessError):
            return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    return _version("nasbench-grow")


class PeakMemory:
    """The highest resident memory of this process since the object was made, in bytes.

    The whole process counts: the interpreter, the libraries and the data as well as weights and activations, and the
    evaluation after each epoch as well as training. On a GPU it is the most that PyTorch's tensors took there.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        gc.collect()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            return
        heap.give_back()  # so that an earlier cell's does not count as this one's
        with suppress(OSError):  # where it fails, the peak since the process began is the best there is
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # Linux: resets VmHWM

    def bytes(self) -> int:
        """The peak so far."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        with suppress(OSError):
            for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if platform.system() == "Darwin" else peak * 1024


def saved_bytes(network: nn.Module, forward: Callable[[], Tensor]) -> tuple[Tensor, int]:
    """What ``forward()`` gives, and the bytes of the tensors that it keeps for the backward pass.

    Tensors that share memory count once, the network's weights and buffers not at all; the batch counts.
    """
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*network.parameters(), *network.buffers())}
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = forward()
    return output, sum(saved.values())


def activation_bytes(network: nn.Module, example: Tensor) -> float:
    """Bytes that a training step of ``network`` keeps for the backward pass, for each sample like ``example``."""
    probe = copy.deepcopy(network).train()  # a pass in training mode moves the statistics of the batch norms

    def saved_by(count: int) -> int:
        batch = torch.cat(count * [example])
        return saved_bytes(probe, lambda: probe(batch))[1]

    with torch.random.fork_rng():
        few, many = saved_by(2), saved_by(4)
    return (many - few) / 2  # without what does not depend on the batch


@dataclass(frozen=True)
class Latency:
    """How long a forward pass takes, and what share that is of another network's on the same machine at the time."""

    ms: float
    """Median milliseconds of one pass."""
    ratio: float
    """Median, over the rounds, of the network's time over the reference's right before or after."""
    low: float
    high: float
    """Interval that holds the true median ratio with 95 % confidence or more."""


def latency(
    network: nn.Module,
    reference: nn.Module,
    batch: Tensor,
    *,
    rounds: int = 21,
    clock: Callable[[], float] = time.perf_counter,
) -> Latency:
    """Time forward passes of two networks in turn, in eval mode, so that a busy machine slows both alike.

    Args:
        network: the network whose latency is wanted.
        reference: the one that it is compared with, e.g. the dense network.
        batch: what both take in.
        rounds: how often each is timed at most; :data:`LEAST_ROUNDS` or more that fit into :data:`ROUNDS_S`. Passes
            shorter than :data:`SHORTEST_TIMING_S` are timed several at once.
        clock: tells the time in seconds.
    """
    times: tuple[list[float], list[float]] = ([], [])
    with evaluating(network), evaluating(reference):
        timers = [_Timer(each, batch, clock) for each in (network, reference)]
        round_s = sum(timer.passes * timer.pass_s for timer in timers)
        rounds = min(rounds, max(LEAST_ROUNDS, int(ROUNDS_S / round_s)))
        for number in range(rounds):
            for which in (0, 1) if number % 2 == 0 else (1, 0):  # neither is always the first
                times[which].append(timers[which].seconds())
    ratios = sorted(own / other for own, other in zip(*times, strict=True))
    outside = _ranks_outside(rounds)
    median_ms = 1000 * statistics.median(times[0])
    return Latency(median_ms, statistics.median(ratios), ratios[outside], ratios[-1 - outside])


class _Timer:
    """Times forward passes of a network that it has warmed up."""

    def __init__(self, network: nn.Module, batch: Tensor, clock: Callable[[], float]) -> None:
        self.network, self.batch, self.clock = network, batch, clock
        self.passes = 1
        self.seconds()  # the first pass sets up much
        self.pass_s = max(self.seconds(), 1e-6)
        self.passes = math.ceil(SHORTEST_TIMING_S / self.pass_s)

    def seconds(self) -> float:
        """Seconds that a pass takes, from as many as are timed at once."""
        start = self.clock()
        for _ in range(self.passes):
            self.network(self.batch)
        if self.batch.is_cuda:
            torch.cuda.synchronize(self.batch.device)
        return (self.clock() - start) / self.passes


def _ranks_outside(rounds: int) -> int:
    """How many of the smallest, and of the largest, values lie outside the interval of the median: as many as leave it
    a confidence of 95 %. The rank of the median among independent values is binomial."""
    outside = 0
    while 2 * sum(math.comb(rounds, rank) for rank in range(outside + 2)) <= 0.05 * 2**rounds:
        outside += 1
    return outside


def weights_sha256(network: nn.Module) -> str:
    """A fingerprint of every parameter and buffer: equal only where all names, shapes, types and bits are equal."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
