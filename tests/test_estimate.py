"""What cells will cost: from which finished cells the time is learnt, and what a skipped one costs."""

import math
from types import SimpleNamespace

import pytest
from cells import finished_record, small_cell
from hypothesis import given
from hypothesis import strategies as st

from nasbench_grow.harness import dense, estimate, measure
from nasbench_grow.harness.record import STATUSES, is_settled
from nasbench_grow.harness.runner import CURVE_SAMPLES
from nasbench_grow.harness.store import Store


def test_a_skipped_cell_costs_nothing_more(tmp_path, monkeypatch):
    cells = [small_cell(seed=seed) for seed in range(2)]
    found = {cell.run_key(): finished_record(cell, status="skipped", error="no attention here") for cell in cells}
    monkeypatch.setattr(Store, "record", lambda store, key: found[key])
    lines = estimate.plan(cells, Store(tmp_path)).splitlines()
    assert [line.split("  ")[-1] for line in lines[:2]] == ["skipped", "skipped"]
    assert lines[2].startswith("2 cells, 2 done, 0 to do: 0.00e+00 training MACs")


def test_settled_is_what_is_finished_or_cannot_run():
    cell = small_cell()
    settled = {status for status in STATUSES if is_settled(finished_record(cell, status=status))}
    assert settled == {"ok", "skipped"} and not is_settled(None)


PACE = estimate.PACES["cpu"]


def finished(cell, total_s, **changes):
    """The record of a cell that ran on this machine and trained for all of its dense MACs."""
    macs = dense.macs(cell.backbone, cell.task)
    counts = {"dense_macs": macs, "macs": macs, "dense_train_macs": 3 * macs * cell.epochs * cell.train_samples}
    here = {"hardware": measure.hardware(), "total_s": total_s, "beside": 0}
    return finished_record(cell, **{**counts, "train_macs": counts["dense_train_macs"], **here, **changes})


def by_pace(cell):
    macs = dense.macs(cell.backbone, cell.task)
    steps = cell.epochs * math.ceil(cell.train_samples / 32)
    return PACE.cell + PACE.step * steps + PACE.mac * macs * cell.epochs * (3 * cell.train_samples + CURVE_SAMPLES)


def test_without_records_the_device_has_a_pace_and_the_estimate_says_that_it_is_a_guess(tmp_path):
    cells = [small_cell(train_samples=7, epochs=4), small_cell(train_samples=1000, epochs=4)]
    found = estimate.estimate(cells, [])
    assert [one.seconds for one in found] == pytest.approx([by_pace(cell) for cell in cells])
    assert [one.factor for one in found] == [estimate.FACTOR_OF_NONE] * 2
    assert "a guess, as no cell of this machine and set-up is finished" in estimate.plan(cells, Store(tmp_path))


@given(
    few=st.integers(1, 40),
    samples=st.integers(1, 1200),
    epochs=st.integers(1, 50),
    slower=st.floats(0.2, 5),
)
def test_a_cell_takes_as_much_longer_than_its_pace_as_others_did_however_small_those_were(few, samples, epochs, slower):
    small, large = small_cell(train_samples=few, epochs=1), small_cell(train_samples=samples, epochs=epochs)
    (found,) = estimate.estimate([large], [finished(small, slower * by_pace(small))])
    assert found.seconds == pytest.approx(slower * by_pace(large))
    assert (found.factor, found.learnt_from) == (estimate.FACTOR_OF_OTHERS, 1)


def test_one_tiny_cell_that_took_a_minute_does_not_make_an_hour_of_seven_samples():
    (found,) = estimate.estimate(
        [small_cell(backbone="cifar_resnet20", train_samples=7)], [finished(small_cell(train_samples=1), 60.0)]
    )
    assert found.seconds < 90


def test_only_finished_cells_of_this_machine_and_setup_count_and_those_of_the_same_task_and_network_before_others():
    cell = small_cell()
    elsewhere = finished(cell, 500.0, hardware={**measure.hardware(), "cpu": "another"})
    unknown = finished(cell, 500.0, hardware=None)
    other_setup = finished(cell, 500.0, setup="cpu-channels-last")
    failed = finished(cell, 500.0, status="failed")
    gone = finished(cell, 500.0, task="withdrawn")
    useless = [elsewhere, unknown, other_setup, failed, gone]
    assert estimate.estimate([cell], useless)[0].learnt_from == 0
    other = small_cell(backbone="cifar_resnet20")
    assert estimate.estimate([cell], [*useless, finished(other, by_pace(other))])[0].factor == estimate.FACTOR_OF_OTHERS
    alike = [finished(cell, share * by_pace(cell)) for share in (2.0, 2.1, 3.0, 2.0, 2.0)]
    (found,) = estimate.estimate([cell], [*useless, finished(other, by_pace(other)), *alike])
    assert (found.learnt_from, found.seconds) == (5, pytest.approx(2 * by_pace(cell)))
    assert found.factor == estimate.LEAST_FACTOR, "one of five that is off says little"
    (spread,) = estimate.estimate([cell], [finished(cell, share * by_pace(cell)) for share in (1.0, 2.0, 6.0)])
    assert spread.factor == pytest.approx(3.0)


def test_several_at_once_take_between_their_share_and_all_of_the_time_unless_cells_side_by_side_say_more():
    cells = [small_cell(seed=seed) for seed in range(4)]

    def last_line(records, jobs):
        store = SimpleNamespace(record=lambda key: None, records=lambda: records)
        return estimate.plan(cells, store, jobs).splitlines()[-1]

    alone, beside = ([finished(cells[0], 6000.0, beside=others)] * 3 for others in (0, 3))
    learnt = "(learnt from 3 finished cells of this machine)"
    assert last_line(alone, 1).endswith(f", 5.6 h to 8.0 h {learnt}")
    assert last_line(alone, 2).endswith(f", 2.8 h to 8.0 h, 2 at once {learnt}")
    assert last_line([*alone, *beside], 2).endswith(f", 2.8 h to 4.0 h, 2 at once {learnt}")
    assert last_line(alone, 12).endswith(f", 83 min to 8.0 h, 4 at once {learnt}"), "there are no more cells than four"
