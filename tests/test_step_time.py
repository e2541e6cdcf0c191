"""The price in seconds: what a sub-network's step takes by a table of layer times, and growing to a budget in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from backbone_spaces import CLASSES, example_of, space_of
from setups_here import only_with_channels_last
from tiny_networks import Kept, small_job
from torch import Tensor, nn

import nasbench_grow
from nasbench_grow.backbones import create
from nasbench_grow.base.errors import UserError
from nasbench_grow.base.folders import FOLDER_VARIABLE
from nasbench_grow.cli import main
from nasbench_grow.contract import ElasticModel, Job
from nasbench_grow.growing.beginning import Settings, begin
from nasbench_grow.growing.growing import Growing
from nasbench_grow.growing.sampling import SamplingSettings
from nasbench_grow.growing.scaling import ScalingSettings
from nasbench_grow.structure.discovery import discover
from nasbench_grow.structure.selection import select, uniform_keys
from nasbench_grow.structure.space import Space
from nasbench_grow.structure.step_time import StepTime, Timing, share_of_dense

EXAMPLE = torch.zeros(1, 3, 8, 8)


class Three(nn.Module):
    """A convolution, a depthwise one, a strided one, and a classifier."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.second = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.classifier = nn.Linear(2 * width, 10)

    def forward(self, images: Tensor) -> Tensor:
        features = F.relu(self.second(F.relu(self.depthwise(F.relu(self.first(images))))))
        return self.classifier(features.mean((2, 3)))


class Stopwatch:
    """A clock that reads off weights: seconds are what ``price`` says of the layer's outputs and inputs."""

    def __init__(self, price: Callable[[str, int, int], float]) -> None:
        self.price = price
        self.timed: list[tuple[str, int, int]] = []

    def __call__(self, step: Callable[[], object], device: torch.device) -> float:
        step()
        module = step.__closure__[[cell for cell in step.__code__.co_freevars].index("module")].cell_contents
        layer = module[0] if isinstance(module, nn.Sequential) else module
        outputs, inputs = layer.weight.shape[:2]
        kind = "linear" if isinstance(layer, nn.Linear) else f"stride {layer.stride[0]}"
        if kind != "linear" and layer.groups > 1:
            kind = "depthwise"
        self.timed.append((kind, outputs, inputs))
        return self.price(kind, outputs, inputs)


def product(kind: str, outputs: int, inputs: int) -> float:
    return float(outputs * inputs)


def made(folder: Path, price: Callable[[str, int, int], float] = product) -> tuple[Space, StepTime, Stopwatch]:
    model = Three()
    space, clock = discover(model, EXAMPLE), Stopwatch(price)
    return space, StepTime(space, model, EXAMPLE, Timing(batch_size=4), clock=clock, folder=folder), clock


def widths(space: Space, first: int, second: int) -> Tensor:
    present = torch.zeros(len(space), dtype=torch.bool)
    for group, width in zip(space.groups, (first, second), strict=True):
        present[group.start : group.start + width] = True
    return present


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))


def test_a_step_is_the_sum_of_its_layers_between_the_measured_widths(tmp_path: Path) -> None:
    space, times, _ = made(tmp_path)

    def expected(first: int, second: int) -> float:
        return 3 * first + first * 1 + first * second + 10 * second

    # a product is linear in each width, so that interpolating is exact between the points too
    for first, second in [(16, 32), (8, 16), (4, 24), (5, 17), (16, 1), (1, 32)]:
        assert times(widths(space, first, second)) == pytest.approx(expected(first, second))
    assert times.dense_ms == pytest.approx(1000 * expected(16, 32))


def test_times_rise_with_the_widths_whatever_was_measured(tmp_path: Path) -> None:
    space, times, _ = made(tmp_path, lambda kind, outputs, inputs: 100.0 / outputs + inputs)

    found = [times(widths(space, first, 16)) for first in range(1, 17)]
    assert found == sorted(found)


def test_a_table_is_kept_and_the_next_one_measures_nothing(tmp_path: Path) -> None:
    space, times, clock = made(tmp_path)
    assert clock.timed
    _, again, idle = made(tmp_path)

    assert not idle.timed
    assert again(space.full()) == times(space.full())
    assert len(list(tmp_path.glob("*.json"))) == 1


def test_structures_are_bought_where_they_are_cheap(tmp_path: Path) -> None:
    def dear(kind: str, outputs: int, inputs: int) -> float:
        return (20.0 if kind == "linear" else 1.0) * outputs * inputs

    space, times, _ = made(tmp_path, dear)
    keys = uniform_keys(space)
    keys[space.groups[0].structures] += 0.1  # a little above those of the second group
    budget = 0.5 * times(space.full())
    chosen = select(space, keys, budget, cost=times)

    assert 0.9 * budget <= times(chosen) <= budget
    by_macs = select(space, keys, 0.5 * space.macs(space.full()))
    assert int(chosen[space.groups[1].structures].sum()) < int(by_macs[space.groups[1].structures].sum())


IN_TIME = ScalingSettings(cost="time", periods=12)
SAMPLED_IN_TIME = SamplingSettings(cost="time", growth=0.5, search=0.1)
each = pytest.mark.parametrize("settings", [IN_TIME, SAMPLED_IN_TIME], ids=["scaling", "sampling"])


