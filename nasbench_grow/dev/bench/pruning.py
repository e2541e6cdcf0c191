"""What pruning itself takes: ranking, cutting and restructuring, beside the training around it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Generator
from typing import Any

from nasbench_grow.contract import Callback, ElasticModel, Job, Method, Stage
from nasbench_grow.dev.bench.networks import batch, job
from nasbench_grow.dev.bench.record import Record, bar, origin, table, verdict
from nasbench_grow.dev.bench.settings import EPOCH_STEPS, Settings
from nasbench_grow.harness import registry

SUMMARY = "the share of a run that a pruning method spends on pruning itself"
CPU_ONLY = True
BUDGET = 0.25
EPOCHS = 12
LIMIT = 0.02
"""Of the run; what gathers statistics of feature maps (thinet, provable) may take more."""
_STEPS = 4
"""Training steps of an epoch here; how long one takes says how long those of a whole one do."""
_NEEDS_MORE = ("morphnet",)
"""Methods that judge networks on data of their own, which one batch is not."""


class _Watched:
    """A callback whose own work between the steps is timed, in seconds of the processor."""

    def __init__(self, callback: Callback) -> None:
        self._callback = callback
        self.steps: list[float] = []
        self.epochs = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._callback, name)

    def before_step(self, model: ElasticModel, step: int, steps: int) -> None:
        """Begins a step."""
        start = time.process_time()
        self._callback.before_step(model, step, steps)
        self.steps.append(time.process_time() - start)

    def after_step(self, model: ElasticModel) -> None:
        """Ends a step."""
        start = time.process_time()
        self._callback.after_step(model)
        self.steps[-1] += time.process_time() - start

    def after_epoch(self, model: ElasticModel) -> None:
        """Ends an epoch."""
        start = time.process_time()
        self._callback.after_epoch(model)
        self.epochs += time.process_time() - start


def watch(method: Method, each: Job) -> dict[str, Any]:
    """Runs a method; seconds of the processor that training took, that the callbacks took on top after each step and
    after each epoch, and that passed outside of trainings."""
    watched: list[_Watched] = []
    training = 0.0
    fit = each.fit

    def timed(model: ElasticModel, callback: Callback | None = None, **options: Any) -> Generator[Stage, None, None]:
        nonlocal training
        watched.append(_Watched(callback or Callback()))
        run = fit(model, watched[-1], **options)  # type: ignore[arg-type]
        while True:
            start = time.process_time()
            stage = next(run, None)
            training += time.process_time() - start
            if stage is None:
                return
            yield stage

    each.fit = timed  # type: ignore[method-assign]
    start = time.process_time()
    for _ in method.run(each):
        pass
    total = time.process_time() - start
    steps = [round(seconds, 6) for one in watched for seconds in one.steps]
    epochs = sum(one.epochs for one in watched)
    return {
        "training": round(training - sum(steps) - epochs, 3),
        "between_steps": steps,
        "between_epochs": round(epochs, 3),
        "outside": round(total - training, 3),
    }


def measure(settings: Settings) -> dict[str, Any]:
    """Short runs of every pruning method with its default settings, on each backbone that it has a meaning for."""
    data = batch(settings, settings.setup)
    found = []
    task = registry.task("cifar10")()
    methods = [method for method in registry.methods().values() if method.family == "pruning"]
    with bar("pruning methods", len(methods) * len(settings.backbones)) as progress:
        for name in settings.backbones:
            for kind in methods:
                method = kind()
                each = job(name, settings.setup, data, budget=BUDGET, epochs=EPOCHS, steps=_STEPS)
                if method.name not in _NEEDS_MORE and method.skip(task, each.build()) is None:
                    found.append({"backbone": name, "method": method.name, **watch(method, each)})
                progress.update()
    return {"runs": found}


def share(run: Record) -> float:
    """Pruning's share of a run of whole epochs: what every step takes on top is taken as often as there are steps, the
    rest, prunings, as often as here."""
    each = statistics.median(run["between_steps"])
    rare = sum(run["between_steps"]) - each * len(run["between_steps"])
    longer = EPOCHS * EPOCH_STEPS / len(run["between_steps"])
    own = run["outside"] + run["between_epochs"] + rare + each * EPOCHS * EPOCH_STEPS
    return float(own / (own + run["training"] * longer))


def tables(record: Record) -> str:
    """The shares, as Markdown."""
    rows = [
        [
            f"{run['backbone']}, {run['method']}",
            f"{run['outside']:.2f}",
            f"{run['between_epochs'] + sum(run['between_steps']):.2f}",
            f"{1000 * run['training'] / len(run['between_steps']):.0f}",
            f"{share(run):.2%}",
            f"{LIMIT:.0%}",
            verdict(share(run), LIMIT),
        ]
        for run in record["runs"]
    ]
    header = ["backbone, method", "outside, s", "within, s", "step, ms", "of the run", "target", "result"]
    notes = (
        f"Seconds of the processor, in runs of {EPOCHS} epochs of {_STEPS} steps to a budget of {BUDGET}; "
        f"*of the run*: of one with {EPOCH_STEPS} steps in each epoch. *Outside*: between trainings, discovery too. "
        "*Within*: of the callback, between steps and between epochs. Regularisers are part of the steps."
    )
    return "\n\n".join([table(header, rows), notes, origin(record)])
