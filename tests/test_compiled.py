"""The set-ups -compiled: the same training, compiled where the structure stays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cells import small_cell
from setups_here import only_with
from torch import nn

from nasbench_grow.harness.runner import run_cell
from nasbench_grow.harness.setups import SETUPS
from nasbench_grow.harness.store import Store


@only_with("cpu-compiled")
def test_a_compiled_cell_trains_as_the_plain_one(tmp_path: Path) -> None:
    compiled = run_cell(small_cell(setup="cpu-compiled"), Store(tmp_path))
    plain = run_cell(small_cell(), Store(tmp_path))

    assert compiled["status"] == plain["status"] == "ok", compiled["error"]
    for field in ("val_metric", "test_metric", "macs", "train_macs"):
        assert compiled[field] == pytest.approx(plain[field], abs=0.02)


@pytest.mark.parametrize("method, shapes", [("dense", 1), ("uniform", 1), ("l1", 2), ("grow", 1)])
def test_each_shape_that_stays_is_compiled_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, shapes: int
) -> None:
    """Counts the networks that a compiler, here one that changes nothing, is called through: a structure that changed
    must have stood for an epoch."""
    ran: list[int] = []

    class Compiled(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, inputs: Any) -> Any:
            if id(self) not in ran:
                ran.append(id(self))
                kept.append(self)
            return self.network(inputs)

    kept: list[Compiled] = []
    fake: Callable[..., nn.Module] = lambda network, **_: Compiled(network)  # noqa: E731
    monkeypatch.setattr(torch, "compile", fake)
    monkeypatch.setattr(SETUPS["cpu-compiled"].__class__, "available", lambda self: (True, ""))
    cell = small_cell(method=method, backbone="tiny_residual", budget=0.5, epochs=4, setup="cpu-compiled")
    compiled = run_cell(cell, Store(tmp_path))
    plain = run_cell(replace(cell, setup="cpu"), Store(tmp_path))

    assert len(ran) == shapes
    assert compiled["weights_sha256"] == plain["weights_sha256"]


def test_without_a_compiler_the_set_up_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    available, reason = SETUPS["cpu-compiled"].available()
    assert not available
    assert "install g++" in reason

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("shutil.which", lambda name: None)
    available, reason = SETUPS["cuda-fp32-compiled"].available()
    assert not available
    assert "install gcc" in reason
