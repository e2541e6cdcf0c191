"""Reading a results folder with pandas."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
from synthetic_results import DENSE_MACS, LAYERS, failed, record, write

from nasbench_grow import results
from nasbench_grow.base.errors import UserError
from nasbench_grow.harness.record import FIELDS

ROOT = Path(__file__).parent.parent


def test_a_row_a_cell_with_flat_hardware_and_shares(tmp_path: Path) -> None:
    dense, grown = record("dense", 1.0, 0), record("grow", 0.5, 0, macs=19_600_000)
    frame = results.load(write(tmp_path, [dense, grown]))
    assert len(frame) == 2
    row = frame.set_index("method", drop=False).loc["grow"]
    assert row["macs_share"] == pytest.approx(0.49)
    assert row["train_macs_share"] == pytest.approx(0.5)
    assert row["hardware_cpu"] == "Imaginary CPU" and row["hardware_cores"] == 2
    assert row["versions_torch"] == "2.15.0" and row["versions_torch_pruning"] == "1.6.0"
    assert row["started_at"] == pd.Timestamp("2026-01-02T03:04:05Z")
    flat = {name for name in grown if name not in ("hardware", "versions")}
    assert flat <= set(frame.columns)
    assert all(row[name] == grown[name] for name in flat - {"started_at", "error"})


def test_every_field_of_a_record_is_a_column_of_its_kind() -> None:
    assert set(results.COLUMNS) == {*FIELDS, "macs_share", "train_macs_share"} - {"hardware", "versions"}
    assert {name: results.COLUMNS[name] for name in ("method", "settings", "seed", "budget", "meets_budget")} == {
        "method": "object",
        "settings": "object",
        "seed": "Int64",
        "budget": "float64",
        "meets_budget": "boolean",
    }


def test_the_page_on_results_lists_every_column() -> None:
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    rows = [row.split("|")[1] for row in page.splitlines() if row.startswith("| `")]
    listed = [name for row in rows for name in re.findall(r"`([^`]+)`", row)]
    assert sorted(listed) == sorted([*results.COLUMNS, "hardware_*", "versions_*"])


# --- records of older versions ---


def test_real_old_records_have_the_fields_of_today(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "tests" / "old_records", tmp_path / "records")
    frame = results.load(tmp_path).set_index("method")
    assert list(frame.index) == ["retrain[of=scaled]", "uniform"], "what was called grow is the scaled of today"
    retrain, uniform = frame.loc["retrain[of=scaled]"], frame.loc["uniform"]
    assert (retrain["metric"], retrain["higher_is_better"], retrain["metric_scale"], retrain["metric_unit"]) == (
        "accuracy", True, 100.0, "%",
    )  # fmt: skip
    assert (uniform["metric"], uniform["higher_is_better"], uniform["metric_scale"], uniform["metric_unit"]) == (
        "perplexity", False, 1.0, "",
    )  # fmt: skip
    assert list(frame["family"]) == ["control", "control"] and list(frame["meets_budget"]) == [True, True]
    assert frame[["comparison_key", "method_key", "cpu_s", "latency_ratio_batch1"]].isna().all(axis=None)
    assert list(frame["schema"]) == [1, 1] and list(frame["search_macs"]) == [0, 0]


@pytest.mark.parametrize(
    ("method", "budget", "share", "met"),
    [
        ("l1", 0.5, 0.52, True),
        ("l1", 0.5, 0.53, False),
        ("l1", 0.5, 0.47, False),
        ("dense", 1.0, 1.0, None),
        ("grow[cost=time]", 0.5, 0.36, None),
    ],
)
def test_whether_an_old_record_meets_its_budget_is_computed(
    tmp_path: Path, method: str, budget: float, share: float, met: bool | None
) -> None:
    old = record(method, budget, macs=int(share * DENSE_MACS), schema=None)
    del old["schema"], old["meets_budget"]
    found = results.load(write(tmp_path, [old], with_histories=False)).loc[0, "meets_budget"]
    assert found == met if met is not None else pd.isna(found)


def test_what_a_record_of_today_says_of_its_budget_stands(tmp_path: Path) -> None:
    write(tmp_path, [record("l1", 0.5, macs=DENSE_MACS, meets_budget=True)], with_histories=False)
    assert results.load(tmp_path).loc[0, "meets_budget"]


def test_counts_beyond_32_bits_stay_exact(tmp_path: Path) -> None:
    huge = 3 * 4_089_184_256 * 1_281_167 * 100 + 1
    frame = results.load(write(tmp_path, [record(train_macs=huge, dense_train_macs=2 * huge)]))
    assert int(frame.loc[0, "train_macs"]) == huge


def test_a_failed_cell_is_a_row_without_figures(tmp_path: Path) -> None:
    frame = results.load(write(tmp_path, [failed("l1", 0.5, 0)], with_histories=False))
    assert frame.loc[0, "status"] == "failed" and frame.loc[0, "error"] == "it broke"
    assert pd.isna(frame.loc[0, "test_metric"]) and pd.isna(frame.loc[0, "macs_share"])


def test_a_field_that_a_record_lacks_or_adds(tmp_path: Path) -> None:
    old = record()
    del old["soft_val_metric"], old["hardware"]
    frame = results.load(write(tmp_path, [old | {"granularity": 8}]))
    assert pd.isna(frame.loc[0, "soft_val_metric"])
    assert frame.loc[0, "granularity"] == 8


def test_an_empty_folder_gives_empty_frames_with_their_columns(tmp_path: Path) -> None:
    assert results.load(tmp_path).empty
    assert set(results.COLUMNS) <= set(results.load(tmp_path).columns)
    assert results.histories(tmp_path).empty and "val_metric" in results.histories(tmp_path)
    assert results.widths(tmp_path).empty and "layer" in results.widths(tmp_path)


@pytest.mark.parametrize("read", [results.load, results.histories, results.widths])
def test_a_missing_folder_is_an_error_that_says_what_to_do(tmp_path: Path, read) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match=r"no results folder .*nothing-here.*nasbench-grow reproduce"):
        read(tmp_path / "nothing-here")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"run_key": "0123', "Unterminated string"),
        ("[]", "not a JSON object"),
        ('{"run_key": "broken"}', "no method, task"),
        (json.dumps(record()), "holds the record of"),
        (json.dumps(record(run_key="broken", test_metric="good")), "test_metric is 'good'"),
        (json.dumps(record(run_key="broken", macs=1.5)), r"macs is 1\.5"),
        (json.dumps(record(run_key="broken", seed=True)), "seed is True"),
        (json.dumps(record(run_key="broken", meets_budget="yes")), "meets_budget is 'yes'"),
        (json.dumps(record(run_key="broken", status="fine")), "unknown status 'fine'"),
    ],
)
def test_damaged_records_are_skipped_and_named(tmp_path: Path, content: str, reason: str) -> None:
    write(tmp_path, [record()])
    (tmp_path / "records" / "broken.json").write_text(content)
    with pytest.warns(UserWarning, match=rf"skipped damaged file .*broken\.json: .*{reason}"):
        assert len(results.load(tmp_path)) == 1


def test_bytes_that_are_no_text_are_a_damaged_record(tmp_path: Path) -> None:
    write(tmp_path, [record()])
    (tmp_path / "records" / "broken.json").write_bytes(b"\xff\xfe\x00")
    with pytest.warns(UserWarning, match=r"broken\.json"):
        assert len(results.load(tmp_path)) == 1


def test_histories_have_a_row_an_epoch_and_the_logs_of_the_method(tmp_path: Path) -> None:
    dense, grown = record("dense", 1.0), record("grow", 0.5)
    frame = results.histories(write(tmp_path, [dense, grown]))
    assert len(frame) == dense["epochs"] + grown["epochs"]
    mine = frame[frame["run_key"] == grown["run_key"]]
    assert list(mine["epoch"]) == [1, 2, 3, 4]
    assert mine["log_target"].iloc[-1] == pytest.approx(0.5)
    assert frame[frame["run_key"] == dense["run_key"]]["log_target"].isna().all()


def test_widths_keep_the_order_of_layers_and_leave_out_removed_ones(tmp_path: Path) -> None:
    dense, grown = record("dense", 1.0), record("grow", 0.5)
    write(tmp_path, [dense, grown])
    frame = results.widths(tmp_path, [dense["run_key"]])
    assert set(frame["run_key"]) == {dense["run_key"]}
    first = frame[frame["epoch"] == 1]
    assert dict(zip(first["layer"], first["width"], strict=True)) == LAYERS
    assert list(first["layer"]) == list(LAYERS)
    grown_first = results.widths(tmp_path, [grown["run_key"]]).query("epoch == 1")
    assert "layer2.0.conv1" not in set(grown_first["layer"])


def test_structures_say_which_network_trained_when(tmp_path: Path) -> None:
    """Restructured twice in the first epoch, once in the second; pruned between the second and the third."""
    one = record("grow", 0.5, epochs=3)
    write(tmp_path, [one])
    changes = [[(0.25, 10), (0.5, 30)], [(0.5, 20)], []]
    ends = [30, 20, 5]
    epochs = [
        {
            "epoch": number + 1,
            "macs": end,
            "widths": {"conv": end, "fc": 10},
            "restructurings": [{"at": at, "macs": macs, "widths": {"conv": macs, "fc": 10}} for at, macs in inside],
        }
        for number, (inside, end) in enumerate(zip(changes, ends, strict=True))
    ]
    (path,) = (tmp_path / "histories").glob("*.json")
    path.write_text(json.dumps({"run_key": one["run_key"], "epochs": epochs}))
    frame = results.structures(tmp_path)
    convolution = frame[frame["layer"] == "conv"]
    found = list(convolution[["begin", "end", "macs", "width"]].itertuples(index=False, name=None))
    assert found == [(0.25, 0.5, 10, 10), (0.5, 1, 30, 30), (1, 1.5, 30, 30), (1.5, 2, 20, 20), (2, 3, 5, 5)]
    assert set(frame["layer"]) == {"conv", "fc"} and set(frame["run_key"]) == {one["run_key"]}


def test_of_old_histories_the_network_at_the_end_of_an_epoch_stands_for_all_of_it(tmp_path: Path) -> None:
    one = record("grow", 0.5)
    frame = results.structures(write(tmp_path, [one]))
    widths = results.widths(tmp_path)
    assert list(frame["end"]) == list(widths["epoch"]) and list(frame["begin"]) == list(widths["epoch"] - 1)
    assert list(frame["width"]) == list(widths["width"])


def test_damaged_histories_are_skipped_and_named(tmp_path: Path) -> None:
    write(tmp_path, [record()])
    (tmp_path / "histories" / "broken.json").write_text('{"run_key": "broken", "epochs": [{"loss": 1.0}]}')
    with pytest.warns(UserWarning, match=r"broken\.json: an epoch without its number"):
        assert len(results.histories(tmp_path)) == 4
