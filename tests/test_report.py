"""Tables, figures and the page: right numbers, and nothing that breaks them."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from synthetic_results import DENSE_MACS, blocks, failed, record, seeds, table_of, write

from nasbench_grow import report, results
from nasbench_grow.base.errors import UserError
from nasbench_grow.report import figures, tables
from nasbench_grow.report.statistics import estimate, holm
from nasbench_grow.report.style import looks
from nasbench_grow.report.wording import MISSED, NOTHING

ROOT = Path(__file__).parent.parent
T_TWO_DEGREES = 4.302652729911275  # 97.5 % quantile of Student's t, from a table


# --- statistics ---


def test_the_interval_of_three_seeds_by_hand() -> None:
    found = estimate([0.60, 0.62, 0.67])
    assert found.n == 3 and found.mean == pytest.approx(0.63)
    assert found.half_width == pytest.approx(T_TWO_DEGREES * statistics.stdev([0.60, 0.62, 0.67]) / math.sqrt(3))


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=12).filter(lambda values: max(values) - min(values) > 1e-6))
def test_the_interval_is_that_of_scipy(values: list[float]) -> None:
    low, high = stats.t.interval(0.95, len(values) - 1, loc=statistics.fmean(values), scale=stats.sem(values))
    found = estimate(values)
    assert (found.mean - found.half_width, found.mean + found.half_width) == pytest.approx(
        (low, high), rel=1e-6, abs=1e-9
    )
    assert found.p == pytest.approx(stats.ttest_1samp(values, 0).pvalue, rel=1e-6, abs=1e-12)


def test_one_seed_has_no_interval_and_missing_values_do_not_count() -> None:
    assert math.isnan(estimate([0.5, math.nan]).half_width) and estimate([0.5, math.nan]).n == 1
    assert not estimate([0.5]).excludes_zero
    assert estimate([]).n == 0 and math.isnan(estimate([]).mean)


def test_equal_differences_are_sure_and_equal_values_are_not() -> None:
    assert estimate([0.25, 0.25]).p == 0 and estimate([0.25, 0.25]).excludes_zero
    assert estimate([0.0, 0.0]).p == 1 and not estimate([0.0, 0.0]).excludes_zero


def test_holm_by_hand() -> None:
    # 0.01 x 3; then 0.03 x 2; then 0.04 x 1, but not below the one before.
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, math.nan, 0.6])[0] == 1 and math.isnan(holm([0.5, math.nan, 0.6])[1])
    assert holm([]) == []


# --- which cells stand side by side ---


def test_cells_of_another_comparison_key_share_neither_table_nor_names(tmp_path: Path) -> None:
    new = seeds("grow", [0.6, 0.61], comparison_key="b" * 16, started_at="2026-02-01T00:00:00+00:00")
    old = seeds("grow", [0.5, 0.51], comparison_key="a" * 16)
    first = seeds("uniform", [0.4, 0.41], comparison_key=None, method_key=None, started_at="2025-01-01T00:00:00+00:00")
    found = blocks(write(tmp_path, [*new, *old, *first], with_histories=False))
    assert [block.comparison_key for block in found] == ["b" * 16, "a" * 16, None]
    assert [block.older for block in found] == [False, True, True]
    assert len({block.name for block in found}) == len({block.title for block in found}) == 3
    assert found[1].name == f"{found[0].name}-aaaaaaaa"
    assert [len(block.cells) for block in found] == [2, 2, 2]


def test_of_several_method_keys_the_newest_stands_and_the_others_are_named(tmp_path: Path) -> None:
    old = seeds("l1", [0.1, 0.2, 0.3], method_key="old", code_version="0ld0001")
    new = seeds("l1", [0.6], method_key="new", code_version="new0001", started_at="2026-03-01T00:00:00+00:00")
    other = seeds("l1", [0.4], budget=0.25, method_key="old", code_version="0ld0001")
    table = tables.comparison(blocks(write(tmp_path, [*old, *new, *other, *seeds("grow", [0.5])])))
    data = table.data.set_index(["method", "budget"])
    assert data.loc[("l1", 0.5), "cells"] == 1 and data.loc[("l1", 0.5), "test_metric"] == pytest.approx(0.6)
    assert data.loc[("l1", 0.5), "commits"] == "new0001" and data.loc[("l1", 0.25), "commits"] == "0ld0001"
    (note,) = [note for note in table.parts[0].notes if "Left out" in note]
    assert "l1 at 0.5, 3 from 0ld0001" in note and "0.25" not in note


def test_commits_stand_in_rows_and_captions_and_uncommitted_changes_are_marked(tmp_path: Path) -> None:
    found = [record("grow", 0.5, 0, code_version="aaa"), record("grow", 0.5, 1, code_version="bbb-dirty")]
    table = tables.comparison(blocks(write(tmp_path, found)))
    assert table.data["commits"].item() == "aaa, bbb-dirty"
    assert "Commits: aaa, bbb-dirty (with uncommitted changes)." in table.parts[0].block.caption
    assert any("nobody can run them again: grow." in note for note in table.parts[0].notes)


def test_methods_are_ordered_by_family_with_dense_first(tmp_path: Path) -> None:
    names = {"grow": "growing", "tpe": "search", "l1": "pruning", "mine": None, "random": "control", "dense": "control"}
    write(tmp_path, [record(name, 0.5, family=family) for name, family in names.items()], with_histories=False)
    assert blocks(tmp_path)[0].methods == ["dense", "random", "l1", "grow", "tpe", "mine"]


# --- comparison ---


def test_time_is_compared_seed_by_seed(tmp_path: Path) -> None:
    dense = [record("dense", 1.0, seed, wall_s=100.0 + 100 * seed, cpu_s=50.0) for seed in range(2)]
    grown = [record("grow", 0.5, seed, wall_s=60.0 + 80 * seed, cpu_s=25.0) for seed in range(2)]
    data = table_of(write(tmp_path, [*dense, *grown], with_histories=False), tables.comparison).set_index("method")
    assert data.loc["grow", "wall_s_ratio"] == pytest.approx(0.65)  # of 0.6 and 0.7
    quantile = 12.706204736432095  # 97.5 % of Student's t with one degree of freedom
    assert data.loc["grow", "wall_s_ratio_half_width"] == pytest.approx(quantile * 0.05)
    assert data.loc["grow", "cpu_s_ratio"] == pytest.approx(0.5)


def test_a_row_says_by_how_much_it_is_better_than_dense_seed_by_seed(tmp_path: Path) -> None:
    dense = [record("dense", 1.0, seed, test_metric=0.7 + 0.1 * seed) for seed in range(2)]
    grown = [record("grow", 0.5, seed, test_metric=0.69 + 0.12 * seed) for seed in range(2)]
    data = table_of(write(tmp_path, [*dense, *grown], with_histories=False), tables.comparison).set_index("method")
    assert data.loc["grow", "dense_advantage"] == pytest.approx(0.0)  # of -0.01 and 0.01
    assert data.loc["grow", "dense_advantage_half_width"] == pytest.approx(12.706204736432095 * 0.01)
    assert data.loc["grow", "params_share"] == pytest.approx(100 / 270)


def test_the_pareto_front_is_of_metric_inference_and_training_macs(tmp_path: Path) -> None:
    def cell(method: str, accuracy: float, training: float, **changes: Any) -> dict[str, Any]:
        whole = record(method)["dense_train_macs"]
        return record(method, 1.0 if method == "dense" else 0.5, test_metric=accuracy, **changes) | {
            "train_macs": int(training * whole)
        }

    cells = [
        cell("dense", 0.80, 1.0),
        cell("uniform", 0.70, 0.5),
        cell("grow", 0.70, 0.501),  # as good as uniform, within a hundredth for as much: both are on the front
        cell("random", 0.69, 0.5),  # worse for as much
        cell("l1", 0.75, 0.8),  # better, for more training
        cell("retrain", 0.75, 1.5),  # as good as l1, for more
        cell("grow-paper", 0.9, 0.1, meets_budget=False),  # no network of that size
    ]
    data = table_of(write(tmp_path, cells, with_histories=False), tables.comparison).set_index("method")
    assert sorted(data.index[data["pareto"]]) == ["dense", "grow", "l1", "uniform"]


@pytest.mark.parametrize("change", [{"threads": 2}, {"cpu": "Another CPU"}, {"vectors": "AVX2"}, None])
def test_time_is_not_compared_between_machines(tmp_path: Path, change: dict[str, Any] | None) -> None:
    cells = [record("dense", 1.0), record("grow", 0.5, 0), record("grow", 0.5, 1), record("uniform", 0.5)]
    cells[1]["hardware"] = change and {**cells[1]["hardware"], **change}
    table = tables.comparison(blocks(write(tmp_path, cells, with_histories=False)))
    data = table.data.set_index("method")
    assert math.isnan(data.loc["grow", "wall_s_ratio"]) and data.loc["uniform", "wall_s_ratio"] == pytest.approx(0.5)
    head = "training time (× dense)"  # noqa: RUF001 - the sign of the table
    assert table.parts[0].rows.set_index("method").loc["grow", head] == NOTHING


def test_raw_seconds_milliseconds_and_bytes_stay_out_of_the_text(tmp_path: Path) -> None:
    rows = tables.comparison(blocks(write(tmp_path, [record("dense", 1.0), record("grow", 0.5)]))).parts[0].rows
    assert not [head for head in rows if "(s)" in head or "(ms)" in head or "memory" in head]


def test_latency_is_a_ratio_with_its_interval(tmp_path: Path) -> None:
    one = record("l1", 0.5)
    two = [record("grow", 0.5, seed, latency_ratio_batch1=0.5 + 0.1 * seed) for seed in range(2)]
    old = [record("uniform", 0.5, **{f"latency_ratio_batch{size}": None for size in (1, 64)})]
    table = tables.comparison(blocks(write(tmp_path, [one, *two, *old], with_histories=False)))
    rows = table.parts[0].rows.set_index("method")["latency, batch 1 (× dense)"]  # noqa: RUF001
    assert rows["l1"] == "0.50 (0.45 to 0.55)", "one run: the interval that was measured"
    assert rows["grow"] == "0.55 (-0.09 to 1.19)", "12.706 x 0.05 on either side"
    assert rows["uniform"] == NOTHING


def test_what_search_and_source_cost_is_shown_where_it_cost_anything(tmp_path: Path) -> None:
    whole = record()["dense_train_macs"]
    cells = [
        record("grow", 0.5),
        record("tpe", 0.5, family="search", train_macs=3 * whole, search_macs=2 * whole),
        record("retrain", 0.5, train_macs=whole, source_macs=whole // 2),
    ]
    rows = tables.comparison(blocks(write(tmp_path, cells, with_histories=False))).parts[0].rows.set_index("method")
    assert rows.loc["tpe", ["training MACs share", "of which search"]].tolist() == ["3.000", "2.000"]
    assert rows.loc["retrain", "of which source"] == "0.500" and rows.loc["grow", "of which search"] == NOTHING
    assert "of which calibration" not in rows


@pytest.mark.usefixtures("unrendered")
def test_skipped_cells_have_a_line_and_are_no_failures(tmp_path: Path) -> None:
    skipped = [failed("iss", 0.5, seed, status="skipped", error="no LSTM here") for seed in range(2)]
    table = tables.comparison(blocks(write(tmp_path, [*skipped, record("grow", 0.5)], with_histories=False)))
    row = table.data.set_index("method").loc["iss"]
    assert (row["skipped"], row["failed"], row["diverged"], row["finished"]) == (2, 0, 0, 0)
    assert table.parts[0].rows.set_index("method").loc["iss", "seeds"] == "skipped"
    assert "Skipped: iss (no LSTM here)." in table.parts[0].notes
    page = report.write(tmp_path)[0].read_text()
    assert "Finished cells: 1, 2 skipped." in page and "Cells without a result" not in page


def test_rows_of_changed_settings_have_a_footnote(tmp_path: Path) -> None:
    write(tmp_path, [record("grow[peak=1.8]", 0.5), record("uniform", 0.5)], with_histories=False)
    (part,) = tables.comparison(blocks(tmp_path)).parts
    assert any("differ from the method's defaults; all other rows have the defaults" in note for note in part.notes)


# --- the budget ---


def test_a_method_that_misses_its_budget_is_marked_and_in_no_pair(tmp_path: Path) -> None:
    missing_once = [record("l1", 0.5, seed, meets_budget=seed != 1) for seed in range(3)]
    others = [*seeds("grow", [0.6, 0.61, 0.62]), *seeds("uniform", [0.6, 0.6, 0.6])]
    dense = seeds("dense", [0.7, 0.7, 0.7], budget=1.0)
    found = blocks(write(tmp_path, [*missing_once, *others, *dense], with_histories=False))
    compared = tables.comparison(found)
    assert set(compared.parts[0].rows["method"]) == {"dense", "uniform", f"l1 {MISSED}", "grow"}
    assert compared.data.set_index("method")["missed_budget"].to_dict() == {
        "dense": 0,
        "uniform": 0,
        "l1": 1,
        "grow": 0,
    }
    assert any(note.startswith(MISSED) for note in compared.parts[0].notes)
    assert set(tables.paired(found).data["method"]) == {"dense", "uniform"}
    assert tables.paired(found, "l1").data.empty


def test_the_comparison_has_a_row_for_each_method_and_budget(tmp_path: Path) -> None:
    accuracies = [0.60, 0.62, 0.67]
    grown = [record("grow", 0.5, seed, test_metric=value, wall_s=40 + seed) for seed, value in enumerate(accuracies)]
    write(
        tmp_path,
        [*grown, record("grow", 0.25), record("dense", 1.0, 0, wall_s=80.0), record("dense", 1.0, 1, wall_s=84.0)],
    )
    data = table_of(tmp_path, tables.comparison).set_index(["method", "budget"])
    assert list(data.index) == [("dense", 1.0), ("grow", 0.5), ("grow", 0.25)]
    row = data.loc[("grow", 0.5)]
    assert row["test_metric"] == pytest.approx(0.63)
    assert row["test_metric_half_width"] == pytest.approx(T_TWO_DEGREES * statistics.stdev(accuracies) / math.sqrt(3))
    assert row["wall_s"] == pytest.approx(41) and row["wall_s_ratio"] == pytest.approx((40 / 80 + 41 / 84) / 2)
    assert row["macs"] == DENSE_MACS / 2 and row["macs_share"] == pytest.approx(0.5)
    assert row["train_macs_share"] == pytest.approx(0.5)
    assert row["peak_memory_bytes"] == 512 * 2**20
    assert math.isnan(data.loc[("grow", 0.25), "test_metric_half_width"])


def test_failed_and_diverged_cells_are_counted_and_kept_out_of_the_means(tmp_path: Path) -> None:
    write(
        tmp_path,
        [
            record("l1", 0.5, 0, test_metric=0.6),
            failed("l1", 0.5, 1),
            record("l1", 0.5, 2, test_metric=0.1, status="diverged", error="loss is NaN"),
        ],
    )
    table = tables.comparison(blocks(tmp_path))
    row = table.data.iloc[0]
    assert (row["cells"], row["finished"], row["failed"], row["diverged"]) == (3, 1, 1, 1)
    assert row["test_metric"] == pytest.approx(0.6)
    shown = table.parts[0].rows.iloc[0]
    assert shown["seeds"] == "1 of 3, 1 failed, 1 diverged"
    assert shown["test accuracy (%)"] == "60.00 ± –"  # noqa: RUF001 - the dash of the table


def test_cells_of_different_protocols_do_not_share_a_row(tmp_path: Path) -> None:
    whole = record("grow", 0.5, 0, epochs=8, train_samples=None, test_metric=0.9)
    write(tmp_path, [record("grow", 0.5, 0, test_metric=0.6), whole, record("grow", 0.5, 0, setup="cpu-channels-last")])
    data = table_of(tmp_path, tables.comparison)
    assert len(data) == 3 and list(data["cells"]) == [1, 1, 1]
    assert data.loc[data["train_samples"].isna(), "test_metric"].item() == pytest.approx(0.9)


def test_one_seed_run_twice_counts_once_and_the_newer_run_stands(tmp_path: Path) -> None:
    old = record("grow", 0.5, 0, run_key="0" * 16, test_metric=0.5, started_at="2026-01-01T00:00:00+00:00")
    new = record("grow", 0.5, 0, run_key="f" * 16, test_metric=0.7, started_at="2026-01-02T00:00:00+00:00")
    data = table_of(write(tmp_path, [old, new]), tables.comparison)
    assert data["cells"].item() == 1 and data["test_metric"].item() == pytest.approx(0.7)


def test_figures_mark_a_missed_budget_and_leave_it_out_of_pairs(tmp_path: Path) -> None:
    cells = [*seeds("grow", [0.6, 0.61]), *seeds("uniform", [0.5, 0.5]), *seeds("l1", [0.5, 0.5], meets_budget=False)]
    (block,) = blocks(write(tmp_path, cells, with_histories=False))
    drawn = {drawing.name: drawing.figure for drawing in figures.draw(block, looks(block.families), "grow")}
    labels = {name: [text.get_text() for text in drawn[name].axes[0].get_yticklabels()] for name in drawn}
    assert labels["test-by-method"] == ["uniform", f"l1 {MISSED}", "grow"] and labels["paired"] == ["uniform"]
    named = [text.get_text() for text in drawn["test-vs-inference-macs"].axes[0].texts]
    assert sorted(named) == ["grow", f"l1 {MISSED}", "uniform"]


# --- paired differences ---


def test_differences_are_paired_by_seed(tmp_path: Path) -> None:
    cells = [*seeds("grow", [0.60, 0.63, 0.66]), *seeds("uniform", [0.59, 0.61, 0.63])]
    dense = seeds("dense", [0.7, 0.7], budget=1.0)
    data = table_of(write(tmp_path, [*cells, *dense]), tables.paired).set_index("method")
    row = data.loc["uniform"]
    assert row["n"] == 3 and row["advantage"] == pytest.approx(0.02) and row["better"] == 3
    half_width = T_TWO_DEGREES * 0.01 / math.sqrt(3)  # the differences are 0.01, 0.02, 0.03
    assert row["half_width"] == pytest.approx(half_width)
    assert (row["low"], row["high"]) == (pytest.approx(0.02 - half_width), pytest.approx(0.02 + half_width))
    assert not row["excludes_zero"]
    assert data.loc["dense", "n"] == 2 and data.loc["dense", "advantage"] == pytest.approx(-0.085)
    assert list(data["split"].unique()) == ["test"]


@pytest.mark.parametrize(
    ("metric", "grown", "other", "text"),
    [
        (
            {"metric": "perplexity", "higher_is_better": False, "metric_scale": 1.0, "metric_unit": ""},
            [100.0, 101.0],
            [103.0, 104.0],
            {"better by, test perplexity": "+3.00 ± 0.00"},
        ),
        ({}, [0.5, 0.5], [0.53, 0.53], {"better by, test accuracy (points)": "-3.00 ± 0.00"}),
        (
            {"metric": "PSNR", "higher_is_better": True, "metric_scale": 1.0, "metric_unit": "dB"},
            [31.5, 32.5],
            [31.0, 32.0],
            {"better by, test PSNR (dB)": "+0.50 ± 0.00"},
        ),
        (
            {"metric": "error", "higher_is_better": False, "metric_scale": 100.0, "metric_unit": "%"},
            [0.25, 0.25],
            [0.2, 0.2],
            {"better by, test error (points)": "-5.00 ± 0.00"},
        ),
    ],
)
def test_who_is_better_follows_direction_scale_and_unit_of_the_task(
    tmp_path: Path, metric: dict[str, Any], grown: list[float], other: list[float], text: dict[str, str]
) -> None:
    write(tmp_path, [*seeds("grow", grown, **metric), *seeds("uniform", other, **metric)], with_histories=False)
    table = tables.paired(blocks(tmp_path))
    shown = table.parts[0].rows.iloc[0]
    assert {head: shown[head] for head in text} == text
    ahead = next(iter(text.values())).startswith("+")
    assert table.data["better"].item() == (2 if ahead else 0) and shown["better"] == ("2 of 2" if ahead else "0 of 2")
    assert ("a lower" in table.parts[0].notes[0]) == (metric.get("higher_is_better") is False)


def test_a_made_up_metric_is_shown_as_its_task_says(tmp_path: Path) -> None:
    psnr = {"metric": "PSNR", "metric_scale": 1.0, "metric_unit": "dB"}
    write(tmp_path, [record("grow", 0.5, 0, test_metric=31.25, **psnr)], with_histories=False)
    shown = tables.comparison(blocks(tmp_path)).parts[0].rows.iloc[0]
    assert shown["test PSNR (dB)"].startswith("31.25")
    write(
        tmp_path / "old", [json.loads(path.read_text()) for path in (ROOT / "tests" / "old_records").iterdir()], False
    )
    heads = [set(part.rows) for part in tables.comparison(blocks(tmp_path / "old")).parts]
    assert "test accuracy (%)" in heads[0] and "test perplexity" in heads[1]


def test_the_paired_table_counts_its_intervals_and_judges_them_together(tmp_path: Path) -> None:
    # With two degrees of freedom p = 1 - t / sqrt(t^2 + 2), and t = sqrt(3) mean / deviation. Against uniform the
    # differences are 0, 0.01, 0.02: t = 1.7321, p = 0.22540. Against random 0.09, 0.10, 0.11: t = 17.3205,
    # p = 0.0033167. Against l1 0.04, 0.05, 0.07: t = 6.0469, p = 0.026271: below 0.05, but not times two.
    cells = [
        *seeds("grow", [0.60, 0.62, 0.64]),
        *seeds("uniform", [0.60, 0.61, 0.62]),
        *seeds("random", [0.51, 0.52, 0.53]),
        *seeds("l1", [0.56, 0.57, 0.57]),
        *seeds("dense", [0.7], budget=1.0),
    ]
    table = tables.paired(blocks(write(tmp_path, cells, with_histories=False)))
    data = table.data.set_index("method")
    assert data.loc["random", "p"] == pytest.approx(0.0033167, rel=1e-4)
    assert data.loc["random", "p_holm"] == pytest.approx(3 * 0.0033167, rel=1e-4)
    assert data.loc["l1", "p"] == pytest.approx(0.026271, rel=1e-4) and data.loc["l1", "excludes_zero"]
    assert data.loc["l1", "p_holm"] == pytest.approx(2 * 0.026271, rel=1e-4) and not data.loc["l1", "holds_for_all"]
    assert data.loc["random", "holds_for_all"] and not data.loc["uniform", "holds_for_all"]
    assert data.loc["dense", "holds_for_all"] is None, "one seed has no interval"
    assert "of the 3 in this table" in table.parts[0].notes[0] and "Holm" in table.parts[0].notes[0]
    rows = table.parts[0].rows.set_index("pair")["holds for all together"]
    assert rows["grow against random"] == "yes" and rows["grow against dense"] == NOTHING


def test_pairs_of_one_seed_have_no_note_about_intervals(tmp_path: Path) -> None:
    found = [record("grow", 0.5, 0, epochs=1), record("uniform", 0.5, 0, epochs=1)]
    part = tables.paired(blocks(write(tmp_path, found, with_histories=False))).parts[0]
    assert part.notes[0].endswith("Intervals need two seeds or more.")
    assert "Shortened: 1 epoch (default: 160)" in part.block.caption


def test_any_method_can_be_the_reference(tmp_path: Path) -> None:
    cells = [*seeds("grow", [0.6, 0.6]), *seeds("dense", [0.7, 0.7], budget=1.0), *seeds("dense_short", [0.5], 1.0)]
    write(tmp_path, cells, with_histories=False)
    data = tables.paired(blocks(tmp_path), "dense").data.set_index("method")
    assert data["advantage"].to_dict() == {"grow": pytest.approx(0.1), "dense_short": pytest.approx(0.2)}
    with pytest.raises(UserError, match="unknown reference 'denze'; did you mean 'dense'"):
        report.write(tmp_path, "denze")


@pytest.mark.usefixtures("unrendered")
def test_what_growing_found_is_compared_with_what_its_placebo_found(tmp_path: Path) -> None:
    cells = [*seeds("grow", [0.6, 0.6]), *seeds("retrain", [0.7, 0.72]), *seeds("retrain[of=placebo]", [0.6, 0.6])]
    report.write(write(tmp_path, cells, with_histories=False))
    data = pd.read_csv(tmp_path / "tables" / "architectures.csv").set_index("method")
    assert set(data["reference"]) == {"retrain"} and set(data.index) == {"grow", "retrain[of=placebo]"}
    assert data.loc["retrain[of=placebo]", "advantage"] == pytest.approx(0.11)


def test_a_method_without_cells_at_the_budget_is_not_paired(tmp_path: Path) -> None:
    write(tmp_path, [record("grow", 0.5), record("uniform", 0.25), failed("l1", 0.5, 0)])
    assert table_of(tmp_path, tables.paired).empty


# --- what is chosen is chosen on the validation split ---


@pytest.mark.parametrize(
    ("names", "split"),
    [
        (("l1", "l1[start=trained]", "retrain", "retrain[of=placebo]"), "test"),  # other protocols and sources
        (("l1", "l1[dense_share=0.25,start=trained]"), "val"),
        (("retrain", "retrain[of=grow[growth=0.3]]"), "val"),
        (("random[draw=1]", "random[draw=2]"), "val"),
    ],
)
def test_another_start_or_source_is_no_choice_of_settings(tmp_path: Path, names: tuple[str, ...], split: str) -> None:
    (block,) = blocks(write(tmp_path, [record(name, 0.5) for name in names], with_histories=False))
    assert block.split == split


@pytest.mark.usefixtures("unrendered")
def test_a_folder_with_several_settings_of_a_method_shows_validation_alone(tmp_path: Path) -> None:
    cells = [record(name, 0.5, seed, val_metric=0.5 + value, test_metric=0.9) for seed in range(2)
             for name, value in (("grow", 0.1), ("grow[growth=0.3]", 0.05), ("uniform", 0.0))]  # fmt: skip
    elsewhere = [record(name, 0.5, test_metric=0.9, task="other") for name in ("grow", "uniform")]
    report.write(write(tmp_path, [*cells, *elsewhere], with_histories=False))
    data = pd.read_csv(tmp_path / "tables" / "paired.csv")
    assert set(data["split"]) == {"val"}
    assert data.query("task == 'synthetic'")["advantage"].tolist() == pytest.approx([0.1, 0.05])
    page = (tmp_path / "README.md").read_text()
    assert "90.00" not in page and "test accuracy" not in page and "test is kept for what is chosen" in page
    assert "test_metric" not in pd.read_csv(tmp_path / "tables" / "comparison.csv")
    assert not list((tmp_path / "figures").glob("*_test-*")) and list(
        (tmp_path / "figures").glob("*_val-by-method.png")
    )


def test_settings_that_stand_alone_are_a_final_choice(tmp_path: Path) -> None:
    write(tmp_path, [record("grow[growth=0.3]", 0.5), record("retrain[of=grow]", 0.5)], with_histories=False)
    assert [block.split for block in blocks(tmp_path)] == ["test"]


# --- requirements ---


def test_requirements_are_judged_by_their_limits(tmp_path: Path) -> None:
    good = record("grow", 0.5, 0, macs=int(0.52 * DENSE_MACS), val_metric=0.6, soft_val_metric=0.602)
    bad = record("grow", 0.5, 1, macs=int(0.53 * DENSE_MACS), meets_budget=False, val_metric=0.6, soft_val_metric=0.597)
    write(tmp_path, [good, bad, record("uniform", 0.5)], with_histories=False)
    for run, costs in ((good, [0.05, 0.3, 0.5, 0.51]), (bad, [0.05, 0.1, 0.5, 0.5])):
        epochs = [{"epoch": at + 1, "macs": 1, "log": {"cost": cost}} for at, cost in enumerate(costs)]
        history = {"run_key": run["run_key"], "epochs": epochs}
        (tmp_path / "histories" / f"{run['run_key']}.json").write_text(json.dumps(history))
    data = table_of(tmp_path, tables.requirements).set_index("seed")
    assert set(data["method"]) == {"grow"}
    assert data.loc[0, "off_budget"] == pytest.approx(0.02) and data.loc[1, "off_budget"] == pytest.approx(0.03)
    assert list(data["meets_budget"]) == [True, False]
    assert data.loc[1, "soft_minus_hard"] == pytest.approx(-0.003) and list(data["commits"]) == [True, False]
    assert data.loc[0, "largest_step"] == pytest.approx(0.25) and data.loc[1, "largest_step"] == pytest.approx(0.4)
    assert list(data["grows_gradually"]) == [True, False]


def test_a_requirement_without_its_figure_is_neither_passed_nor_failed(tmp_path: Path) -> None:
    write(tmp_path, [record("grow", 0.5, soft_val_metric=None)], with_histories=False)
    table = tables.requirements(blocks(tmp_path), results.histories(tmp_path))
    assert table.data.loc[0, "commits"] is None and table.data.loc[0, "grows_gradually"] is None
    assert list(table.parts[0].rows.iloc[0]).count(NOTHING) == 2


def test_a_step_is_taken_from_the_networks_macs_where_nothing_is_logged(tmp_path: Path) -> None:
    run = record("grow", 0.5)
    write(tmp_path, [run], with_histories=False)
    epochs = [{"epoch": at + 1, "macs": int(share * DENSE_MACS)} for at, share in enumerate([0.1, 0.2, 0.4])]
    (tmp_path / "histories" / f"{run['run_key']}.json").write_text(
        json.dumps({"run_key": run["run_key"], "epochs": epochs})
    )
    assert table_of(tmp_path, tables.requirements)["largest_step"].item() == pytest.approx(0.2)


def test_a_run_that_is_full_grown_after_one_epoch_did_not_grow_gradually_unless_it_logs_its_steps(
    tmp_path: Path,
) -> None:
    silent, logged = record("grow", 0.5, 0), record("grow", 0.5, 1)
    write(tmp_path, [silent, logged], with_histories=False)
    for run, log in ((silent, {"cost": 0.5}), (logged, {"cost": 0.5, "largest_step": 0.11})):
        history = {"run_key": run["run_key"], "epochs": [{"epoch": at, "macs": 1, "log": log} for at in (1, 2)]}
        (tmp_path / "histories" / f"{run['run_key']}.json").write_text(json.dumps(history))
    data = table_of(tmp_path, tables.requirements)
    assert list(data["largest_step"]) == [0.5, 0.11]
    assert list(data["grows_gradually"]) == [False, True]
