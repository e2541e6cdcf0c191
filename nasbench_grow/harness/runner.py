"""Runs one cell: seeds, builds, trains with a checkpoint after every epoch, measures, and makes the record.

On the CPU a cell that was killed at any moment and resumed ends bit-identical to one that was not: everything that
training depends on is seeded, and what moves along (models, meter, random states) is in the job's journal.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from nasbench_grow.base import parallel, randomness
from nasbench_grow.base.errors import UserError, one_line
from nasbench_grow.contract import Batch, DivergedError, Job, Split, Splits, Stage
from nasbench_grow.cost.macs import count_macs
from nasbench_grow.cost.stopwatch import Stopwatch
from nasbench_grow.harness import company, measure, ranks, registry, sources
from nasbench_grow.harness.adaptive import AdaptiveBatch
from nasbench_grow.harness.cell import Cell
from nasbench_grow.harness.clocked_meter import ClockedMeter
from nasbench_grow.harness.dense import check_forward
from nasbench_grow.harness.errors import DeviceError, SkippedError
from nasbench_grow.harness.record import BUDGET_LIMIT, FIELDS, SCHEMA, Record
from nasbench_grow.harness.runtime import SetupRuntime
from nasbench_grow.harness.setups import ADAPTIVE
from nasbench_grow.harness.store import Store
from nasbench_grow.structure.architecture import describe, load, save
from nasbench_grow.structure.checking import SAMPLES
from nasbench_grow.structure.step_time import StepTime, Timing
from nasbench_grow.structure.widths import output_channels

Progress = Callable[[dict[str, Any]], None]
"""Told the history entry of every epoch; of a run that is taken up again, those of before as well."""

_GOES_ON = "the same command goes on after the last finished epoch"
CURVE_SAMPLES = 500
"""How many validation samples the curves over the epochs are drawn from; records use the whole split."""


def run_cell(cell: Cell, store: Store, *, profile: str | None = None, progress: Progress | None = None) -> Record:
    """Run a cell (from its checkpoint, if it has one), keep its record and return it.

    The caller holds the cell's lock. A loss that is not finite gives a record with status "diverged"; a method that
    cannot serve the task or the backbone one with "skipped"; an unexpected error one with "failed", its traceback kept
    in ``logs/``. None leaves a checkpoint: a later run of such a cell starts afresh. Where a GPU's memory is full, or
    several processes share the batches and one is killed, the record is "failed" too, but the checkpoint stays.

    Raises:
        UserError: the cell asks for something that cannot be had (data, backbone, budget, the result of another cell),
            the results folder cannot be written, or the device failed. No record is kept; see :func:`record_failure`.
    """
    with company.at_work() as others:
        return _run(Run(cell, store, profile, progress, others))


def _run(run: Run) -> Record:
    cell, store = run.cell, run.store
    try:
        if run.setup.processes() > parallel.processes():
            sources.check(cell, store)
            return ranks.launch(cell, store, run.profile, run.tell)
        run.prepare()
        network = run.train()
        record = run.conclude(network)
    except UserError:
        raise
    except torch.AcceleratorError as error:  # after which the device serves this process no more
        raise DeviceError(f"the device failed ({one_line(error)}); {_GOES_ON}") from error
    except DivergedError as error:
        record = run.record("diverged", str(error))
    except SkippedError as error:
        record = run.record("skipped", str(error))
    except Exception as error:
        if parallel.processes() > 1:
            raise  # so that the other processes are ended too
        if isinstance(error, (ranks.RankDiedError, torch.OutOfMemoryError)):  # perhaps another program's doing
            record = run.record("failed", f"{str(error).partition('.')[0]}; {_GOES_ON}")
            store.write_record(record)
            return record
        log = store.write_log(run.key, getattr(error, "log", None) or traceback.format_exc())
        record = run.record("failed", f"{one_line(error)} (traceback in {log.relative_to(store.root)})")
    store.write_record(record)
    store.drop_checkpoint(run.key)
    return record


def record_failure(cell: Cell, store: Store, error: UserError, *, profile: str | None = None) -> Record:
    """Keep and return the record of a cell that could not be run because of bad input.

    Its checkpoint stays, if it has one: what was bad may be mended (data that were not there), and the run goes on.
    """
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

    def __init__(
        self,
        cell: Cell,
        store: Store,
        profile: str | None,
        progress: Progress | None = None,
        others: Callable[[], int] = lambda: 0,
    ) -> None:
        self.cell, self.store, self.profile, self.others = cell, store, profile, others
        self.key = cell.run_key()
        self.task = registry.task(cell.task)()
        self.method = registry.method(cell.method)
        self.setup = registry.setup(cell.setup)
        self.tell = progress or (lambda entry: None)
        self.meter = ClockedMeter(parallel.processes())
        self.total_watch = Stopwatch()
        self.total_watch.__enter__()
        self.history: list[dict[str, Any]] = []
        self.told = 0
        self.started_at = datetime.now(UTC).isoformat(timespec="seconds")
        self.peak_memory_bytes = 0
        self.beside = others()
        self.dense_params: int | None = None
        self.dense_macs = 0
        self.dense_train_macs: int | None = None

    def prepare(self) -> None:
        """Load the data and make the job."""
        registry.usable_setup(self.cell.setup)
        randomness.seed_all(self.cell.seed)
        self.setup.activate()
        example = self.setup.place(self.task.example())
        if self.setup.adaptive and not self.task.batch_may_change:
            raise UserError(
                f"setup {self.cell.setup!r} cannot run task {self.cell.task!r}: its batches go on row by row, so "
                f"that their size must stay; use setup {self.cell.setup.removesuffix(ADAPTIVE)!r}"
            )
        self._measure_dense(example)  # before the data are fetched, because the backbone's name may be wrong
        source = sources.source_of(
            self.cell, self.store, self.meter, lambda path: self.setup.place(load(path, self._build()))
        )
        self.splits = load_data(self.cell.task, self.setup.device, self.cell.train_samples)
        recipe = self.task.recipe.for_samples(self.cell.train_samples)
        self.runtime = SetupRuntime(self.setup, recipe.batch_size, self._adaptive(example, recipe.batch_size))
        self.memory = measure.PeakMemory(example.device)
        timing = Timing(recipe.batch_size, self.setup.precision, self.setup.autocast)
        self.job = Job(
            budget=self.cell.budget,
            seed=self.cell.seed,
            epochs=self.cell.epochs,
            granularity=self.setup.granularity,
            example=example,
            recipe=recipe,
            loss=self.task.loss,
            build=self._build_for_data,
            train=self.splits.train,
            score=lambda network, split: self.task.score(self.task.evaluate(network, split)),
            source=source,
            runtime=self.runtime,
            meter=self.meter,
            storage=_Unclocked(self),
            price=lambda space, dense: StepTime(space, dense, example, timing),
            ambient=self,
        )
        samples = self.job.steps_per_epoch * min(recipe.batch_size, len(self.splits.train))
        self.dense_train_macs = 3 * self.dense_macs * samples * self.cell.epochs
        randomness.seed_all(self.cell.seed)

    def train(self) -> nn.Module:
        """Runs the method to its end, from where the journal says that it stands; returns the network."""
        stages = self.method.run(self.job)
        while True:
            try:
                with self.meter.running():
                    stage = next(stages)
            except StopIteration as end:
                self._keep_history()  # whole, also of a run that was killed after its last epoch
                self.peak_memory_bytes = max(self.peak_memory_bytes, self.memory.bytes())
                network: nn.Module = end.value
                return network
            self.history.append(self._entry(stage))
            self.beside = max(self.beside, self.others())
            self._keep_history()

    def _keep_history(self) -> None:
        """Writes the history, and tells of the epochs that were not told of yet."""
        self.store.write_history(self.key, self.history)
        for entry in self.history[self.told :]:
            self.tell(entry)
        self.told = len(self.history)

    def conclude(self, network: nn.Module) -> Record:
        """Check and measure the final network, and fill in the record."""
        self.job.check_returned(network, next(iter(self.splits.val.batches(SAMPLES)))[0])
        sampled = network if self.job.sampled is None else self.job.sampled
        before, after = measure.weights_sha256(sampled), measure.weights_sha256(network)
        soft_val_metric = self._evaluate(sampled, self.splits.val)
        self._keep(network)
        example = self.job.example
        macs = count_macs(network, example)
        val_metric = soft_val_metric if after == before else self._evaluate(network, self.splits.val)
        tested_apart = self.splits.test is not self.splits.val
        return self.record(
            "ok",
            None,
            val_metric=val_metric,
            soft_val_metric=soft_val_metric,
            test_metric=self._evaluate(network, self.splits.test) if tested_apart else val_metric,
            params=_parameters(network),
            macs=macs,
            meets_budget=self._meets_budget(macs),
            weights_sha256=after,
            **self._latencies(network),
        )

    def record(self, status: str, error: str | None, **results: Any) -> Record:
        """The record so far: what is not known is null."""
        source = self.cell.source()
        known = {
            **asdict(self.cell),
            **results,
            "run_key": self.key,
            "schema": SCHEMA,
            "family": self.method.family,
            "settings": asdict(self.method.settings),
            "comparison_key": self.cell.comparison_key(),
            "method_key": self.cell.method_key(),
            "source_key": None if source is None else source.run_key(),
            "profile": self.profile,
            "status": status,
            "error": error,
            "metric": self.task.metric,
            "higher_is_better": self.task.higher_is_better,
            "metric_scale": self.task.metric_scale,
            "metric_unit": self.task.metric_unit,
            "dense_params": self.dense_params,
            "dense_macs": self.dense_macs or None,
            "dense_train_macs": self.dense_train_macs,
            "train_macs": self.meter.total,
            **{f"{purpose}_macs": self.meter.spent[purpose] for purpose in ("search", "source", "calibration")},
            "wall_s": self.meter.wall_s,
            "cpu_s": self.meter.cpu_s,
            "search_s": self.meter.watches["search"].wall_s,
            "total_s": self.total_watch.wall_s,
            "peak_memory_bytes": self.peak_memory_bytes or None,
            "beside": max(self.beside, self.others()),
            "hardware": measure.hardware(),
            "versions": measure.versions(),
            "code_version": measure.code_version(),
            "started_at": self.started_at,
        }
        return {field: known.get(field) for field in FIELDS}

    def state_dict(self) -> dict[str, Any]:
        """What a run that is taken up again goes on with beside its job."""
        return {
            "history": self.history,
            "started_at": self.started_at,
            "total_watch": self.total_watch.state_dict(),
            "peak_memory_bytes": max(self.peak_memory_bytes, self.memory.bytes()),
            "beside": self.beside,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what :meth:`state_dict` gave."""
        self.history, self.started_at = list(state["history"]), state["started_at"]
        self.total_watch.load_state_dict(state["total_watch"])
        self.peak_memory_bytes = state["peak_memory_bytes"]
        self.beside = max(self.beside, state.get("beside", 0))

    def _entry(self, stage: Stage) -> dict[str, Any]:
        """What the history keeps of an epoch that has just ended."""
        return {
            "epoch": len(self.history) + 1,
            "purpose": stage.purpose,
            "loss": stage.loss,
            "learning_rate": stage.learning_rate,
            "val_metric": self._evaluate(stage.network, _Head(self.splits.val, CURVE_SAMPLES)),
            "macs": count_macs(stage.network, self.job.example),
            "train_macs": self.meter.total,
            "wall_s": self.meter.wall_s,
            "widths": output_channels(stage.network),
            "log": stage.log,
            "restructurings": [asdict(each) for each in stage.restructurings],
        }

    def _meets_budget(self, macs: int) -> bool | None:
        """Whether the network returned is of the size that was asked for; None: none was."""
        if not self.method.aims_at_budget:
            return None
        spent = macs / self.dense_macs
        if self.method.budget_of == "time":
            cost = self.history[-1]["log"].get("cost")
            if cost is None:
                return None
            spent = cost
        return abs(spent - self.cell.budget) <= BUDGET_LIMIT * (1 + 1e-9)

    def _latencies(self, network: nn.Module) -> dict[str, float]:
        """Latency of one input and of 64, by themselves and as a share of the dense network's.

        Of several processes the first alone measures: together they would disturb each other.
        """
        found: dict[str, float] = {}
        if parallel.rank() > 0:
            return found
        dense = self._build()
        for size in (1, 64):
            batch = self.setup.place(self.task.example().repeat(size, *[1] * (self.job.example.ndim - 1)))
            with self.setup.autocast():
                latency = measure.latency(network, dense, batch)
            found |= {
                f"latency_ms_batch{size}": latency.ms,
                f"latency_ratio_batch{size}": latency.ratio,
                f"latency_ratio_low_batch{size}": latency.low,
                f"latency_ratio_high_batch{size}": latency.high,
            }
        return found

    def _keep(self, network: nn.Module) -> None:
        """Keep the returned network with its architecture, unless it cannot be cut from its backbone."""
        try:
            text = describe(network, self._build())
        except UserError:  # a method may return what it likes; no other one can begin with it then
            return
        self.store.write_architecture(self.key, text)
        self.store.write_weights(self.key, lambda path: save(network, text, path, example=self.job.example))

    def _adaptive(self, example: torch.Tensor, batch_size: int) -> AdaptiveBatch | None:
        if not self.setup.adaptive:
            return None
        with self.setup.autocast():  # whatever is measured against it will be measured in that precision
            return AdaptiveBatch(self._build(), example, batch_size)

    def _measure_dense(self, example: torch.Tensor) -> None:
        network = self._build()
        check_forward(network, example, self.cell.backbone, self.task)
        self.dense_macs = count_macs(network, example)
        self.dense_params = _parameters(network)
        reason = self.method.skip(self.task, network)
        if reason is not None:
            raise SkippedError(reason)

    def _build(self) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(self.cell.seed)
            network = registry.build_backbone(self.cell.backbone, self.task)
        return self.setup.place(network)

    def _build_for_data(self) -> nn.Module:
        network = self._build()
        self.task.initialise(network, self.splits.train)
        return network

    def _evaluate(self, network: nn.Module, split: Split) -> float:
        with self.setup.autocast():
            return self.task.evaluate(network, split)


class _Unclocked:
    """The cell's checkpoint; what reading and writing it takes is no training time."""

    def __init__(self, run: Run) -> None:
        self._run, self._storage = run, run.store.checkpoint(run.key)

    def read(self, name: str) -> dict[str, Any] | None:
        with self._run.meter.paused():
            return self._storage.read(name)

    def write(self, name: str, state: dict[str, Any]) -> None:
        with self._run.meter.paused():
            self._storage.write(name, state)

    def forget(self, prefix: str) -> None:
        with self._run.meter.paused():
            self._storage.forget(prefix)


@lru_cache(maxsize=1)  # many cells in a row share their data
def load_data(task: str, device: str, train_samples: int | None) -> Splits:
    """The splits of a task on a device; the last ones are kept."""
    return registry.task(task)().load(torch.device(device), train_samples)


def _parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
