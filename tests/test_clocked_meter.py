"""Seconds by purpose, with clocks that are moved by hand."""

from __future__ import annotations

import pytest

from nasbench_grow.cost.meter import PURPOSES
from nasbench_grow.cost.stopwatch import Stopwatch
from nasbench_grow.harness.clocked_meter import ClockedMeter


class Hands:
    """A clock on the wall and a processor that works half of the time."""

    def __init__(self) -> None:
        self.now = 0.0

    def meter(self) -> ClockedMeter:
        meter = ClockedMeter()
        meter.watches = {purpose: Stopwatch(lambda: self.now, lambda: self.now / 2) for purpose in PURPOSES}
        return meter


def seconds(meter: ClockedMeter) -> dict[str, float]:
    return {purpose: watch.wall_s for purpose, watch in meter.watches.items() if watch.wall_s}


def method(meter: ClockedMeter, hands: Hands):
    """Trains for 1 s, searches for 2 s in two stages, trains for 4 s."""
    hands.now += 1
    yield
    with meter.spending_on("search"):
        hands.now += 1.5
        meter.add(10)
        yield
        hands.now += 0.5
    hands.now += 4


def test_seconds_go_where_the_macs_go_and_those_between_two_stages_nowhere():
    hands = Hands()
    meter = hands.meter()
    run = method(meter, hands)
    for _ in range(3):
        with meter.running():
            next(run, None)
        hands.now += 100  # judged, written
    assert seconds(meter) == {"training": 5.0, "search": 2.0}
    assert (meter.wall_s, meter.cpu_s) == (7.0, 3.5)
    assert meter.spent["search"] == meter.total == 10


def test_time_paused_does_not_count_and_a_pause_does_not_start_it():
    hands = Hands()
    meter = hands.meter()
    with meter.paused():
        hands.now += 1
    hands.now += 1
    assert meter.wall_s == 0
    with meter.running():
        hands.now += 2
        with meter.paused():
            hands.now += 4
        hands.now += 8
    hands.now += 16
    assert seconds(meter) == {"training": 10.0}


def test_a_run_that_is_taken_up_in_the_middle_of_a_search_goes_on_with_what_was_spent():
    hands = Hands()
    before = hands.meter()
    with before.running(), before.spending_on("search"):
        hands.now += 3
        before.add(10)
        state = before.state_dict()
    hands.now += 1000
    after = hands.meter()
    with after.running(), after.spending_on("search"):
        after.load_state_dict(state)
        hands.now += 2
    assert seconds(after) == {"search": 5.0}
    assert (after.cpu_s, after.spent["search"]) == (2.5, 10)


def test_seconds_of_a_source_are_added_to_its_purpose():
    meter = Hands().meter()
    meter.watches["source"].add(30.0, 20.0)
    meter.watches["source"].add(3.0, 2.0)
    assert (meter.wall_s, meter.cpu_s) == (33.0, 22.0)
    again = Hands().meter()
    again.load_state_dict(meter.state_dict())
    assert (again.wall_s, again.cpu_s) == (33.0, 22.0)


def test_an_error_inside_stops_the_watch_and_gives_the_purpose_back():
    hands = Hands()
    meter = hands.meter()
    with pytest.raises(ValueError), meter.running(), meter.spending_on("search"):
        hands.now += 1
        raise ValueError
    hands.now += 1
    assert (seconds(meter), meter.purpose) == ({"search": 1.0}, "training")
