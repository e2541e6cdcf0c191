"""The report on the questions about growing: the right cells, the right numbers, a document that stays as it is."""

from __future__ import annotations

import json
import math
import random
import statistics
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from scipy import stats
from synthetic_results import DENSE_MACS, SAMPLES, failed, record, write

from nasbench_grow import cli
from nasbench_grow.base.errors import UserError
from nasbench_grow.harness import registry
from nasbench_grow.harness.ablations import QUESTIONS, Question
from nasbench_grow.harness.grids import Grid
from nasbench_grow.harness.profiles import PROFILES
from nasbench_grow.harness.reproduce import cells_of
from nasbench_grow.report import ablations, marked
from nasbench_grow.report.statistics import deviation, spread_ratio
from nasbench_grow.report.studies import asked_cells

ROOT = Path(__file__).parent.parent
T_TWO_DEGREES = 4.302652729911275  # 97.5 % quantile of Student's t, from a table


def grid(*methods: str, budgets: tuple[float, ...] = (0.5,), seeds: int = 3, **changes: Any) -> Grid:
    """A grid under the protocol of the made-up records."""
    return Grid(("synthetic",), ("cifar_resnet20",), budgets, tuple(range(seeds)), 4, SAMPLES, methods, **changes)


VARIANTS = Question("speed", "how fast", "grow", (grid("grow", "grow[growth=0.4]"),))
ANSWER = Question(
    "answer",
    "does it win",
    "uniform",
    (grid("dense", budgets=(1.0,)), grid("uniform", "random", "grow", "retrain")),
    "answer",
)
STABILITY = Question("spread", "is it stable", "dense", (grid("dense", budgets=(1.0,)), grid("grow")), "stability")


def records(**accuracies: list[float | None]) -> list[dict[str, Any]]:
    """A record for each seed of each method; None is a failed cell. Budget 0.5, or 1 for dense."""
    found = []
    for method, values in accuracies.items():
        budget = 1.0 if method == "dense" else 0.5
        for seed, value in enumerate(values):
            found.append(
                failed(method, budget, seed) if value is None else record(method, budget, seed, test_metric=value)
            )
    return found


def only(folder: Path, question: Question, name: str | None = None) -> ablations.Exhibit:
    """The exhibit of a question, or the named one of several."""
    (found,) = [each for each in ablations.exhibits(folder, [question]) if name in (None, each.name)]
    return found


# --- the questions ---


def test_every_question_is_a_profile_and_one_profile_is_all_of_them() -> None:
    everything = set(PROFILES["ablations"].grids)
    for question in QUESTIONS:
        assert set(PROFILES[f"ablation-{question.name}"].grids) <= everything


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.name)
def test_the_report_looks_for_the_cells_that_are_run_under_the_names_of_their_records(question: Question) -> None:
    named = {name for each in question.grids for name in each.methods or ()}
    assert named and {registry.method(name).name for name in named} == named
    assert question.reference in named
    assert len(cells_of(question.profile, methods=sorted(named))) == asked_cells(question)


# --- variants ---


def test_a_variant_is_paired_by_seed_with_the_reference_and_with_uniform(tmp_path: Path) -> None:
    slow = {"grow[growth=0.4]": [0.62, 0.64, 0.66]}
    write(tmp_path, records(grow=[0.60, 0.63, 0.66], uniform=[0.59, 0.61, 0.63, 0.9], dense=[0.7], **slow))
    table = only(tmp_path, VARIANTS).table
    data = table.data.set_index("method")
    assert list(data.index) == ["grow", "grow[growth=0.4]"]
    row = data.loc["grow[growth=0.4]"]
    half_width = T_TWO_DEGREES * 0.01 / math.sqrt(3)  # the differences are 0.02, 0.01, 0.00
    assert row["n_reference"] == 3 and row["difference_reference"] == pytest.approx(0.01)
    assert row["half_width_reference"] == pytest.approx(half_width)
    assert row["difference_uniform"] == pytest.approx(0.03) and row["half_width_uniform"] == pytest.approx(0, abs=1e-9)
    assert row["test_metric"] == pytest.approx(0.64)
    assert row["wall_share"] == pytest.approx(0.5) and row["train_macs_share"] == pytest.approx(0.5)
    assert data.loc["grow", "n_reference"] == 0 and data.loc["grow", "n_uniform"] == 3
    shown = table.parts[0].rows.set_index("method").loc["`grow[growth=0.4]`"]
    assert shown["− grow"] == f"+1.00 ± {100 * half_width:.2f}"  # noqa: RUF001 - the minus of the table


