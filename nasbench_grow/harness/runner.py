"""Runs one cell: seeds, builds, trains with a checkpoint after every epoch, measures, and makes the record.

On the CPU a cell that was killed at any moment and resumed ends bit-identical to one that was not: everything that
training depends on is seeded, and what moves along (method, meter, random states) is in the checkpoint.
"""

from __future__ import annotations

import math
import random
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import nn

from nasbench_grow.base import parallel
from nasbench_grow.base.devices import DEVICE_ERRORS
from nasbench_grow.base.errors import UserError
from nasbench_grow.contract.method import Job, Method
from nasbench_grow.contract.task import Batch, Split, Splits, Task
from nasbench_grow.cost.macs import TrainingMeter, count_macs
from nasbench_grow.harness import measure, ranks, registry
from nasbench_grow.harness.adaptive import AdaptiveBatch
from nasbench_grow.harness.cell import Cell
from nasbench_grow.harness.setups import ADAPTIVE, PARALLEL
from nasbench_grow.harness.store import RECORD_FIELDS, Record, Store
from nasbench_grow.structure.architecture import describe
from nasbench_grow.structure.step_time import Timing

Progress = Callable[[dict[str, Any]], None]
"""Told the history entry of every epoch: those of an earlier, interrupted run first, at once."""


_GOES_ON = "the same command goes on after the last finished epoch"
CURVE_SAMPLES = 500
"""How many validation samples the curves over the epochs are drawn from; records use the whole split."""


class DivergedError(Exception):
    """The training loss is no longer a finite number."""


class DeviceError(UserError):
    """The device does not work any more: nothing more can be run in this process."""


class GiverError(UserError):
    """The cell whose architecture is to be trained has not ended well."""


def run_cell(cell: Cell, store: Store, *, profile: str | None = None, progress: Progress | None = None) -> Record:
    """Run a cell (from its checkpoint, if it has one), keep its record and return it.

    The caller holds the cell's lock. A loss that is not finite gives a record with status "diverged"; an unexpected
    error one with status "failed", its traceback kept in ``logs/``. Neither leaves a checkpoint: a later run of such
    a cell starts afresh. Where a GPU's memory is full, or several processes share the batches and one is killed, the
    record is "failed" too, but the checkpoint stays.

    Raises:
        UserError: the cell asks for something that cannot be had (data, backbone, budget, the architecture of another
            cell), the results folder cannot be written, or the device failed. No record is kept; see
            :func:`record_failure`.
    """
    run = Run(cell, store, profile)
    tell = progress or (lambda entry: None)
    try:
        if run.setup.processes() > parallel.processes():
            return ranks.launch(cell, store, profile, tell)
        run.prepare()
        run.resume()
        run.train(tell)
        record = run.conclude()
    except UserError:
        raise
    except torch.AcceleratorError as error:  # after which the device serves this process no more
        raise DeviceError(f"the device failed ({_one_line(error)}); {_GOES_ON}") from error
    except DivergedError as error:
        record = run.record("diverged", str(error))
    except Exception as error:
        if parallel.processes() > 1:
            raise  # so that the other processes are ended too
        if isinstance(error, (ranks.RankDiedError, torch.OutOfMemoryError)):  # perhaps another program's doing
            record = run.record("failed", f"{str(error).partition('.')[0]}; {_GOES_ON}")
            store.write_record(record)
            return record
        log = store.write_log(run.key, getattr(error, "log", None) or traceback.format_exc())
        record = run.record("failed", f"{_one_line(error)} (traceback in {log.relative_to(store.root)})")
    store.write_record(record)
    store.drop_checkpoint(run.key)
    return record


def record_failure(cell: Cell, store: Store, error: UserError, *, profile: str | None = None) -> Record:
    """Keep and return the record of a cell that could not be run because of bad input."""
    record = Run(cell, store, profile).record("failed", str(error))
    store.write_record(record)
    return record


class _Head:
    """The first samples of a split."""

    def __init__(self, split: Split, samples: int) -> None:
        self.split = split
        self.samples = min(samples, len(split))

    def __len__(self) -> int:
        return self.samples

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """The samples in their fixed order."""
        left = self.samples
        for inputs, targets in self.split.batches(batch_size):
            yield inputs[:left], targets[:left]
            left -= len(inputs)
            if left <= 0:
                return


