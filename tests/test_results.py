"""Reading a results folder with pandas."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from synthetic_results import LAYERS, failed, record, write

from nasbench_grow import results
from nasbench_grow.base.errors import UserError


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


def test_damaged_histories_are_skipped_and_named(tmp_path: Path) -> None:
    write(tmp_path, [record()])
    (tmp_path / "histories" / "broken.json").write_text('{"run_key": "broken", "epochs": [{"loss": 1.0}]}')
    with pytest.warns(UserWarning, match=r"broken\.json: an epoch without its number"):
        assert len(results.histories(tmp_path)) == 4