def test_a_seed_that_one_side_lacks_does_not_count(tmp_path: Path) -> None:
    slow = {"grow[growth=0.4]": [0.62, None, 0.66]}
    write(tmp_path, records(grow=[0.60, 0.63, 0.66], uniform=[None, 0.61, 0.65], **slow), with_histories=False)
    exhibit = only(tmp_path, VARIANTS)
    row = exhibit.table.data.set_index("method").loc["grow[growth=0.4]"]
    assert row["n_reference"] == 2 and row["difference_reference"] == pytest.approx(0.01)
    assert row["n_uniform"] == 1 and row["difference_uniform"] == pytest.approx(0.01)
    assert (row["finished"], row["failed"]) == (2, 1)
    content = ablations.contents([exhibit], tmp_path, tmp_path / "page.md")["speed"]
    assert "**5 of 6 cells are finished.**" in content and "2 of 3, 1 failed" in content


def test_only_the_cells_that_a_question_asks_for_are_reported(tmp_path: Path) -> None:
    others = [record("grow", 0.5, 9, test_metric=0.1), record("grow", 0.25, 0), record("grow", 0.5, 0, epochs=8)]
    write(tmp_path, [*records(grow=[0.6, 0.6, 0.6]), *others], with_histories=False)
    table = only(tmp_path, VARIANTS).table
    assert len(table.data) == 1 and table.data.loc[0, "cells"] == 3
    assert table.data.loc[0, "test_metric"] == pytest.approx(0.6)


def test_without_uniform_and_dense_there_is_no_such_column_and_time_is_in_seconds(tmp_path: Path) -> None:
    write(tmp_path, records(grow=[0.6, 0.61], **{"grow[growth=0.4]": [0.6, 0.62]}), with_histories=False)
    exhibit = only(tmp_path, VARIANTS)
    columns = list(exhibit.table.parts[0].rows.columns)
    assert "− uniform" not in columns and "− grow" in columns and "time (s)" in columns  # noqa: RUF001
    assert exhibit.figure is not None
    assert "− grow" in exhibit.figure.axes[0].get_xlabel()  # noqa: RUF001


def test_the_time_of_a_variant_that_was_run_with_other_threads_is_left_out(tmp_path: Path) -> None:
    cells = records(dense=[0.7], grow=[0.6], **{"grow[growth=0.4]": [0.6]})
    for cell, threads in zip(cells, (2, 2, 1), strict=True):
        cell["hardware"] = {**cell["hardware"], "threads": threads}
    write(tmp_path, cells, with_histories=False)
    part = only(tmp_path, VARIANTS).table.parts[0]
    times = part.rows[next(column for column in part.rows.columns if column.startswith("time (×"))]  # noqa: RUF001
    assert times[0] != "–" and times[1] == "–"  # noqa: RUF001
    assert "time is not compared where the number of threads was another" in part.note


def test_each_protocol_has_rows_and_panels_of_its_own(tmp_path: Path) -> None:
    question = Question(
        "speed", "how fast", "grow", (VARIANTS.grids[0], grid("grow", "uniform", setup="cpu-channels-last"))
    )
    elsewhere = [
        record(name, 0.5, seed, setup="cpu-channels-last") for name in ("grow", "uniform") for seed in range(3)
    ]
    write(tmp_path, [*records(grow=[0.6, 0.61], **{"grow[growth=0.4]": [0.6, 0.62]}), *elsewhere], with_histories=False)
    exhibit = only(tmp_path, question)
    assert [len(part.rows) for part in exhibit.table.parts] == [2, 2]
    assert exhibit.figure is not None and len(exhibit.figure.axes) == 2