class Run:
    """A cell under way."""

    def __init__(self, cell: Cell, store: Store, profile: str | None) -> None:
        self.cell = cell
        self.store = store
        self.profile = profile
        self.key = cell.run_key()
        self.task = registry.task(cell.task)()
        self.setup = registry.usable_setup(cell.setup)
        self.meter = TrainingMeter(parallel.processes())
        self.history: list[dict[str, Any]] = []
        self.started_at = datetime.now(UTC).isoformat(timespec="seconds")
        self.wall_s = 0.0
        self.peak_memory_bytes = 0
        self.method: Method | None = None
        self.dense_params: int | None = None
        self.dense_macs: int = 0
        self.dense_train_macs: int | None = None
        self._total_before = 0.0
        self._began = time.perf_counter()

    def prepare(self) -> None:
        """Load the data and build the method."""
        _seed(self.cell.seed)
        self.setup.activate()
        architecture = _given_architecture(self.cell, self.store)
        example = self.setup.place(self.task.example())
        if self.setup.adaptive and not self.task.batch_may_change:
            raise UserError(
                f"setup {self.cell.setup!r} cannot run task {self.cell.task!r}: its batches go on row by row, so "
                f"that their size must stay; use setup {self.cell.setup.removesuffix(ADAPTIVE)!r}"
            )
        self._measure_dense(example)  # before the data are fetched, because the backbone's name may be wrong
        self.splits = _load(self.cell.task, self.setup.device, self.cell.train_samples)
        recipe = self.task.recipe.for_samples(self.cell.train_samples)
        batch_size = recipe.batch_size
        self.job = Job(
            budget=self.cell.budget,
            seed=self.cell.seed,
            epochs=self.cell.epochs,
            steps_per_epoch=self.splits.train.steps_per_epoch(batch_size),
            granularity=self.setup.granularity,
            example=example,
            recipe=recipe,
            loss=self.task.loss,
            build=self._build_for_data,
            meter=self.meter,
            accelerate=self.setup.accelerate,
            timing=Timing(batch_size, self.setup.precision, self.setup.autocast),
            architecture=architecture,
        )
        self.dense_train_macs = 3 * self.dense_macs * self._samples_per_epoch() * self.cell.epochs
        if self.setup.adaptive:
            with self.setup.autocast():  # whatever is measured against it will be measured in that precision
                self.adaptive = AdaptiveBatch(self._build(), example, batch_size)
        self.memory = measure.PeakMemory(example.device)
        _seed(self.cell.seed)
        self.method = registry.method(self.cell.method)(self.job)

    def resume(self) -> None:
        """Take up the checkpoint, if there is one."""
        checkpoint = self.store.checkpoint(self.key)
        if checkpoint is not None:
            self._resume(checkpoint)
        parallel.wait_for_all()

    def train(self, progress: Progress) -> None:
        """The epochs that are left."""
        assert self.method is not None
        for entry in self.history:
            progress(entry)
        for epoch in range(len(self.history) + 1, self.cell.epochs + 1):
            start = time.perf_counter()
            with self.setup.autocast():
                loss = self._mean(self.method.train_epoch(self.batches(epoch)))
            self.wall_s += time.perf_counter() - start
            if not math.isfinite(loss):
                raise DivergedError(f"the training loss became {loss} in epoch {epoch} of {self.cell.epochs}")
            self.history.append(self._entry(epoch, loss))
            self.store.write_history(self.key, self.history)
            self.store.write_checkpoint(self.key, self._checkpoint())
            progress(self.history[-1])
        self.peak_memory_bytes = max(self.peak_memory_bytes, self.memory.bytes())

    def conclude(self) -> Record:
        """Take the final network, measure it, and fill in the record."""
        assert self.method is not None
        sampled = self.method.network()
        before = measure.weights_sha256(sampled)
        soft_val_metric = self._evaluate(sampled, self.splits.val)
        network = self.method.finish()
        after = measure.weights_sha256(network)
        self._keep_architecture(network)
        example = self.job.example
        batch = self.setup.place(torch.zeros(64, *example.shape[1:], dtype=example.dtype))
        return self.record(
            "ok",
            None,
            val_metric=soft_val_metric if after == before else self._evaluate(network, self.splits.val),
            soft_val_metric=soft_val_metric,
            test_metric=self._evaluate(network, self.splits.test),
            params=_parameters(network),
            macs=count_macs(network, example),
            latency_ms_batch1=self._latency_ms(network, example),
            latency_ms_batch64=self._latency_ms(network, batch),
            weights_sha256=after,
        )

    def record(self, status: str, error: str | None, **results: Any) -> Record:
        """The record so far: what is not known is null."""
        known = {
            **vars(self.cell),
            **results,
            "run_key": self.key,
            "profile": self.profile,
            "status": status,
            "error": error,
            "metric": self.task.metric,
            "dense_params": self.dense_params,
            "dense_macs": self.dense_macs or None,
            "dense_train_macs": self.dense_train_macs,
            "train_macs": self.meter.total,
            "wall_s": self.wall_s,
            "total_s": self._total_s(),
            "peak_memory_bytes": self.peak_memory_bytes or None,
            "hardware": measure.hardware(),
            "versions": measure.versions(),
            "code_version": measure.code_version(),
            "started_at": self.started_at,
        }
        return {field: known.get(field) for field in RECORD_FIELDS}

    def _keep_architecture(self, network: nn.Module) -> None:
        """Write down what the returned network looks like, unless it is no sub-network of its backbone."""
        try:
            text = describe(network, self._build())
        except UserError:  # a method may return what it likes; it only cannot be trained by another one then
            return
        self.store.write_architecture(self.key, text)

    def _measure_dense(self, example: torch.Tensor) -> None:
        network = self._build()
        _check_forward(network, example, self.cell.backbone, self.task)
        self.dense_macs = count_macs(network, example)
        self.dense_params = _parameters(network)

    def _build(self) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(self.cell.seed)
            network = registry.build_backbone(self.cell.backbone, self.task)
        return self.setup.place(network)

    def _build_for_data(self) -> nn.Module:
        network = self._build()
        self.task.initialise(network, self.splits.train)
        return network

    def _latency_ms(self, network: nn.Module, batch: torch.Tensor) -> float:
        with self.setup.autocast():
            return measure.latency_ms(network, batch)

    def _evaluate(self, network: nn.Module, split: Split) -> float:
        with self.setup.autocast():
            return self.task.evaluate(network, split)

    def batches(self, epoch: int) -> Iterator[Batch]:
        """An epoch's batches, of which this process takes its part; the clock moves on with each."""
        batch_size = self.job.recipe.batch_size
        samples, steps = self._samples_per_epoch(), self.job.steps_per_epoch
        self.job.clock.move_to((epoch - 1) * steps)
        batches = self.splits.train.epoch(epoch, batch_size, self.cell.seed)
        if self.setup.adaptive:
            assert self.method is not None
            batches = self.adaptive.regrouped(batches, samples, self.method.in_training)
        for inputs, targets in self.job.clock.pace(batches, steps, samples, min(batch_size, samples)):
            yield self.setup.place(self._part(inputs)), self._part(targets)

    def _samples_per_epoch(self) -> int:
        """Samples that an epoch draws: whole batches of the recipe's, or all where they are not enough for one."""
        batch_size = self.job.recipe.batch_size
        return self.job.steps_per_epoch * min(batch_size, len(self.splits.train))

    def _part(self, batch: torch.Tensor) -> torch.Tensor:
        """This process's part of a batch."""
        count = parallel.processes()
        if len(batch) % count:
            raise UserError(
                f"setup {self.cell.setup!r} cannot share batches of {len(batch)} equally among {count} processes; use "
                f"setup {self.cell.setup.removesuffix(PARALLEL)!r}"
            )
        return batch.chunk(count)[parallel.rank()]

    def _mean(self, loss: float) -> float:
        """The mean of a figure over the processes, the same in each."""
        if parallel.processes() == 1:
            return loss
        return parallel.mean_over_processes(self.setup.place(torch.tensor(loss))).item()

    def _entry(self, epoch: int, loss: float) -> dict[str, Any]:
        """What the history keeps of an epoch that has just ended."""
        assert self.method is not None
        network = self.method.network()
        return {
            "epoch": epoch,
            "loss": loss,
            "learning_rate": self.job.learning_rate_at(epoch * self.job.steps_per_epoch - 1),
            "val_metric": self._evaluate(network, _Head(self.splits.val, CURVE_SAMPLES)),
            "macs": count_macs(network, self.job.example),
            "train_macs": self.meter.total,
            "wall_s": self.wall_s,
            "widths": measure.output_channels(network),
            "log": self.method.log(),
        }

    def _checkpoint(self) -> dict[str, Any]:
        assert self.method is not None
        return {
            "method": self.method.state_dict(),
            "meter": self.meter.state_dict(),
            "random": _random_states(self.job.example.device),
            "history": self.history,
            "started_at": self.started_at,
            "wall_s": self.wall_s,
            "total_s": self._total_s(),
            "peak_memory_bytes": max(self.peak_memory_bytes, self.memory.bytes()),
        }

    def _resume(self, checkpoint: dict[str, Any]) -> None:
        assert self.method is not None
        self.method.load_state_dict(checkpoint["method"])
        self.meter.load_state_dict(checkpoint["meter"])
        self.history = checkpoint["history"]
        self.started_at = checkpoint["started_at"]
        self.wall_s = checkpoint["wall_s"]
        self._total_before = checkpoint["total_s"]
        self.peak_memory_bytes = checkpoint["peak_memory_bytes"]
        _set_random_states(checkpoint["random"], self.job.example.device)

    def _total_s(self) -> float:
        return self._total_before + time.perf_counter() - self._began


