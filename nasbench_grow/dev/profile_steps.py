"""Where the time of a training step goes: a cell's first steps under PyTorch's profiler, against the device's floor.

A look at a run and no part of it: no checkpoint is taken up, and nothing is written but the trace. Neither the method
nor the network knows that it is watched. See ``python -m nasbench_grow.dev.profile_steps --help``.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.profiler import ProfilerActivity, profile, record_function, schedule
from tqdm import tqdm

from nasbench_grow.base.errors import UserError
from nasbench_grow.contract import Batch
from nasbench_grow.contract.journal import Memory
from nasbench_grow.dev.floor import copy_bandwidth, matrix_rate
from nasbench_grow.harness.cell import DEFAULT_EPOCHS, DEFAULT_SETUP, Cell, make_cell
from nasbench_grow.harness.errors import SkippedError
from nasbench_grow.harness.runner import Run
from nasbench_grow.harness.setups import PARALLEL
from nasbench_grow.harness.store import ReadOnlyStore, Store
from nasbench_grow.structure.step_time import synchronise

WARM_UP = 3
"""Steps before those that count: they load libraries and kernels and fill caches."""
PARTS = ("data", "forward", "backward", "optimizer", "restructuring")
"""Names of ranges in the trace, ``restructuring`` opened where networks change; what lies in none of them is other."""
_OPERATORS = 8
_EPILOG = """\
The trace goes to DIR/profiles; there is no record.

example:
  python -m nasbench_grow.dev.profile_steps --method grow --task digits --backbone cifar_resnet20 --steps 20"""


@dataclass(frozen=True)
class Operator:
    """What one operator took in the mean step, without the operators that it called."""

    name: str
    seconds: float
    calls: float


@dataclass(frozen=True)
class StepProfile:
    """The mean of the steps that were profiled."""

    seconds: float
    parts: dict[str, float]
    """Seconds of each of ``PARTS`` and of ``other``: they sum to the whole step's."""
    macs: float
    """3 x forward MACs x batch."""
    matrix_rate: float
    """MACs a second of a large matrix product in the set-up's precision."""
    copy_bandwidth: float
    """Bytes a second, read and written."""
    operators: list[Operator]
    """Those that took longest, the longest first."""
    trace: Path

    @property
    def floor(self) -> float:
        """Seconds of the step's MACs at the matrix rate."""
        return self.macs / self.matrix_rate


def profile_steps(cell: Cell, store: Store, steps: int) -> StepProfile:
    """Trains a cell's first steps, a few to warm up and then ``steps`` that are profiled, and keeps their trace.

    Raises:
        UserError: fewer than 1 step or more than the run has; the cell asks for something that cannot be had; or the
            results folder cannot be written.
    """
    if steps < 1:
        raise UserError(f"steps {steps} is out of range: profile 1 step or more")
    run = Run(cell, _LookOnly(store.root), None)
    if run.setup.parallel:
        raise UserError(
            f"setup {cell.setup!r} has several processes, and one is profiled; use setup "
            f"{cell.setup.removesuffix(PARALLEL)!r}"
        )
    try:
        run.prepare()
    except SkippedError as error:
        raise UserError(f"method {cell.method!r} has no steps here: {error}") from error
    if WARM_UP + steps > run.job.total_steps:
        raise _too_short(steps, run.job.total_steps)
    profiler, macs = _train(run, steps)
    device, seconds, parts = run.job.example.device, *_times(profiler, steps)
    return StepProfile(
        seconds,
        parts,
        macs,
        matrix_rate(device, run.setup.dtype),
        copy_bandwidth(device),
        slowest_operators(profiler, steps, device)[:_OPERATORS],
        _keep_trace(profiler, store, run.key),
    )


