"""What pruning itself takes is told from the training around it."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import cells  # noqa: F401  (registers tiny_network)
import pytest

from nasbench_grow.contract import Callback, Method
from nasbench_grow.dev.bench import networks, pruning
from nasbench_grow.dev.bench.settings import EPOCH_STEPS, QUICK

TINY = replace(QUICK, backbones=("tiny_network",), batch_size=2, pixels=8, cells=3)


def burn(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


class Busy(Callback):
    """Takes its time before the third of all steps, and after each epoch."""

    def before_step(self, model: Any, step: int, steps: int) -> None:
        if step == 2:
            burn(0.2)

    def after_epoch(self, model: Any) -> None:
        burn(0.1)


class BusyMethod(Method):
    name, summary, family = "busy", "works before, within and between its epochs", "pruning"

    def run(self, job: Any) -> Any:
        burn(0.3)
        model = job.model()
        yield from job.fit(model, Busy())
        return model.network


def test_work_of_a_methods_own_is_told_from_training() -> None:
    data = networks.batch(TINY, TINY.setup)
    job = networks.job("tiny_network", TINY.setup, data, budget=0.5, epochs=2, steps=2)
    run = pruning.watch(BusyMethod(), job)
    assert run["outside"] >= 0.3 and run["between_epochs"] >= 0.2 and len(run["between_steps"]) == 4
    assert run["between_steps"][2] >= 0.2 > max(run["between_steps"][:2])


def test_the_share_is_that_of_whole_epochs() -> None:
    run = {"training": 4.0, "between_steps": [0.001, 0.001, 1.001, 0.001], "between_epochs": 2.0, "outside": 3.0}
    steps = pruning.EPOCHS * EPOCH_STEPS
    own = 3.0 + 2.0 + 1.0 + 0.001 * steps  # the slow step was a pruning, which a longer run has no more of
    assert pruning.share(run) == pytest.approx(own / (own + 1.0 * steps))
