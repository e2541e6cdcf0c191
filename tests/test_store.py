import errno
import json
import os
from pathlib import Path

import pytest
import torch
from cells import finished_record, small_cell

from nasbench_grow.harness.store import Store, StoreError

CELL = small_cell()
KEY = CELL.run_key()
RECORD = finished_record(CELL)


def record_path(root: Path) -> Path:
    return root / "records" / f"{KEY}.json"


def test_a_record_comes_back_as_it_was(tmp_path):
    store = Store(tmp_path)
    assert store.record(KEY) is None
    store.write_record(RECORD)
    assert store.record(KEY) == RECORD
    assert store.records() == [RECORD]


def test_numbers_that_json_cannot_spell_become_null(tmp_path):
    store = Store(tmp_path)
    store.write_history(KEY, [{"epoch": 1, "loss": float("nan"), "log": {"cost": float("inf")}}])
    history = json.loads((tmp_path / "histories" / f"{KEY}.json").read_text())
    assert history == {"run_key": KEY, "epochs": [{"epoch": 1, "loss": None, "log": {"cost": None}}]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        json.dumps(RECORD).encode()[:100],
        b"[1, 2]",
        b"\xff\xfe\x00",
        json.dumps({"run_key": KEY, "status": "ok"}).encode(),
        json.dumps({**RECORD, "run_key": "0" * 16}).encode(),
        json.dumps({**RECORD, "status": "perhaps"}).encode(),
    ],
    ids=["empty", "half written", "not an object", "not text", "fields missing", "another cell's", "unknown status"],
)
def test_a_damaged_record_is_reported_and_set_aside(tmp_path, caplog, content):
    path = record_path(tmp_path)
    path.parent.mkdir()
    for _ in range(2):  # the second one must not overwrite the first
        path.write_bytes(content)
        assert Store(tmp_path).record(KEY) is None
    assert str(path) in caplog.text
    kept = sorted((tmp_path / "damaged" / "records").iterdir())
    assert [file.read_bytes() for file in kept] == [content, content]
    assert not path.exists()


@pytest.mark.parametrize("keep", [0, 5, 40, -1], ids=["empty", "head cut", "half", "last byte lost"])
def test_a_damaged_history_takes_its_record_with_it(tmp_path, caplog, keep):
    store = Store(tmp_path)
    store.write_record(RECORD)
    store.write_history(KEY, [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.4}])
    assert store.record(KEY) == RECORD
    path = tmp_path / "histories" / f"{KEY}.json"
    path.write_bytes(path.read_bytes()[:keep])
    assert store.record(KEY) is None, "the cell counts as not run, now and next time"
    assert store.record(KEY) is None
    assert str(path) in caplog.text
    assert (tmp_path / "damaged" / "histories" / path.name).exists()
    assert json.loads((tmp_path / "damaged" / "records" / path.name).read_text()) == RECORD


def test_looking_only_leaves_a_damaged_record_where_it_is(tmp_path, caplog):
    path = record_path(tmp_path)
    path.parent.mkdir()
    path.write_text("{")
    assert Store(tmp_path, repair=False).record(KEY) is None
    assert str(path) in caplog.text
    assert path.read_text() == "{"


def test_two_processes_may_find_the_same_damage(tmp_path, monkeypatch):
    path = record_path(tmp_path)
    path.parent.mkdir()
    path.write_text("{")

    def move(source, target):
        path.unlink()  # as the other process's move does, a moment before ours
        raise FileNotFoundError(source)

    monkeypatch.setattr("shutil.move", move)
    assert Store(tmp_path).record(KEY) is None


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path):
    store = Store(tmp_path)
    weights = torch.randn(3, 4)
    store.write_checkpoint(KEY, {"weights": weights, "nested": [1, (2, 3), {"a": "b"}]})
    state = store.checkpoint(KEY)
    assert state is not None
    assert torch.equal(state["weights"], weights)
    assert state["nested"] == [1, (2, 3), {"a": "b"}]
    store.drop_checkpoint(KEY)
    assert store.checkpoint(KEY) is None


@pytest.mark.parametrize("damage", ["truncated", "not a checkpoint", "another cell's"])
def test_a_damaged_checkpoint_is_reported_and_set_aside(tmp_path, caplog, damage):
    store = Store(tmp_path)
    store.write_checkpoint("0" * 16 if damage == "another cell's" else KEY, {"weights": torch.zeros(1000)})
    (path,) = (tmp_path / "checkpoints").iterdir()
    data = b"hello" if damage == "not a checkpoint" else path.read_bytes()
    target = path.with_name(f"{KEY}.pt")
    target.write_bytes(data[: len(data) // 2] if damage == "truncated" else data)
    assert store.checkpoint(KEY) is None
    assert str(target) in caplog.text
    assert (tmp_path / "damaged" / "checkpoints" / target.name).exists()


def test_what_a_killed_writer_left_is_not_taken_for_a_record(tmp_path):
    store = Store(tmp_path)
    path = record_path(tmp_path)
    path.parent.mkdir()
    path.with_name(f"{path.name}.part").write_text('{"run_key"')
    assert store.records() == []
    store.write_record(RECORD)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs the device /dev/full")
def test_a_full_disk_is_one_line_and_leaves_the_old_record(tmp_path):
    store = Store(tmp_path)
    store.write_record(RECORD)
    path = record_path(tmp_path)
    path.with_name(f"{path.name}.part").symlink_to("/dev/full")
    with pytest.raises(StoreError, match="disk is full") as caught:
        store.write_record({**RECORD, "test_metric": 0.9})
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert store.record(KEY) == RECORD


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_read_only_folder_is_named(tmp_path, monkeypatch, code):
    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "mkdir", refuse)
    store = Store(tmp_path)
    with pytest.raises(StoreError, match="--results") as caught:
        store.write_record(RECORD)
    assert str(tmp_path) in str(caught.value)
    with pytest.raises(StoreError, match="--results"), store.lock(KEY, wait=False):
        pass


def test_a_folder_inside_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file"):
        Store(tmp_path / "file" / "results").write_record(RECORD)


def test_only_one_holds_a_cell(tmp_path):
    one, other = Store(tmp_path), Store(tmp_path)
    with one.lock(KEY, wait=False) as first:
        assert first
        with other.lock(KEY, wait=False) as second:
            assert not second
        with other.lock("0" * 16, wait=False) as elsewhere:
            assert elsewhere
    with other.lock(KEY, wait=False) as after:
        assert after


def test_an_error_inside_a_held_cell_frees_it(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(KeyboardInterrupt), store.lock(KEY, wait=False):
        raise KeyboardInterrupt
    with Store(tmp_path).lock(KEY, wait=False) as held:
        assert held
