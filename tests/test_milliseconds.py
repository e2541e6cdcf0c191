"""A budget in milliseconds becomes a share of the step that the cell will run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nasbench_grow.base.errors import UserError
from nasbench_grow.cli import main
from nasbench_grow.harness import milliseconds, registry
from nasbench_grow.harness.milliseconds import share_of_cell


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Instead of timing layers, a step of the dense network takes a millisecond a sample; gives the batch sizes."""
    sizes = []

    def step_time(space: Any, model: Any, example: Any, timing: Any) -> SimpleNamespace:
        sizes.append(timing.batch_size)
        return SimpleNamespace(dense_ms=float(timing.batch_size))

    monkeypatch.setattr(milliseconds, "StepTime", step_time)
    monkeypatch.setattr(registry, "method", lambda name: SimpleNamespace(name=name, budget_of="time"))
    return sizes


CELL = {"method": "timely", "task": "cifar10", "backbone": "cifar_resnet20", "setup": "cpu"}


def test_few_training_samples_make_a_smaller_step(timed: list[int]) -> None:
    assert share_of_cell(16.0, **CELL) == 16 / 128
    assert share_of_cell(16.0, **CELL, train_samples=45_000) == 16 / 128
    assert share_of_cell(16.0, **CELL, train_samples=2048) == 16 / 32
    assert timed == [128, 128, 32]


def test_a_time_above_that_of_the_step_that_will_run_is_refused(timed: list[int]) -> None:
    with pytest.raises(UserError, match=r"a training step of the dense network takes 32\.0 ms"):
        share_of_cell(60.0, **CELL, train_samples=2048)


def test_the_command_line_hands_over_the_training_samples(
    timed: list[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run", *(word for name in ("method", "task", "backbone") for word in (f"--{name}", CELL[name]))]
    words += ["--seed", "0", "--train-samples", "2048", "--results", str(tmp_path)]
    assert main([*words, "--budget", "60ms"]) == 2
    assert "takes 32.0 ms" in capsys.readouterr().err