def describe(found: StepProfile) -> str:
    """The parts of the step, the floor, the operators and the place of the trace, for a person."""
    parts = {**found.parts, "whole step": found.seconds}
    rows = [[name, f"{1000 * s:.3f}", f"{s / found.seconds:.1%}"] for name, s in parts.items()]
    operators = [[each.name, f"{1000 * each.seconds:.3f}", f"{each.calls:g}"] for each in found.operators]
    multiple = found.seconds / found.floor if found.floor else math.inf
    return "\n".join(
        [
            _table(["part", "ms a step", "share"], rows),
            "",
            f"floor: {1000 * found.floor:.3f} ms, the {found.macs:.3g} MACs of a step at the {found.matrix_rate:.3g} "
            f"MACs/s of a large matrix product; the step takes {multiple:.1f} times as long",
            f"copying: {found.copy_bandwidth / 1e9:.1f} GB/s, read and written",
            "",
            _table(["operator", "own ms a step", "calls a step"], operators),
            "",
            f"trace: {found.trace} (open it with chrome://tracing or https://ui.perfetto.dev)",
        ]
    )


def quieten() -> None:
    """Keeps the profiler's own notes from standing among ours."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")


class _LookOnly(ReadOnlyStore):
    """The results folder, in which no cell was ever begun."""

    def checkpoint(self, key: str) -> Any:
        """Keeps nothing."""
        return Memory()


class _Ranges:
    """Ranges of the trace that follow one another: at each moment at most one of them is open."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._open = ExitStack()

    def enter(self, part: str | None) -> None:
        """Ends the open range and begins that of ``part`` (None: none)."""
        synchronise(self._device)  # what a range launched on a GPU ends in it
        self._open.close()
        if part is not None:
            self._open.enter_context(record_function(part))


class _EnoughError(Exception):
    """The last step that was asked for is done."""


def _train(run: Run, steps: int) -> tuple[profile, float]:
    """Warms up and trains on, over as many epochs as it takes; gives the trace, and the MACs of the mean step."""
    quieten()
    device = run.job.example.device
    ranges = _Ranges(device)
    macs: list[int] = []
    with ExitStack() as stack:
        activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * (device.type == "cuda")]
        plan = schedule(wait=0, warmup=WARM_UP, active=steps, repeat=1)
        profiler = stack.enter_context(profile(activities=activities, schedule=plan))
        stack.enter_context(_watched_learning(ranges))
        total = WARM_UP + steps
        bar = stack.enter_context(tqdm(total=total, unit="step", leave=False, disable=None, file=sys.stderr))

        def end_step() -> None:
            profiler.step()
            macs.append(run.meter.total)
            bar.update()
            if len(macs) == total:
                raise _EnoughError

        _watch_steps(run, ranges, end_step)
        with suppress(_EnoughError), run.meter.running():
            for _ in run.method.run(run.job):
                pass
    if len(macs) < total:  # known only now: an adaptive batch makes fewer steps than the schedule has
        raise _too_short(steps, len(macs))
    return profiler, (macs[-1] - macs[WARM_UP - 1]) / steps


def _watch_steps(run: Run, ranges: _Ranges, end_step: Callable[[], None]) -> None:
    """From now on drawing a batch is ``data``, handing it over begins ``forward``, and a step ends when it is
    counted."""
    runtime, meter = run.job.runtime, run.meter
    draw, count = runtime.batches, meter.step

    def batches(*arguments: Any) -> Iterator[Batch]:
        drawn = draw(*arguments)
        while True:
            ranges.enter("data")
            batch = next(drawn, None)
            ranges.enter("forward")
            if batch is None:
                return
            yield batch

    def step(macs: int, batch_size: int) -> None:
        count(macs, batch_size)
        ranges.enter(None)
        end_step()

    runtime.batches = batches  # type: ignore[method-assign, assignment]
    meter.step = step  # type: ignore[method-assign]


def _too_short(steps: int, there_are: int) -> UserError:
    most = there_are - WARM_UP
    return UserError(
        f"steps {steps} is out of range: the run has {there_are} steps, of which {WARM_UP} warm up; "
        f"profile {f'at most {most}' if most > 0 else 'a longer run'}, or give more --epochs"
    )


