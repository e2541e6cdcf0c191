import dataclasses
import json
import random
from typing import ClassVar

import numpy as np
import pytest
import torch
from cells import METHODS, DeviceFailing, small_cell, use_methods

from nasbench_grow.base.errors import UserError
from nasbench_grow.baselines.dense import Dense
from nasbench_grow.harness import registry
from nasbench_grow.harness.reproduce import reproduce
from nasbench_grow.harness.runner import DeviceError, record_failure, run_cell
from nasbench_grow.harness.store import RECORD_FIELDS, Store


@pytest.fixture(autouse=True)
def methods(monkeypatch):
    use_methods(monkeypatch)


def history(store, cell):
    return json.loads((store.root / "histories" / f"{cell.run_key()}.json").read_text())["epochs"]


def outcome(record):
    """What must not depend on when, where and in how many pieces a cell was run."""
    measured = {"wall_s", "total_s", "peak_memory_bytes", "latency_ms_batch1", "latency_ms_batch64", "started_at"}
    return {field: value for field, value in record.items() if field not in measured}


def test_a_finished_cell_has_a_whole_record(tmp_path):
    store = Store(tmp_path)
    record = run_cell(small_cell(), store, profile="smoke")
    assert tuple(record) == RECORD_FIELDS
    assert all(value is not None for field, value in record.items() if field != "error")
    assert record["status"] == "ok"
    assert record["profile"] == "smoke"
    assert 0 <= record["test_metric"] <= 1
    assert record["macs"] == record["dense_macs"]
    assert record["params"] == record["dense_params"]
    assert record["train_macs"] == record["dense_train_macs"] == 3 * record["dense_macs"] * 2 * 64
    assert record["soft_val_metric"] == record["val_metric"], "nothing is hardened at the end of plain training"
    assert record["total_s"] > record["wall_s"] > 0
    assert store.record(record["run_key"]) == record
    assert store.checkpoint(record["run_key"]) is None


def test_the_history_says_what_happened_in_each_epoch(tmp_path):
    store, cell = Store(tmp_path), small_cell()
    told = []
    record = run_cell(cell, store, progress=told.append)
    epochs = history(store, cell)
    assert epochs == told
    assert [epoch["epoch"] for epoch in epochs] == [1, 2]
    assert epochs[1]["learning_rate"] == pytest.approx(0, abs=1e-9)
    assert epochs[1]["train_macs"] == 2 * epochs[0]["train_macs"] == record["train_macs"]
    assert epochs[1]["wall_s"] > epochs[0]["wall_s"]
    assert epochs[0]["macs"] == record["dense_macs"]
    assert epochs[0]["widths"] == {"0": 8, "3": 8, "6": 10}
    assert epochs[0]["log"] == {}


def test_the_seed_decides_everything_random(tmp_path):
    first, again, other = (
        run_cell(small_cell(method="noisy", seed=seed), Store(tmp_path / name))
        for name, seed in (("first", 0), ("again", 0), ("other", 1))
    )
    assert outcome(first) == outcome(again)
    assert first["weights_sha256"] != other["weights_sha256"]


def test_products_have_the_precision_of_the_set_up_and_weights_are_always_fp32(tmp_path, monkeypatch):
    class Precise(Dense):
        name = "precise"
        seen: ClassVar[set[tuple[torch.dtype, torch.dtype]]] = set()

        def __init__(self, job):
            super().__init__(job)
            self.chosen[0].register_forward_hook(self.note)

        def note(self, module, inputs, output):
            if module.training and torch.is_grad_enabled():  # not where MACs are counted
                self.seen.add((module.weight.dtype, output.dtype))

    monkeypatch.setitem(METHODS, "precise", Precise)
    bf16 = dataclasses.replace(registry.setups()["cpu"], name="cpu-bf16", precision="bf16")
    monkeypatch.setitem(registry.setups(), "cpu-bf16", bf16)
    cells = [small_cell(method="precise", setup=setup) for setup in ("cpu", "cpu-bf16")]
    for cell, precision in zip(cells, (torch.float32, torch.bfloat16), strict=True):
        Precise.seen.clear()
        assert run_cell(cell, Store(tmp_path))["status"] == "ok"
        assert Precise.seen == {(torch.float32, precision)}


@pytest.mark.parametrize("setup", ["cpu", "cpu-channels-last"])
def test_an_interrupted_cell_goes_on_to_the_same_bits(tmp_path, setup):
    cell = small_cell(method="noisy", epochs=3, setup=setup)
    whole = run_cell(cell, Store(tmp_path / "whole"))
    store = Store(tmp_path / "pieces")

    def interrupt(entry):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_cell(cell, store, progress=interrupt)
    assert store.record(cell.run_key()) is None
    for disturb in (random.random, np.random.rand, torch.rand):
        disturb(*([1] if disturb is torch.rand else []))
    told = []
    resumed = run_cell(cell, store, progress=told.append)
    assert outcome(resumed) == outcome(whole)
    assert [entry["epoch"] for entry in told] == [1, 2, 3]
    timeless = [
        [{**entry, "wall_s": 0} for entry in history(Store(tmp_path / folder), cell)] for folder in ("whole", "pieces")
    ]
    assert timeless[0] == timeless[1]


