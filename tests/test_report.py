"""Tables, figures and the page: right numbers, and nothing that breaks them."""

from __future__ import annotations

import json
import math
import os
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from scipy import stats
from synthetic_results import DENSE_MACS, failed, full_comparison, record, write

from nasbench_grow import report, results
from nasbench_grow.base.errors import UserError
from nasbench_grow.harness.cell import make_cell
from nasbench_grow.report import tables
from nasbench_grow.report.figures import forward_order
from nasbench_grow.report.missing import missing
from nasbench_grow.report.protocol import blocks
from nasbench_grow.report.statistics import estimate
from nasbench_grow.report.style import appearance
from nasbench_grow.report.wording import NOTHING

T_TWO_DEGREES = 4.302652729911275  # 97.5 % quantile of Student's t, from a table


def table_of(folder: Path, which: Any) -> pd.DataFrame:
    """The unrounded numbers of a table of a results folder."""
    found = blocks(results.load(folder))
    table = which(found, results.histories(folder)) if which is tables.requirements else which(found)
    return table.data


# --- statistics ---


def test_the_interval_of_three_seeds_by_hand() -> None:
    found = estimate([0.60, 0.62, 0.67])
    assert found.n == 3 and found.mean == pytest.approx(0.63)
    assert found.half_width == pytest.approx(T_TWO_DEGREES * statistics.stdev([0.60, 0.62, 0.67]) / math.sqrt(3))


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=12).filter(lambda values: max(values) - min(values) > 1e-6))
def test_the_interval_is_that_of_scipy(values: list[float]) -> None:
    low, high = stats.t.interval(0.95, len(values) - 1, loc=statistics.fmean(values), scale=stats.sem(values))
    found = estimate(values)
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-6, abs=1e-9)


def test_one_seed_has_no_interval_and_missing_values_do_not_count() -> None:
    assert math.isnan(estimate([0.5, math.nan]).half_width) and estimate([0.5, math.nan]).n == 1
    assert not estimate([0.5]).excludes_zero
    assert estimate([]).n == 0 and math.isnan(estimate([]).mean)


# --- comparison ---


def test_seconds_are_not_compared_where_the_number_of_threads_differs(tmp_path: Path) -> None:
    cells = [record("dense", 1.0), record("grow", 0.5), record("uniform", 0.5)]
    for cell, threads in zip(cells, (2, 1, 2), strict=True):
        cell["hardware"] = {**cell["hardware"], "threads": threads}
    write(tmp_path, cells)
    data = table_of(tmp_path, tables.comparison).set_index("method")
    assert math.isnan(data.loc["grow", "wall_share"]) and not math.isnan(data.loc["uniform", "wall_share"])


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
    assert row["wall_s"] == pytest.approx(41) and row["wall_share"] == pytest.approx(41 / 82)
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
    table = tables.comparison(blocks(results.load(tmp_path)))
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


def test_a_perplexity_is_not_shown_in_percent(tmp_path: Path) -> None:
    write(tmp_path, [record("grow", 0.5, 0, metric="perplexity", test_metric=58.8)])
    shown = tables.comparison(blocks(results.load(tmp_path))).parts[0].rows.iloc[0]
    assert shown["test perplexity"].startswith("58.80")


# --- paired differences ---


def test_differences_are_paired_by_seed(tmp_path: Path) -> None:
    grown = [record("grow", 0.5, seed, test_metric=value) for seed, value in enumerate([0.60, 0.63, 0.66])]
    uniform = [record("uniform", 0.5, seed, test_metric=value) for seed, value in enumerate([0.59, 0.61, 0.63])]
    dense = [record("dense", 1.0, seed, test_metric=0.7) for seed in range(2)]
    data = table_of(write(tmp_path, [*grown, *uniform, *dense]), tables.paired).set_index("method")
    row = data.loc["uniform"]
    assert row["n"] == 3 and row["difference"] == pytest.approx(0.02) and row["higher"] == 3
    half_width = T_TWO_DEGREES * 0.01 / math.sqrt(3)  # the differences are 0.01, 0.02, 0.03
    assert row["half_width"] == pytest.approx(half_width)
    assert (row["low"], row["high"]) == (pytest.approx(0.02 - half_width), pytest.approx(0.02 + half_width))
    assert not row["excludes_zero"]
    assert data.loc["dense", "n"] == 2 and data.loc["dense", "difference"] == pytest.approx(-0.085)