@lru_cache(maxsize=1)  # many cells in a row share their data
def _load(task: str, device: str, train_samples: int | None) -> Splits:
    return registry.task(task)().load(torch.device(device), train_samples)


def _given_architecture(cell: Cell, store: Store) -> str | None:
    """The architecture that a cell takes from another one; None for methods that take none.

    Raises:
        UserError: the other cell is not finished (then a GiverError), or its architecture was not kept.
    """
    giver = cell.giver()
    if giver is None:
        return None
    record = store.record(giver.run_key())
    if record is None or record["status"] != "ok":
        reason = "is not finished" if record is None else f"{record['status']}: {record['error']}"
        raise GiverError(f"no architecture to train, because {giver.method} {reason}")
    text = store.architecture(giver.run_key())
    if text is None:
        path = store.root / "records" / f"{giver.run_key()}.json"
        raise UserError(
            f"the architecture of the finished cell {giver} was not kept; delete {path} to have it run again"
        )
    return text


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _random_states(device: torch.device) -> dict[str, Any]:
    """The states of the generators that a run on ``device`` uses, in types that ``torch.load(weights_only=True)``
    reads."""
    numpy_state: Any = np.random.get_state(legacy=False)
    numpy_state["state"]["key"] = numpy_state["state"]["key"].tolist()
    states: dict[str, Any] = {"python": random.getstate(), "numpy": numpy_state, "torch": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _set_random_states(states: dict[str, Any], device: torch.device) -> None:
    random.setstate(states["python"])
    numpy_state = states["numpy"]
    numpy_state["state"]["key"] = np.array(numpy_state["state"]["key"], dtype=np.uint32)
    np.random.set_state(numpy_state)
    torch.set_rng_state(states["torch"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)


def _check_forward(network: nn.Module, example: torch.Tensor, backbone: str, task: Task) -> None:
    """Raise UserError unless the backbone maps inputs of the task's shape to outputs of the task's shape."""
    try:
        with torch.inference_mode():
            output = network.eval()(example)
        wanted, found = task.output_shape(), tuple(getattr(output, "shape", ()))[1:]
        if found == wanted:
            return
        fault = f"gives outputs of shape {_by(found)} instead of {_by(wanted)} for inputs of shape"
        reason = ""
    except DEVICE_ERRORS:
        raise
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        fault, reason = "does not accept inputs of shape", f" ({_one_line(error)})"
    raise UserError(
        f"backbone {backbone!r} cannot serve task {task.name!r}: it {fault} {_by(example.shape[1:])}{reason}; choose "
        f"one of {', '.join(registry.backbones_for(task))}"
    )


def _by(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