def test_a_damaged_checkpoint_costs_only_time(tmp_path):
    cell = small_cell()
    whole = run_cell(cell, Store(tmp_path / "whole"))
    store = Store(tmp_path / "damaged")
    store.write_checkpoint(cell.run_key(), {})
    path = tmp_path / "damaged" / "checkpoints" / f"{cell.run_key()}.pt"
    path.write_bytes(path.read_bytes()[:50])
    assert outcome(run_cell(cell, store)) == outcome(whole)


def test_a_loss_that_is_not_finite_is_recorded_as_diverged(tmp_path):
    store, cell = Store(tmp_path), small_cell(method="diverging")
    record = run_cell(cell, store)
    assert record["status"] == "diverged"
    assert record["error"] == "the training loss became nan in epoch 2 of 2"
    assert record["test_metric"] is None
    assert record["train_macs"] > 0
    assert store.record(cell.run_key()) == record
    assert len(history(store, cell)) == 1
    assert store.checkpoint(cell.run_key()) is None


def test_a_run_that_met_full_memory_goes_on_later(tmp_path, monkeypatch):
    store, cell = Store(tmp_path), small_cell(method="device-failing")
    record = run_cell(cell, store)
    assert record["status"] == "failed"
    assert record["error"] == "CUDA out of memory; the same command goes on after the last finished epoch"
    monkeypatch.setattr(METHODS["device-failing"], "train_epoch", Dense.train_epoch)
    told = []
    assert run_cell(cell, store, progress=told.append)["status"] == "ok"
    assert [entry["epoch"] for entry in told] == [1, 2]
    assert told[0]["wall_s"] == record["wall_s"], "the first epoch was not trained again"


def test_full_memory_is_not_blamed_on_the_backbone(tmp_path, monkeypatch):
    class Large(torch.nn.Module):
        def forward(self, inputs):
            raise DeviceFailing.error

    monkeypatch.setattr(registry, "build_backbone", lambda *_: Large())
    assert run_cell(small_cell(), Store(tmp_path))["error"].startswith("CUDA out of memory; the same command")


def test_after_a_device_failed_nothing_more_is_run_and_nothing_lost(tmp_path, monkeypatch):
    error = torch.AcceleratorError("CUDA error: unspecified launch failure\nsearch for it")
    monkeypatch.setattr(METHODS["device-failing"], "error", error)
    store, cell = Store(tmp_path), small_cell(method="device-failing")
    with pytest.raises(DeviceError, match=r"the device failed .*unspecified launch failure.; the same command goes on"):
        reproduce([cell, small_cell()], store)
    assert store.checkpoint(cell.run_key()) is not None
    assert store.record(small_cell().run_key()) is None


def test_an_error_is_recorded_in_one_line_with_its_traceback_beside(tmp_path):
    record = run_cell(small_cell(method="failing"), Store(tmp_path))
    assert record["status"] == "failed"
    log = f"logs/{record['run_key']}.txt"
    assert record["error"] == f"ValueError: first line (traceback in {log})"
    assert "second line" in (tmp_path / log).read_text()
    assert record["dense_macs"] > 0
    assert record["macs"] is None


def test_bad_input_is_raised_and_can_be_recorded(tmp_path):
    store, cell = Store(tmp_path), small_cell(method="refusing", budget=0.01)
    with pytest.raises(UserError, match=r"budget 0\.01 is too small") as caught:
        run_cell(cell, store)
    assert store.record(cell.run_key()) is None
    record = record_failure(cell, store, caught.value, profile="smoke")
    assert (record["status"], record["error"]) == ("failed", "budget 0.01 is too small")
    assert store.record(cell.run_key()) == record


@pytest.mark.parametrize("backbone", ["cifar_resnet2", "vit_tiny_patch16_224"])
def test_a_backbone_that_cannot_serve_the_task_is_bad_input(tmp_path, backbone):
    with pytest.raises(UserError, match=backbone) as caught:
        run_cell(small_cell(backbone=backbone), Store(tmp_path))
    assert "cifar_resnet20" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_each_build_has_the_same_weights_and_leaves_the_generators_alone(tmp_path, monkeypatch):
    seen = {}

    class Curious(registry.method("dense")):
        name = "curious"

        def __init__(self, job):
            super().__init__(job)
            before = torch.get_rng_state()
            one, two = job.build(), job.build()
            seen["equal"] = all(
                torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True)
            )
            seen["undisturbed"] = torch.equal(before, torch.get_rng_state())
            seen["layout"] = one[3].weight.is_contiguous(memory_format=torch.channels_last)

        def train_epoch(self, batches):
            batches = list(batches)
            seen["inputs"] = batches[0][0].shape[1:]
            return super().train_epoch(batches)

    monkeypatch.setitem(registry.methods(), "curious", Curious)
    assert run_cell(small_cell(method="curious", setup="cpu-channels-last"), Store(tmp_path))["status"] == "ok"
    assert seen == {"equal": True, "undisturbed": True, "layout": True, "inputs": (1, 8, 8)}
