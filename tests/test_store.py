import errno
import json
import os
from pathlib import Path

import pytest
import torch
from cells import finished_record, small_cell

from nasbench_grow import results
from nasbench_grow.base.errors import UserError
from nasbench_grow.harness import record as record_module
from nasbench_grow.harness.record import FIELDS, SCHEMA
from nasbench_grow.harness.store import ReadOnlyStore, Store, StoreError

CELL = small_cell()
KEY = CELL.run_key()
RECORD = finished_record(CELL)
OLD = Path(__file__).parent / "data" / "00d321234b521063.json"


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


# --- records of other versions ---


@pytest.fixture
def old(tmp_path):
    """A folder with a record as version 0.1 of the suite wrote it (schema 1)."""
    (tmp_path / "records").mkdir()
    content = json.loads(OLD.read_text())
    (tmp_path / "records" / f"{content['run_key']}.json").write_text(OLD.read_text())
    return tmp_path, content


def test_a_record_of_schema_1_is_read_as_one_of_today(old, caplog):
    folder, content = old
    (record,) = Store(folder).records()
    assert content.items() <= record.items(), "nothing that it says is lost"
    assert set(FIELDS) <= set(record)
    assert record["schema"] == 1
    meant = {"higher_is_better": True, "metric_scale": 100.0, "metric_unit": "%", "search_macs": 0, "source_macs": 0}
    assert meant.items() <= record.items()
    assert record["meets_budget"] is None and record["cpu_s"] is None, "not known then"
    assert not caplog.text and not (folder / "damaged").exists()
    frame = results.load(folder)
    assert frame["run_key"].tolist() == [content["run_key"]]
    assert frame["test_metric"].tolist() == [content["test_metric"]]


def test_a_perplexity_of_schema_1_is_better_the_lower_it_is():
    record = record_module.read({**json.loads(OLD.read_text()), "metric": "perplexity"}, OLD.stem)
    assert (record["higher_is_better"], record["metric_scale"], record["metric_unit"]) == (False, 1.0, "")


def test_a_field_that_this_version_does_not_know_is_kept(tmp_path):
    store = Store(tmp_path)
    store.write_record(RECORD)
    path = record_path(tmp_path)
    path.write_text(json.dumps({**RECORD, "energy_j": 12.5}))
    assert store.record(KEY) == {**RECORD, "energy_j": 12.5}
    assert results.load(tmp_path)["energy_j"].tolist() == [12.5]


@pytest.mark.parametrize("kind", ["text", "whole", "number", "flag", "object"])
def test_a_new_field_leaves_older_records_where_they_are(tmp_path, monkeypatch, caplog, kind):
    store = Store(tmp_path)
    store.write_record(RECORD)
    monkeypatch.setitem(FIELDS, "invented_later", kind)
    assert store.record(KEY) == {**RECORD, "invented_later": None}
    assert not caplog.text and record_path(tmp_path).exists()


@pytest.mark.parametrize(
    ("field", "value"),
    [("test_metric", "high"), ("macs", 1.5), ("meets_budget", 1), ("hardware", []), ("error", 3), ("seed", True)],
)
def test_a_field_of_another_kind_is_damage(tmp_path, caplog, field, value):
    path = record_path(tmp_path)
    path.parent.mkdir()
    path.write_text(json.dumps({**RECORD, field: value}))
    assert Store(tmp_path).record(KEY) is None
    assert f"{field} is {value!r}" in caplog.text
    assert (tmp_path / "damaged" / "records" / path.name).exists()


# --- checkpoints ---


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path):
    store = Store(tmp_path)
    weights = torch.randn(3, 4)
    store.checkpoint(KEY).write("0", {"weights": weights, "nested": [1, (2, 3), {"a": "b"}]})
    state = store.checkpoint(KEY).read("0")
    assert state is not None
    assert torch.equal(state["weights"], weights)
    assert state["nested"] == [1, (2, 3), {"a": "b"}]
    assert store.checkpoint(KEY).read("1") is None
    store.drop_checkpoint(KEY)
    assert store.checkpoint(KEY).read("0") is None
    store.drop_checkpoint(KEY)  # where there is none, nothing is to be done


def test_of_a_checkpoint_a_step_is_forgotten_with_those_inside_it_alone(tmp_path):
    checkpoint = Store(tmp_path).checkpoint(KEY)
    names = ["1", "1.0", "1.0.2", "1.10", "10", "11.0"]
    for name in names:
        checkpoint.write(name, {"done": True})
    checkpoint.forget("1.")
    assert [name for name in names if checkpoint.read(name)] == ["1", "10", "11.0"]


@pytest.mark.parametrize("damage", ["truncated", "not a checkpoint", "another cell's"])
def test_a_damaged_checkpoint_is_reported_and_set_aside(tmp_path, caplog, damage):
    store = Store(tmp_path)
    key = "0" * 16 if damage == "another cell's" else KEY
    store.checkpoint(key).write("0", {"weights": torch.zeros(1000)})
    path = tmp_path / "checkpoints" / key / "0.pt"
    data = b"hello" if damage == "not a checkpoint" else path.read_bytes()
    target = tmp_path / "checkpoints" / KEY / "0.pt"
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(data[: len(data) // 2] if damage == "truncated" else data)
    assert store.checkpoint(KEY).read("0") is None
    assert str(target) in caplog.text
    assert (tmp_path / "damaged" / "checkpoints" / KEY / "0.pt").exists()


def test_a_read_only_folder_is_left_as_it_is(tmp_path):
    writer, reader = Store(tmp_path), ReadOnlyStore(tmp_path)
    writer.write_record(RECORD)
    writer.checkpoint(KEY).write("0", {"weights": torch.zeros(2)})
    (tmp_path / "records" / f"{'1' * 16}.json").write_text("{")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}

    reader.write_record({**RECORD, "test_metric": 0.9})
    reader.write_history(KEY, [{"epoch": 1}])
    reader.write_architecture(KEY, "{}")
    reader.write_weights(KEY, lambda path: path.write_bytes(b"weights"))
    reader.write_log(KEY, "text")
    checkpoint = reader.checkpoint(KEY)
    checkpoint.write("1", {"weights": torch.ones(2)})
    checkpoint.forget("0")
    reader.drop_checkpoint(KEY)
    assert reader.records() == [RECORD], "the damaged one is passed over"

    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    state = checkpoint.read("0")
    assert state is not None and torch.equal(state["weights"], torch.zeros(2)), "what the other process wrote is read"


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


def test_a_record_of_a_newer_version_is_neither_misread_nor_taken_for_damage(tmp_path):
    cell = small_cell()
    store = Store(tmp_path)
    store.write_record(finished_record(cell))
    path = tmp_path / "records" / f"{cell.run_key()}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": SCHEMA + 1}))
    for read in (lambda: store.record(cell.run_key()), lambda: results.load(tmp_path)):
        with pytest.raises(UserError, match=f"schema {SCHEMA + 1}, but this version knows 1 to {SCHEMA}; update"):
            read()
    assert path.exists() and not (tmp_path / "damaged").exists()