@contextmanager
def _watched_learning(ranges: _Ranges) -> Iterator[None]:
    """Gives every backward pass and every optimizer step its range, whoever calls it."""
    backward = Tensor.backward

    def watched_backward(*arguments: Any, **options: Any) -> None:
        ranges.enter("backward")
        backward(*arguments, **options)
        ranges.enter(None)

    hooks = [
        register_optimizer_step_pre_hook(lambda *_: ranges.enter("optimizer")),
        register_optimizer_step_post_hook(lambda *_: ranges.enter(None)),
    ]
    Tensor.backward = watched_backward  # type: ignore[method-assign]
    try:
        yield
    finally:
        Tensor.backward = backward  # type: ignore[method-assign]
        for hook in hooks:
            hook.remove()
        ranges.enter(None)


def _times(profiler: profile, steps: int) -> tuple[float, dict[str, float]]:
    """Seconds of the mean step, and of each of its parts; a part inside another counts for itself alone."""
    totals = dict.fromkeys(PARTS, 0.0)
    whole = 0.0
    for event in profiler.events() or ():
        if event.device_type.name != "CPU" or not event.is_user_annotation:
            continue
        if event.name in PARTS:
            totals[event.name] += event.cpu_time_total
            if event.cpu_parent is not None and event.cpu_parent.name in PARTS:
                totals[event.cpu_parent.name] -= event.cpu_time_total
        elif event.name.startswith("ProfilerStep"):
            whole += event.cpu_time_total
    totals["other"] = whole - sum(totals.values())
    scale = 1e-6 / steps  # from microseconds
    return whole * scale, {part: totals[part] * scale for part in (*PARTS, "other")}


def slowest_operators(profiler: profile, steps: int, device: torch.device) -> list[Operator]:
    """What each operator took in the mean of so many profiled steps, on the device; the longest first."""
    own_time = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    found = [
        Operator(each.key, getattr(each, own_time) * 1e-6 / steps, each.count / steps)
        for each in profiler.key_averages()
        if each.device_type.name == "CPU" and not each.is_user_annotation
    ]
    return sorted(found, key=lambda operator: operator.seconds, reverse=True)


def _keep_trace(profiler: profile, store: Store, key: str) -> Path:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        return store.write_trace(key, path.read_bytes())


def _table(header: list[str], rows: list[list[str]]) -> str:
    return tabulate(rows, headers=header, colalign=("left", "right", "right"), disable_numparse=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Profiles the cell that was asked for and prints what was found; returns the exit code."""
    arguments = _parser().parse_args(argv)
    names = ("method", "task", "backbone", "budget", "seed", "epochs", "train_samples", "setup")
    try:
        cell = make_cell(**{name: getattr(arguments, name) for name in names})
        found = profile_steps(cell, Store(arguments.results, repair=False), arguments.steps)
    except UserError as error:
        print(f"profile_steps: error: {error}", file=sys.stderr)
        return 2
    print(f"{cell}: the mean of {arguments.steps} steps after the first {WARM_UP}\n\n{describe(found)}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m nasbench_grow.dev.profile_steps",
        description="Say where the time of a cell's first steps goes.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--method", required=True, help="as in nasbench-grow run")
    parser.add_argument("--task", required=True)
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--steps", type=int, default=20, metavar="N", help=f"after {WARM_UP} to warm up (default: 20)")
    parser.add_argument("--budget", type=float, default=0.5, help="a share (default: 0.5)")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--epochs", type=int, default=DEFAULT_EPOCHS, metavar="E", help="default: %(default)s")
    parser.add_argument("--train-samples", type=int, metavar="N", help="default: all")
    parser.add_argument("--setup", default=DEFAULT_SETUP, help="default: %(default)s")
    parser.add_argument("--results", default="results", metavar="DIR", help="default: %(default)s")
    return parser


if __name__ == "__main__":
    sys.exit(main())