def test_variants_of_grow_are_paired_with_every_other_method_once(tmp_path: Path) -> None:
    methods = {"grow": 0.6, "grow[growth=0.3]": 0.61, "uniform": 0.58, "grow-paper": 0.5}
    write(tmp_path, [record(name, 0.5, seed, test_metric=value) for name, value in methods.items() for seed in (0, 1)])
    data = table_of(tmp_path, tables.paired).set_index(["reference", "method"])["difference"]
    assert data.to_dict() == {
        ("grow", "uniform"): pytest.approx(0.02),
        ("grow", "grow-paper"): pytest.approx(0.1),
        ("grow", "grow[growth=0.3]"): pytest.approx(-0.01),
        ("grow[growth=0.3]", "uniform"): pytest.approx(0.03),
        ("grow[growth=0.3]", "grow-paper"): pytest.approx(0.11),
    }


def test_a_method_without_cells_at_the_budget_is_not_paired(tmp_path: Path) -> None:
    write(tmp_path, [record("grow", 0.5), record("uniform", 0.25), failed("l1", 0.5, 0)])
    assert table_of(tmp_path, tables.paired).empty


# --- requirements ---


def test_requirements_are_judged_by_their_limits(tmp_path: Path) -> None:
    good = record("grow", 0.5, 0, macs=int(0.52 * DENSE_MACS), val_metric=0.6, soft_val_metric=0.602)
    bad = record("grow", 0.5, 1, macs=int(0.53 * DENSE_MACS), val_metric=0.6, soft_val_metric=0.597)
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
    table = tables.requirements(blocks(results.load(tmp_path)), results.histories(tmp_path))
    assert table.data.loc[0, "commits"] is None and table.data.loc[0, "grows_gradually"] is None
    assert list(table.parts[0].rows.iloc[0]).count(NOTHING) == 2


def test_a_budget_of_time_is_held_against_the_time_that_is_logged(tmp_path: Path) -> None:
    run = record("grow[cost=time]", 0.5, macs=int(0.36 * DENSE_MACS))
    write(tmp_path, [run], with_histories=False)
    epochs = [{"epoch": at + 1, "macs": 1, "log": {"cost": cost}} for at, cost in enumerate([0.3, 0.49])]
    (tmp_path / "histories" / f"{run['run_key']}.json").write_text(
        json.dumps({"run_key": run["run_key"], "epochs": epochs})
    )
    assert table_of(tmp_path, tables.requirements)["off_budget"].item() == pytest.approx(0.01)


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


# --- files ---


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """The report of a whole comparison with one failed cell."""
    folder = write(tmp_path_factory.mktemp("results"), [*full_comparison(), failed("l1", 0.5, 7, epochs=10)])
    return folder, report.write(folder)


