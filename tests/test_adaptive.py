"""The adaptive batch: the same samples in larger batches, as large as the memory of the dense network allows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from cells import small_cell
from hypothesis import given
from hypothesis import strategies as st
from setups_here import only_with_bf16
from torch import nn

from nasbench_grow.baselines.dense import Dense
from nasbench_grow.baselines.uniform import Uniform
from nasbench_grow.cli import main
from nasbench_grow.contract import Callback, ElasticModel, Job, Run
from nasbench_grow.harness import registry
from nasbench_grow.harness.adaptive import LARGEST, AdaptiveBatch, regrouped
from nasbench_grow.harness.measure import activation_bytes
from nasbench_grow.harness.runner import run_cell
from nasbench_grow.harness.setups import SETUPS
from nasbench_grow.harness.store import Store


def network(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(), nn.Linear(64 * width, 10)
    )


EXAMPLE = torch.zeros(1, 1, 8, 8)


@given(
    recipe=st.integers(1, 7),
    count=st.integers(1, 20),
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=5),
)
def test_regrouped_batches_hold_the_same_samples_in_order(recipe: int, count: int, sizes: list[int]) -> None:
    numbers = torch.arange(recipe * count)
    asked: list[int] = []

    def size() -> int:
        asked.append(sizes[len(asked) % len(sizes)])
        return asked[-1]

    batches = list(regrouped(iter([(part, -part) for part in numbers.split(recipe)]), recipe * count, size))

    assert torch.equal(torch.cat([inputs for inputs, _ in batches]), numbers)
    assert torch.equal(torch.cat([targets for _, targets in batches]), -numbers)
    left = recipe * count
    for (inputs, _), wanted in zip(batches, asked, strict=True):
        assert min(left, (wanted + 1) // 2) <= len(inputs) <= wanted
        left -= len(inputs)


def test_the_batch_of_a_smaller_network_takes_the_memory_of_the_dense_one() -> None:
    adaptive = AdaptiveBatch(network(32), EXAMPLE, recipe=16)
    bound = 16 * activation_bytes(network(32), EXAMPLE)

    assert adaptive.size(network(32)) == 16
    assert adaptive.size(network(64)) == 16, "no network gets less than the recipe's batch"
    assert adaptive.size(network(1)) <= LARGEST * 16
    half = adaptive.size(network(16))
    assert 0.7 * bound <= half * activation_bytes(network(16), EXAMPLE) <= bound
    assert half > 16


def test_activation_bytes_leave_the_network_and_the_random_numbers_as_they_were() -> None:
    plain, model = network(4), nn.Sequential(network(4), nn.Dropout())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()

    few = activation_bytes(plain, EXAMPLE)

    # input, convolution, normalisation and ReLU; the ReLU's result is also what the classifier keeps
    assert few == pytest.approx(4 * 64 * (1 + 4 + 4), rel=0.15)
    assert activation_bytes(model, EXAMPLE) > few
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class Watching(Callback):
    """Notes the batches and learning rates that a network trains with."""

    seen: ClassVar[list[tuple[int, float]]] = []

    def forward(self, model: ElasticModel, network: nn.Module, inputs: Any) -> Any:
        self.seen.append((len(inputs), model.optimizer.param_groups[0]["lr"]))
        return network(inputs)


class Watched(Uniform):
    """Uniform width, watched."""

    name = "watched"

    def run(self, job: Job) -> Run:
        model = job.model(self.choose(job))
        yield from job.fit(model, Watching())
        return model.network


def test_the_learning_rate_follows_the_batch_and_the_schedule_ends_with_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "methods", lambda: {"watched": Watched, "dense": Dense})
    monkeypatch.setattr(Watching, "seen", [])
    cell = small_cell(method="watched", budget=0.2, train_samples=640, backbone="cifar_resnet20", setup="cpu-adaptive")

    adaptive = run_cell(cell, Store(tmp_path))
    fixed = run_cell(replace(cell, setup="cpu"), Store(tmp_path))

    assert adaptive["status"] == fixed["status"] == "ok"
    count = len(Watching.seen) - 2 * 20  # batches of 32 in two epochs of 640 samples, by the other run
    assert count < 2 * 20
    recipe = registry.task("digits").recipe.for_samples(640)
    done = 0
    for size, rate in Watching.seen[:count]:
        step = done // 32 + 1
        assert size > 32
        assert rate == pytest.approx(size / 32 * recipe.learning_rate_at(step / 40))
        done += size
    assert done == 2 * 640
    assert adaptive["train_macs"] == fixed["train_macs"], "the same samples are trained on"


@only_with_bf16
def test_in_another_precision_too_the_dense_network_has_the_batch_of_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = replace(SETUPS["cpu-adaptive"], name="bf16-adaptive", precision="bf16")
    monkeypatch.setitem(SETUPS, setup.name, setup)
    monkeypatch.setattr(registry, "methods", lambda: {"watched": Watched, "dense": Dense})
    monkeypatch.setattr(Watching, "seen", [])
    cell = small_cell(method="watched", budget=1.0, train_samples=640, backbone="cifar_resnet20", setup=setup.name)
    assert run_cell(cell, Store(tmp_path))["status"] == "ok"
    assert {size for size, _ in Watching.seen} == {32}


def test_a_growing_run_gets_larger_batches_while_it_is_small_and_resumes_identically(tmp_path: Path) -> None:
    cell = small_cell(
        method="grow", backbone="cifar_resnet20", budget=0.5, train_samples=320, epochs=3, setup="cpu-adaptive"
    )
    whole = run_cell(cell, Store(tmp_path / "whole"))

    def stop(entry: dict[str, Any]) -> None:
        if entry["epoch"] == 2:
            raise KeyboardInterrupt

    store = Store(tmp_path / "stopped")
    with pytest.raises(KeyboardInterrupt):
        run_cell(cell, store, progress=stop)
    resumed = run_cell(cell, store)

    assert whole["status"] == "ok"
    assert whole["weights_sha256"] == resumed["weights_sha256"]
    assert whole["train_macs"] == resumed["train_macs"]
    assert abs(whole["macs"] / whole["dense_macs"] - 0.5) <= 0.02


def test_a_task_whose_batches_go_on_row_by_row_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["run", "--method", "dense", "--task", "ptb_small", "--backbone", "lstm_200", "--budget", "1"]
    code = main([*command, "--seed", "0", "--setup", "cpu-adaptive", "--results", str(tmp_path)])

    assert code == 2
    error = capsys.readouterr().err
    assert "'cpu-adaptive' cannot run task 'ptb_small'" in error
    assert "use setup 'cpu'" in error
    assert len(error.strip().splitlines()) == 1
