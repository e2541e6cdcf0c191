"""Seconds on the wall and of the processor."""

from __future__ import annotations

import pytest

from nasbench_grow.cost.stopwatch import Stopwatch


class Hands:
    """Two clocks that move when they are told to."""

    def __init__(self) -> None:
        self.wall, self.cpu = 100.0, 10.0

    def move(self, wall: float, cpu: float) -> None:
        self.wall, self.cpu = self.wall + wall, self.cpu + cpu

    def stopwatch(self) -> Stopwatch:
        return Stopwatch(lambda: self.wall, lambda: self.cpu)


def test_only_the_time_inside_counts() -> None:
    hands = Hands()
    watch = hands.stopwatch()
    assert (watch.wall_s, watch.cpu_s) == (0, 0)
    with watch:
        hands.move(3, 5)
    hands.move(50, 50)
    with watch:
        hands.move(1, 0.5)
        assert (watch.wall_s, watch.cpu_s) == (4, 5.5), "also while it runs"
    hands.move(50, 50)
    assert (watch.wall_s, watch.cpu_s) == (4, 5.5)


def test_time_before_an_error_counts() -> None:
    hands = Hands()
    watch = hands.stopwatch()
    with pytest.raises(ZeroDivisionError), watch:
        hands.move(3, 1)
        1 / 0  # noqa: B018
    hands.move(50, 50)
    assert (watch.wall_s, watch.cpu_s) == (3, 1)


def test_another_one_goes_on_from_its_state() -> None:
    hands = Hands()
    first = hands.stopwatch()
    with first:
        hands.move(3, 1)
        state = first.state_dict()
    assert state == {"wall_s": 3, "cpu_s": 1}
    resumed = hands.stopwatch()
    with resumed:
        hands.move(2, 2)
        resumed.load_state_dict(state)
        hands.move(4, 4)
    assert resumed.state_dict() == {"wall_s": 9, "cpu_s": 7}


def test_the_machines_own_clocks_count_work() -> None:
    with Stopwatch() as watch:
        sum(range(1_000_000))
    assert watch.cpu_s > 0 and watch.wall_s > 0