def job(make: Callable[[], nn.Module], example: Tensor, batch_size: int, **changes: Any) -> Job:
    """Twelve steps with times at hand."""
    timing = Timing(batch_size)

    def price(space: Space, dense: nn.Module) -> StepTime:
        return StepTime(space, dense, example, timing)

    return small_job(make, epochs=12, steps=1, batch_size=batch_size, example=example, price=price, **changes)


def begun(settings: Settings, **changes: Any) -> tuple[ElasticModel, Growing, Iterator[Any]]:
    running = job(Three, EXAMPLE, 4, **changes)
    model, growing = begin(running, settings)
    return model, growing, running.fit(model, growing)


LARGE = torch.zeros(1, 3, 32, 32)
"""Of this size a step is more than the calls that it takes."""


def large_batches(count: int) -> list[tuple[Tensor, Tensor]]:
    return count * [(torch.randn(8, 3, 32, 32), torch.arange(8))]


def large_network() -> Three:
    torch.manual_seed(0)
    return Three(64)


@each
def test_growing_ends_at_its_budget_of_time_by_the_clock_of_this_machine(settings: Settings) -> None:
    running = job(large_network, LARGE, 8, budget=0.6)
    model, growing = begin(running, settings)
    last = list(running.fit(model, growing))[-1]
    times, network = growing.masks.cost_of, growing.finish(model)

    assert 0 < times(model.structures) <= 0.6 * times(model.space.full())
    assert last.log["cost"] == pytest.approx(times(model.structures) / times(model.space.full()))
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@each
def test_a_run_goes_on_with_the_times_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    def timed_by(scale: float) -> None:
        clock = Stopwatch(lambda kind, outputs, inputs: outputs ** (scale if kind == "linear" else 1) * inputs)
        monkeypatch.setattr(StepTime.__init__, "__kwdefaults__", {"clock": clock, "folder": None})

    timed_by(1)
    straight, growing, stages = begun(settings)
    costs = [stage.log["cost"] for stage in stages]
    kept = Kept()
    _, _, stages = begun(settings, storage=kept)
    for _ in range(5):
        next(stages)

    for path in tmp_path.glob("step-times/*"):
        path.unlink()
    timed_by(3)
    model, resumed, stages = begun(settings, storage=kept)
    assert [stage.log["cost"] for stage in stages] == costs[4:]
    assert torch.equal(model.structures, straight.structures)
    assert resumed.masks.cost_of.state_dict() == growing.masks.cost_of.state_dict()


@each
def test_without_times_a_budget_of_time_is_refused(settings: Settings) -> None:
    with pytest.raises(UserError, match="cost=time needs step times, which this run cannot measure; use cost=macs"):
        begin(small_job(Three, example=EXAMPLE), settings)


def test_recurrent_layers_are_timed_as_a_whole(tmp_path: Path) -> None:
    from nasbench_grow.backbones import create

    model = create("lstm_200", 50, 36)
    example = torch.zeros(1, 6, dtype=torch.int64)
    space = discover(model, example)
    times = StepTime(
        space, model, example, Timing(batch_size=2), clock=lambda step, device: (step(), 1.0)[1], folder=tmp_path
    )

    # two recurrent layers and the softmax: one second each, however wide
    assert times(space.full()) == pytest.approx(3.0)
    assert times(space.seed()) == pytest.approx(3.0)


@pytest.mark.parametrize(
    "layout", [torch.contiguous_format, pytest.param(torch.channels_last, marks=only_with_channels_last)]
)
def test_the_real_clock_gives_positive_times_for_a_residual_network(
    tmp_path: Path, layout: torch.memory_format
) -> None:
    name = "cifar_resnet20"
    model, space = create(name, CLASSES, 3).to(memory_format=layout), space_of(name)
    state = torch.get_rng_state()
    times = StepTime(space, model, example_of(name), Timing(batch_size=2), folder=tmp_path)

    assert 0 < times(space.seed()) <= times(space.full())
    assert torch.equal(torch.get_rng_state(), state)


def test_milliseconds_become_a_share() -> None:
    assert share_of_dense(12.0, 48.0) == 0.25
    for wrong in (0.0, 49.0):
        with pytest.raises(UserError, match=f"budget {wrong:g} ms is out of range: .* takes 48.0 ms"):
            share_of_dense(wrong, 48.0)


def test_grow_meets_a_budget_in_milliseconds() -> None:
    model = large_network()
    dense_ms = StepTime(discover(model, LARGE), model, LARGE, Timing(batch_size=8)).dense_ms
    loader = large_batches(6)
    grown = nasbench_grow.grow(model, LARGE, loader, budget_ms=0.7 * dense_ms, epochs=2, progress=False)

    assert grown.macs < grown.dense_macs
    assert grown.history[-1]["cost"] <= 0.7


@pytest.mark.parametrize(
    "method, budget, message",
    [
        ("grow", "12ms", "budget 12ms is a time, but that of method 'grow' is a share of the dense network's MACs"),
        ("grow[cost=time]", "99999ms", "budget 99999 ms is out of range"),
        ("grow-paper[cost=time]", "0.5", "unknown setting of grow-paper 'cost'"),
        ("grow[cost=space]", "0.5", "cost of grow cannot be space"),
        ("random", "12ms", "budget 12ms is a time, but that of method 'random' is a share of the dense network's MACs"),
    ],
)
def test_bad_budgets_are_answered_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str, budget: str, message: str
) -> None:
    where = ["--task", "digits", "--backbone", "cifar_resnet20", "--seed", "0", "--results", str(tmp_path / "results")]
    assert main(["run", "--method", method, "--budget", budget, "--epochs", "1", *where]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