# --- the answer ---


def test_architecture_and_training_are_differences_by_seed(tmp_path: Path) -> None:
    write(
        tmp_path,
        records(
            retrain=[0.60, 0.63, 0.66],
            uniform=[0.59, 0.61, 0.63],
            random=[0.5, 0.5, None],
            grow=[0.61, 0.62, 0.63],
            dense=[0.7],
        ),
        with_histories=False,
    )
    architecture = only(tmp_path, ANSWER, "architecture").table.data.set_index(["reference", "method"])
    assert architecture.loc[("retrain", "uniform"), "difference"] == pytest.approx(0.02)
    assert architecture.loc[("retrain", "uniform"), "higher"] == 3
    assert architecture.loc[("retrain", "random"), "n"] == 2
    training = only(tmp_path, ANSWER, "training").table.data.set_index(["reference", "method"])
    assert list(training.index) == [("grow", "retrain"), ("grow", "uniform"), ("grow", "random")]
    assert training.loc[("grow", "retrain"), "difference"] == pytest.approx(-0.01)


def test_the_price_is_a_share_of_training_the_returned_network_from_scratch(tmp_path: Path) -> None:
    dense_training = 3 * DENSE_MACS * SAMPLES * 4
    grown = record("grow", 0.5, 0, macs=int(0.4 * DENSE_MACS), train_macs=int(0.3 * dense_training))
    write(tmp_path, [grown, record("dense", 1.0)], with_histories=False)
    data = only(tmp_path, ANSWER, "price").table.data.set_index("method")
    assert data.loc["grow", "train_macs_of_scratch"] == pytest.approx(0.75)
    assert data.loc["dense", "train_macs_of_scratch"] == pytest.approx(1)


# --- stability ---


def test_stability_tells_spread_failures_collapses_and_missed_budgets(tmp_path: Path) -> None:
    found = records(dense=[0.70, 0.71, 0.73], grow=[0.60, 0.63, None])
    found[4]["macs"] = int(0.53 * DENSE_MACS)
    write(tmp_path, found)
    path = tmp_path / "histories" / f"{found[3]['run_key']}.json"
    history = json.loads(path.read_text())
    history["epochs"][0]["widths"]["conv1"] = 0  # only the returned network counts
    history["epochs"][-1]["widths"]["conv1"] = 1
    path.write_text(json.dumps(history))
    data = only(tmp_path, STABILITY).table.data.set_index("method")
    row = data.loc["grow"]
    assert (row["cells"], row["finished"], row["failed"]) == (3, 2, 1)
    assert row["deviation"] == pytest.approx(statistics.stdev([0.60, 0.63]))
    assert (row["lowest"], row["highest"]) == (0.60, 0.63)
    assert row["off_budget"] == pytest.approx(0.03) and row["narrowest"] == 1
    assert data.loc["dense", "off_budget"] == 0 and data.loc["dense", "narrowest"] == 10
    ratio = statistics.stdev([0.60, 0.63]) / statistics.stdev([0.70, 0.71, 0.73])
    assert row["deviation_ratio"] == pytest.approx(ratio)
    assert row["deviation_ratio_low"] < ratio < row["deviation_ratio_high"]


def test_the_interval_of_a_ratio_of_spreads_holds_what_the_f_test_does_not_reject() -> None:
    draw = random.Random(0)
    mine, others = [draw.gauss(0, 1.3) for _ in range(20)], [draw.gauss(0, 1) for _ in range(12)]
    found = spread_ratio(mine, [*others, math.nan])
    assert found.value == pytest.approx(statistics.stdev(mine) / statistics.stdev(others))
    for end, tail in ((found.low, 0.025), (found.high, 0.975)):
        assert stats.f.sf((found.value / end) ** 2, 19, 11) == pytest.approx(tail)
    assert math.isnan(spread_ratio([1.0], others).value) and math.isnan(spread_ratio(mine, [1.0, 1.0]).low)
    assert math.isnan(deviation([1.0]))


