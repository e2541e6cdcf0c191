"""Latency on a clock that moves only as the networks say: medians, intervals, and a machine that slows down."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from itertools import repeat

import pytest
import torch
from torch import Tensor, nn

from nasbench_grow.harness.measure import Latency, latency

BATCH = torch.zeros(1)


class FakeClock:
    """Tells the time that networks have taken so far; from ``busy_from`` on, all of them take five times as long."""

    def __init__(self, busy_from: float = float("inf")) -> None:
        self.now, self.busy_from = 0.0, busy_from

    def __call__(self) -> float:
        return self.now

    def take(self, milliseconds: float) -> None:
        self.now += milliseconds / 1000 * (5 if self.now >= self.busy_from else 1)


class Takes(nn.Module):
    """A network whose passes take these milliseconds, one after the other."""

    def __init__(self, clock: FakeClock, milliseconds: Iterable[float]) -> None:
        super().__init__()
        self.clock, self.milliseconds = clock, iter(milliseconds)
        self.modes: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.modes.append(self.training)
        self.clock.take(next(self.milliseconds))
        return x


def after_warming_up(milliseconds: Iterable[float]) -> list[float]:
    """Two passes that are not counted, however long they take."""
    return [90.0, 4.0, *milliseconds]


def test_milliseconds_ratio_and_interval_are_medians_of_the_rounds() -> None:
    clock = FakeClock()
    network = Takes(clock, after_warming_up([5, 90, 6, 7, 1, 8, 9, 4, 3]))
    dense = Takes(clock, after_warming_up([10] * 9))
    found = latency(network, dense, BATCH, rounds=9, clock=clock)
    assert found == Latency(*(pytest.approx(value) for value in (6, 0.6, 0.3, 0.9)))  # the outermost of 9 lie outside


def test_six_rounds_give_their_smallest_and_largest_ratio() -> None:
    clock = FakeClock()
    network = Takes(clock, after_warming_up([5, 9, 6, 7, 3, 8]))
    found = latency(network, Takes(clock, after_warming_up([10] * 6)), BATCH, rounds=6, clock=clock)
    assert (found.ratio, found.low, found.high) == (pytest.approx(0.65), pytest.approx(0.3), pytest.approx(0.9))


def test_a_machine_that_becomes_busy_slows_both_alike() -> None:
    clock = FakeClock(busy_from=0.1)
    found = latency(Takes(clock, repeat(3)), Takes(clock, repeat(6)), BATCH, clock=clock)
    assert clock.now > 0.4, "half of the rounds and more were slow"
    assert (found.ratio, found.low, found.high) == (pytest.approx(0.5), pytest.approx(0.5), pytest.approx(0.5))


def test_short_passes_are_timed_several_at_once() -> None:
    clock = FakeClock()
    network, dense = Takes(clock, repeat(0.1)), Takes(clock, repeat(4))
    found = latency(network, dense, BATCH, rounds=7, clock=clock)
    assert (found.ms, found.ratio) == (pytest.approx(0.1), pytest.approx(0.025))
    assert len(network.modes) in (2 + 7 * 20, 2 + 7 * 21), "two milliseconds and no less"
    assert len(dense.modes) == 2 + 7


def test_long_passes_are_timed_no_more_often_than_an_interval_needs() -> None:
    clock = FakeClock()
    network, dense = Takes(clock, repeat(1000)), Takes(clock, repeat(2000))
    latency(network, dense, BATCH, clock=clock)
    assert len(network.modes) == len(dense.modes) == 2 + 6


def test_neither_network_is_always_the_first() -> None:
    order = []

    class Noted(Takes):
        def forward(self, x: Tensor) -> Tensor:
            order.append(self)
            return super().forward(x)

    clock = FakeClock()
    network, dense = Noted(clock, repeat(5)), Noted(clock, repeat(5))
    latency(network, dense, BATCH, rounds=6, clock=clock)
    assert order[4:] == 3 * [network, dense, dense, network]


def noisy(seed: int) -> Iterator[float]:
    """Passes of ten milliseconds, some of which are interrupted."""
    draws = random.Random(seed)
    while True:
        yield draws.gauss(10, 0.5) + (draws.expovariate(1 / 20) if draws.random() < 0.2 else 0)


def test_the_interval_of_two_alike_holds_one_nearly_always() -> None:
    held = 0
    for seed in range(200):
        clock = FakeClock()
        found = latency(Takes(clock, noisy(2 * seed)), Takes(clock, noisy(2 * seed + 1)), BATCH, clock=clock)
        held += found.low <= 1 <= found.high
    assert 185 <= held < 200, "95 %, and not because it holds everything"


def test_a_network_beside_itself_and_in_eval_mode_then_as_it_was() -> None:
    clock = FakeClock()
    network = Takes(clock, repeat(5)).train()
    found = latency(network, network, BATCH, clock=clock)
    assert (found.ratio, found.low, found.high) == (pytest.approx(1), pytest.approx(1), pytest.approx(1))
    assert not any(network.modes) and network.training
