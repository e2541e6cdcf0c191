"""The set-ups -graphs: when a recorded pass may be replayed, tried with a recorder that needs no GPU."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nasbench_grow.harness.graphs import Graphed
from nasbench_grow.harness.setups import SETUPS


class Recorder:
    """Stands for ``torch.cuda.make_graphed_callables``: warms up as it does, and counts recordings and replays."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, network: nn.Module, sample: tuple[Tensor, ...]) -> Callable[[Tensor], Tensor]:
        self.recorded += 1
        network(*sample)

        def replay(inputs: Tensor) -> Tensor:
            self.replayed += 1
            output: Tensor = network(inputs)
            return output

        return replay


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    made = Recorder()
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", made)
    return made


def small_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 2))


BATCH = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def step(network: nn.Module, inputs: Tensor = BATCH) -> None:
    network(inputs).square().sum().backward()


def test_the_passes_are_recorded_once_and_the_network_trains_as_it_would(recorder: Recorder) -> None:
    network = small_network()
    plain, graphed = copy.deepcopy(network), Graphed(network)
    for _ in range(3):
        step(graphed)
        step(plain)

    assert (recorder.recorded, recorder.replayed) == (1, 3)
    for (name, one), other in zip(network.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.equal(one, other), f"{name}: what the recording tried must leave no trace"
    for one, other in zip(network.parameters(), plain.parameters(), strict=True):
        assert one.grad is not None and other.grad is not None
        assert torch.equal(one.grad, other.grad)


def with_hook(network: nn.Module) -> None:
    network[1].register_forward_hook(lambda *_: None)  # type: ignore[index]


def frozen(network: nn.Module) -> None:
    next(network.parameters()).requires_grad_(False)


def moved(network: nn.Module) -> None:
    weight = next(network.parameters())
    weight.data = weight.data.clone()


def fixed_statistics(network: nn.Module) -> None:
    network[1].eval()  # type: ignore[index]


@pytest.mark.parametrize("change", [with_hook, frozen, moved, fixed_statistics, nn.Module.eval])
def test_what_a_replay_would_get_wrong_the_network_computes(
    recorder: Recorder, change: Callable[[nn.Module], Any]
) -> None:
    network = small_network()
    graphed = Graphed(network)
    step(graphed)
    change(network)
    step(graphed)

    assert recorder.replayed == 1


def test_a_smaller_batch_is_not_replayed(recorder: Recorder) -> None:
    graphed = Graphed(small_network())
    step(graphed)
    step(graphed, BATCH[:3])
    step(graphed)

    assert (recorder.recorded, recorder.replayed) == (1, 2)


def test_two_passes_before_their_gradients_are_not_both_replayed(recorder: Recorder) -> None:
    """The second replay would overwrite what the first one's gradients are taken from."""
    graphed = Graphed(small_network())
    (graphed(BATCH).sum() + graphed(2 * BATCH).sum()).backward()
    step(graphed)

    assert recorder.replayed == 2


def test_a_network_that_cannot_be_recorded_trains_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", refuse)
    network = small_network()
    plain, graphed = copy.deepcopy(network), Graphed(network)
    with pytest.warns(UserWarning, match="trained without CUDA graphs.*not permitted"):
        step(graphed)
    step(plain)

    assert torch.equal(next(network.parameters()).grad, next(plain.parameters()).grad)  # type: ignore[arg-type]


def test_evaluation_records_nothing(recorder: Recorder) -> None:
    graphed = Graphed(small_network())
    with torch.no_grad():
        graphed(BATCH)

    assert recorder.recorded == 0


def test_results_compare_with_those_of_the_plain_set_up() -> None:
    assert SETUPS["cuda-bf16-graphs"].definition() == SETUPS["cuda-bf16"].definition()
    assert "cpu-graphs" not in SETUPS