# --- the document ---

PAGE = """# Title

<!-- ablation speed -->
stale
<!-- /ablation -->

By hand.

<!-- ablation spread -->
<!-- /ablation -->
"""


def test_a_document_keeps_its_prose_and_is_the_same_when_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("results/ablations"), records(grow=[0.60, 0.63, 0.66], uniform=[0.59, 0.61, 0.63]), with_histories=False)
    page = Path("docs/page.md")
    page.parent.mkdir()
    page.write_text(PAGE)
    stability = Question("spread", "is it stable", "dense", (grid("dense", budgets=(1.0,)),), "stability")
    written = ablations.write("results/ablations", page, [VARIANTS, stability])
    assert {path.as_posix() for path in written} == {
        "docs/page.md",
        *(
            f"results/ablations/{path}"
            for path in ("tables/speed.csv", "tables/speed.md", "figures/speed.png", "figures/speed.pdf")
        ),
    }
    text = page.read_text()
    assert "stale" not in text and "\n\nBy hand.\n\n" in text and text.startswith("# Title\n")
    assert "](../results/ablations/figures/speed.png)" in text
    assert "`nasbench-grow reproduce --profile ablation-speed --results results/ablations`" in text
    assert "No records yet. Run the cells: `nasbench-grow reproduce --profile ablation-spread" in text
    assert "Imaginary CPU" in text and str(tmp_path) not in text
    assert len(pd.read_csv("results/ablations/tables/speed.csv")) == 1
    before = {path: path.read_bytes() for path in written}
    ablations.write("results/ablations", page, [VARIANTS, stability])
    assert {path: path.read_bytes() for path in written} == before


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<!-- ablation sped -->\n<!-- /ablation -->", "'sped'; did you mean 'speed'"),
        ("\n<!-- ablation speed -->", "'speed' of the document is not closed"),
        ("\n<!-- /ablation -->", "line 2 of the document has '<!-- /ablation -->'"),
        ("<!-- ablation speed -->\n<!-- ablation speed -->\n<!-- /ablation -->", "line 2 .* to close 'speed'"),
    ],
)
def test_wrong_markers_are_refused(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        marked.fill(text, {"speed": "content"})


def test_the_command_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ablations", "--results", str(tmp_path), "--document", str(tmp_path / "no.md")]) == 2
    assert "cannot read" in capsys.readouterr().err
    (tmp_path / "page.md").write_text(PAGE)
    assert cli.main(["ablations", "--results", str(tmp_path / "no"), "--document", str(tmp_path / "page.md")]) == 2
    assert "no results folder" in capsys.readouterr().err
    assert (tmp_path / "page.md").read_text() == PAGE


def test_the_committed_document_is_what_the_committed_records_give(tmp_path: Path) -> None:
    folder = ROOT / "results" / "ablations"
    found = ablations.exhibits(folder if folder.is_dir() else tmp_path)
    text = (ROOT / "docs" / "ablations.md").read_text(encoding="utf-8")
    assert marked.fill(text, ablations.contents(found, Path("results/ablations"), Path("docs/ablations.md"))) == text
    assert set(marked.names(text)) == {exhibit.name for exhibit in found}


@pytest.mark.parametrize("exhibit", ["architecture", "training", "price", "speed", "spread"])
def test_figures_are_laid_out_whatever_is_missing(tmp_path: Path, exhibit: str) -> None:
    question = next(each for each in (VARIANTS, STABILITY, ANSWER) if each.name == exhibit or each is ANSWER)
    for number, some in enumerate(
        (
            records(grow=[0.6], retrain=[0.6], uniform=[0.6], random=[0.5], dense=[0.7]),
            records(grow=[None, None], dense=[0.7, None]),
            records(grow=[0.5, 0.6, 0.7]),
        )
    ):
        figure = only(write(tmp_path / str(number), some, with_histories=False), question, exhibit).figure
        if figure is not None:
            figure.draw_without_rendering()
