"""The profiler of steps: their parts add up to them, and nothing but a trace is left behind."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from cells import small_cell
from torch import Tensor
from torch.optim import optimizer

from nasbench_grow.cost.macs import count_macs
from nasbench_grow.dev.floor import copy_bandwidth, matrix_rate
from nasbench_grow.dev.profile_steps import PARTS, describe, main, profile_steps
from nasbench_grow.harness import registry
from nasbench_grow.harness.store import Store


@pytest.fixture(autouse=True)
def small_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nasbench_grow.dev.floor._SIDE", {"cpu": 64})
    monkeypatch.setattr("nasbench_grow.dev.floor._COPIED_BYTES", {"cpu": 2**16})


def growing(**changes: Any) -> Any:
    cell = {"method": "grow", "backbone": "cifar_resnet20", "budget": 0.5, "train_samples": 320, "epochs": 4}
    return small_cell(**{**cell, **changes})


def command(folder: Path, *more: str, method: str = "dense", epochs: str = "2", samples: str = "64") -> list[str]:
    where = ["--method", method, "--task", "digits", "--backbone", "cifar_resnet20", "--epochs", epochs]
    return [*where, "--train-samples", samples, "--results", str(folder), *more]


def test_the_parts_add_up_to_the_step_and_the_trace_holds_them(tmp_path: Path) -> None:
    found = profile_steps(growing(), Store(tmp_path), 7)

    assert set(found.parts) == {*PARTS, "other"}
    assert sum(found.parts.values()) == pytest.approx(found.seconds)
    assert all(found.parts[part] > 0 for part in PARTS), "a restructuring lies in the first ten steps"
    assert found.floor * found.matrix_rate == pytest.approx(found.macs)
    names = {event.get("name") for event in json.loads(found.trace.read_text())["traceEvents"]}
    assert set(PARTS) <= names
    text = describe(found)
    assert all(part in text for part in (*PARTS, "other", "whole step", "floor", str(found.trace)))


def test_the_macs_of_a_fixed_network_are_those_of_every_step(tmp_path: Path) -> None:
    cell = growing(method="dense", budget=1.0)
    found = profile_steps(cell, Store(tmp_path), 5)

    task = registry.task("digits")()

    macs = count_macs(registry.build_backbone("cifar_resnet20", task), task.example())
    assert found.macs == 3 * macs * 32
    assert found.parts["restructuring"] == 0


def test_nothing_else_is_written_and_pytorch_is_left_as_it_was(tmp_path: Path) -> None:
    backward, hooks = Tensor.backward, dict(optimizer._global_optimizer_pre_hooks)
    profile_steps(growing(), Store(tmp_path), 2)

    assert [path.name for path in tmp_path.iterdir()] == ["profiles"]
    assert Tensor.backward is backward
    assert dict(optimizer._global_optimizer_pre_hooks) == hooks


def test_a_checkpoint_is_neither_taken_up_nor_touched(tmp_path: Path) -> None:
    store, cell = Store(tmp_path), growing()
    store.checkpoint(cell.run_key()).write("0", {"of": "an interrupted run"})  # taking it up would fail
    (path,) = (tmp_path / "checkpoints").rglob("*.pt")
    before = path.read_bytes()
    profile_steps(cell, store, 2)
    assert path.read_bytes() == before
    assert list((tmp_path / "checkpoints").rglob("*.pt")) == [path]


def test_an_error_leaves_pytorch_as_it_was_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backward = Tensor.backward

    def broken(*_: Any) -> Any:
        raise RuntimeError("broken loss")

    monkeypatch.setattr(registry.task("digits"), "loss", broken)
    with pytest.raises(RuntimeError, match="broken loss"):
        profile_steps(growing(), Store(tmp_path), 2)
    assert Tensor.backward is backward


@pytest.mark.parametrize(
    "more, message",
    [
        (["--steps", "0"], "steps 0 is out of range: profile 1 step or more"),
        (["--steps", "9"], "the run has 4 steps, of which 3 warm up; profile at most 1"),
        (["--steps", "1", "--setup", "cpu-ddp"], "setup 'cpu-ddp' has several processes"),
        (["--steps", "1", "--setup", "gpu"], "unknown setup 'gpu'"),
    ],
)
def test_bad_input_is_answered_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    assert main(command(tmp_path, *more)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not any(tmp_path.iterdir())


def test_no_step_is_profiled_beyond_the_end_of_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An adaptive batch grows, so that the run has fewer steps than its schedule, and their number is not known."""
    words = ("--steps", "7", "--setup", "cpu-adaptive")
    assert main(command(tmp_path, *words, method="grow", epochs="1", samples="320")) == 2
    assert re.search(r"steps 7 is out of range: the run has [1-9] steps", capsys.readouterr().err)
    assert not any(tmp_path.iterdir())


def test_the_command_prints_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(tmp_path, "--steps", "1")) == 0
    printed = capsys.readouterr().out
    assert "whole step" in printed
    assert len(list((tmp_path / "profiles").glob("*.json"))) == 1


def test_the_rates_of_the_device_are_those_of_what_was_timed(monkeypatch: pytest.MonkeyPatch) -> None:

    monkeypatch.setattr("nasbench_grow.dev.floor.seconds", lambda run, device: (run(), 2.0)[1])
    assert matrix_rate(torch.device("cpu"), torch.float32) == 64**3 / 2
    assert copy_bandwidth(torch.device("cpu")) == 2 * 2**16 / 2
