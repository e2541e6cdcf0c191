"""What cells will cost: from which finished cells the time is learnt, and what a skipped one costs."""

from cells import finished_record, small_cell

from nasbench_grow.harness import estimate, measure
from nasbench_grow.harness.record import STATUSES, is_settled
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


def test_the_time_of_a_mac_is_learnt_from_long_cells_of_this_machine_and_setup():
    def cell(total_s, **changes):
        here = {"hardware": measure.hardware(), "wall_s": 0.9 * total_s, "train_macs": 1000, "total_s": total_s}
        return finished_record(small_cell(), **{**here, **changes})

    tiny = cell(10.0, train_macs=1)  # an hour and a half for a batch, by its pace
    elsewhere = cell(500.0, hardware={**measure.hardware(), "cpu": "another"})
    unknown = cell(500.0, hardware=None)
    other_setup = cell(500.0, setup="cpu-channels-last")
    useless = [tiny, elsewhere, unknown, other_setup]
    assert estimate.seconds_per_mac(useless, "cpu") == estimate.SECONDS_PER_MAC
    assert estimate.seconds_per_mac([*useless, cell(40.0)], "cpu") == 0.04
    # Paces of 0.03, 0.04 and 0.2, for 30, 40 and 200 seconds: more than half of the time went by at the last.
    assert estimate.seconds_per_mac([cell(30.0), cell(200.0), cell(40.0)], "cpu") == 0.2
    # More than half of the time went by in the six cells of 0.03.
    assert estimate.seconds_per_mac([*6 * [cell(30.0)], cell(40.0), cell(100.0)], "cpu") == 0.03