@pytest.fixture
def unrendered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lay figures out, but skip the slow part: turning them into files."""

    def laid_out(figure: Figure) -> dict[str, bytes]:
        figure.draw_without_rendering()
        return {"png": b"laid out"}

    monkeypatch.setattr(report, "rendered", laid_out)


def test_every_table_and_figure_is_written_and_returned(written: tuple[Path, list[Path]]) -> None:
    folder, paths = written
    assert paths[0] == folder / "README.md"
    names = {str(path.relative_to(folder)) for path in paths}
    assert {
        f"tables/{table}.{kind}" for table in ("comparison", "paired", "requirements") for kind in ("md", "csv", "tex")
    } < names
    stem = "figures/synthetic-cifar_resnet20-cpu-10-epochs-5000-samples_"
    drawn = ["test-vs-inference-macs", "test-vs-training-macs", "test-vs-training-time", "curves", "budget-schedule"]
    for figure in [*drawn, "growth-grow", "growth-grow-paper"]:
        assert {f"{stem}{figure}.png", f"{stem}{figure}.pdf"} < names
    on_disk = {str(path.relative_to(folder)) for kind in ("tables", "figures") for path in (folder / kind).iterdir()}
    assert on_disk == names - {"README.md"}


def test_figures_are_pictures_of_something(written: tuple[Path, list[Path]]) -> None:
    from matplotlib import image

    for path in written[1]:
        if path.suffix == ".png":
            pixels = image.imread(path)
            assert min(pixels.shape[:2]) > 300 and pixels[..., :3].std() > 0.02, path.name


def test_the_page_shows_every_figure_and_names_failures_and_provenance(written: tuple[Path, list[Path]]) -> None:
    folder, paths = written
    page = (folder / "README.md").read_text()
    for path in paths:
        if path.suffix == ".png":
            assert f"]({path.relative_to(folder)})" in page
    assert "Finished cells: 33, 1 failed." in page and "it broke" in page
    assert "Imaginary CPU, 2 cores, 8 GiB" in page and "torch 2.15.0" in page and "abc1234" in page
    assert str(folder.parent) not in page


def test_tables_read_back(written: tuple[Path, list[Path]]) -> None:
    folder, _ = written
    data = pd.read_csv(folder / "tables" / "comparison.csv")
    assert len(data) == 11
    grown = results.load(folder).query("method == 'grow' and budget == 0.5")
    row = data.query("method == 'grow' and budget == 0.5").iloc[0]
    assert row["test_metric"] == pytest.approx(grown["test_metric"].mean())
    page = (folder / "tables" / "comparison.md").read_text()
    assert f"{100 * row['test_metric']:.2f} ± {100 * row['test_metric_half_width']:.2f}" in page
    assert "3 of 4, 1 failed" in page


def test_latex_is_escaped_and_complete(written: tuple[Path, list[Path]]) -> None:
    text = (written[0] / "tables" / "comparison.tex").read_text()
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 1
    assert text.count(r"\toprule") == 1 and r"cifar\_resnet20" in text and r"$\pm$" in text and r"(\%)" in text
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0]
    assert all(line.count("&") == 13 for line in body.strip().splitlines())
    assert text.count("{") == text.count("}")


def test_a_second_report_gives_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path, [record("dense", 1.0, seed) for seed in range(2)], with_histories=False)
    first = {path: path.read_bytes() for path in report.write(tmp_path)}
    assert {path: path.read_bytes() for path in report.write(tmp_path)} == first


@pytest.mark.parametrize(
    "records",
    [
        [record("grow", 0.5, 0)],
        [record("dense", 1.0, 0)],
        [failed("grow", 0.5, 0), failed("dense", 1.0, 0, status="diverged")],
        [record("grow", 0.5, 0, epochs=1), record("mine", 0.5, 0, epochs=1)],
        [record("grow", 0.5, 0, dense_macs=None, train_macs=None, latency_ms_batch64=None, peak_memory_bytes=None)],
        [record("grow", 0.5, 0, hardware=None, versions=None, code_version=None, metric=None)],
        [record("grow", 0.5, 0, test_metric=None, val_metric=None, wall_s=None)],
    ],
    ids=["one cell", "dense only", "none finished", "one epoch", "costs missing", "no provenance", "no metrics"],
)
@pytest.mark.usefixtures("unrendered")
def test_missing_pieces_do_not_break_the_report(tmp_path: Path, records: list[dict[str, Any]]) -> None:
    write(tmp_path, records)
    assert (tmp_path / "README.md") in report.write(tmp_path)


@pytest.mark.usefixtures("unrendered")
def test_without_histories_there_are_only_the_figures_of_records(tmp_path: Path) -> None:
    write(tmp_path, [record("grow", 0.5, 0), record("dense", 1.0, 0)], with_histories=False)
    figures = [path.name for path in report.write(tmp_path) if path.parent.name == "figures"]
    assert len(figures) == 3 and all("_test-vs-" in name for name in figures)


def test_figures_go_with_their_records_and_other_files_stay(tmp_path: Path) -> None:
    write(tmp_path, [record("grow", 0.5, 0), record("grow[settle=1]", 0.5, 0, task="gone")])
    report.write(tmp_path)
    (tmp_path / "figures" / "mine.png").write_bytes(b"a user's")
    (tmp_path / "records" / f"{record('grow[settle=1]', 0.5, 0, task='gone')['run_key']}.json").unlink()
    expected = {path for path in report.write(tmp_path) if path.parent.name == "figures"}
    assert set((tmp_path / "figures").iterdir()) == {*expected, tmp_path / "figures" / "mine.png"}


def test_an_empty_folder_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no finished cells in .*; run `nasbench-grow reproduce .*` first"):
        report.write(tmp_path)


@pytest.mark.usefixtures("unrendered")
def test_a_damaged_record_is_left_out_with_a_warning(tmp_path: Path) -> None:
    write(tmp_path, [record("grow", 0.5, 0)], with_histories=False)
    (tmp_path / "records" / "half.json").write_text('{"run_key": "ha')
    with pytest.warns(UserWarning, match=r"half\.json"):
        report.write(tmp_path)
    assert "Finished cells: 1." in (tmp_path / "README.md").read_text()


@pytest.mark.usefixtures("unrendered")
def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, [record("dense", 1.0, 0)], with_histories=False)
    (tmp_path / "tables").write_text("a file where the folder should be")
    with pytest.raises(UserError, match=r"cannot write .*tables"):
        report.write(tmp_path)


@pytest.mark.usefixtures("unrendered")
def test_nothing_half_written_is_left_when_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, [record("dense", 1.0, 0)], with_histories=False)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        report.write(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} <= {"records", "histories"}


# --- parts ---


def test_layers_that_come_late_take_their_place_in_forward_order() -> None:
    epochs = [["conv1", "fc"], ["conv1", "block2", "fc"], ["conv1", "block1", "block2", "fc"]]
    frame = pd.DataFrame(
        [("run", at, layer, 1) for at, layers in enumerate(epochs) for layer in layers],
        columns=["run_key", "epoch", "layer", "width"],
    )
    assert forward_order(frame) == ["conv1", "block1", "block2", "fc"]


def test_methods_keep_their_colour_whatever_else_is_shown() -> None:
    few, many = appearance(["grow"]), appearance(["grow", "dense", "mine", "yours"])
    assert few["grow"] == many["grow"] and many["mine"] != many["yours"]
    assert len({colour for colour, _ in many.values()}) == len(many)


# --- what is still missing ---


def planned(seed: int, **changes: Any) -> dict[str, Any]:
    """The record of a cell of the profile ``table``."""
    cell = make_cell(
        method="grow", task="cifar10", backbone="cifar_vgg16_bn", budget=0.14, seed=seed, setup="cuda-bf16"
    )
    found = record("grow", 0.14, seed, profile="table")
    return found | asdict(cell) | {"run_key": cell.run_key()} | changes


def test_the_page_says_what_the_profiles_of_its_cells_still_lack(tmp_path: Path) -> None:
    write(tmp_path, [planned(0), planned(2, status="failed", error="it broke")])
    lacking = missing(results.load(tmp_path))
    of_grow = lacking[(lacking["method"] == "grow") & (lacking["backbone"] == "cifar_vgg16_bn")]
    assert of_grow["seeds"].tolist() == ["1, 2"]
    assert set(lacking["setup"]) == {"cuda-bf16"}
    assert lacking[lacking["task"] == "ptb"]["seeds"].tolist() == ["0, 1, 2"] * 4
    page = report.write(tmp_path)[0].read_text()
    assert "## Still missing" in page and page.count("cifar_wrn28_10") == 5


def test_cells_of_no_known_profile_lack_nothing(tmp_path: Path) -> None:
    write(tmp_path, [record("grow", 0.5)])
    assert missing(results.load(tmp_path)).empty
    assert "Still missing" not in report.write(tmp_path)[0].read_text()
