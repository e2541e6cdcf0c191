import dataclasses
import json
import random
import time
from typing import ClassVar

import numpy as np
import pytest
import torch
from cells import DeviceFailing, MeetsFullMemory, WithCallback, small_cell, use_methods
from setups_here import IN_BOTH_LAYOUTS, only_with_bf16, only_with_channels_last

from nasbench_grow.base.errors import UserError
from nasbench_grow.baselines.dense import Dense
from nasbench_grow.baselines.dense_short import DenseShort
from nasbench_grow.baselines.grow import Grow
from nasbench_grow.baselines.uniform import Uniform
from nasbench_grow.contract import Callback, Job
from nasbench_grow.harness import measure, registry
from nasbench_grow.harness.errors import DeviceError
from nasbench_grow.harness.record import FIELDS, SCHEMA
from nasbench_grow.harness.reproduce import reproduce, run_one
from nasbench_grow.harness.runner import record_failure, run_cell
from nasbench_grow.harness.store import Store

PAUSE_S = 0.5


class Twice(Dense):
    """Trains in two steps of the journal."""

    name = "twice"

    def run(self, job):
        model = job.model()
        yield from job.fit(model, epochs=1)
        yield from job.fit(model)
        return model.network


class Pausing(Callback):
    """Makes each epoch of a search take some time."""

    def after_epoch(self, model):
        time.sleep(PAUSE_S)


class Searching(Dense):
    """Tries the network before it trains it."""

    name = "searching"

    def run(self, job):
        yield from job.trial(job.model(), Pausing(), epochs=2)
        yield from super().run(job)
        return job.sampled


@pytest.fixture(autouse=True)
def methods(monkeypatch):
    use_methods(monkeypatch)


def history(store, cell):
    return json.loads((store.root / "histories" / f"{cell.run_key()}.json").read_text())["epochs"]


def outcome(record):
    """What must not depend on when, where and in how many pieces a cell was run."""
    measured = {"wall_s", "cpu_s", "search_s", "total_s", "peak_memory_bytes", "started_at"}
    return {
        field: value for field, value in record.items() if field not in measured and not field.startswith("latency")
    }


def checkpoints(store, cell):
    return sorted((store.root / "checkpoints" / cell.run_key()).glob("*"))


def kill(*arguments):
    raise KeyboardInterrupt


def test_a_finished_cell_has_a_whole_record(tmp_path):
    store = Store(tmp_path)
    record = run_cell(small_cell(), store, profile="smoke")
    assert tuple(record) == tuple(FIELDS)
    null = {field for field, value in record.items() if value is None}
    assert null == {"error", "source_key", "meets_budget"}, "nothing failed, no source, and dense aims at no budget"
    assert record["schema"] == SCHEMA
    assert (record["family"], record["settings"]) == ("control", {})
    assert (record["metric"], record["higher_is_better"], record["metric_unit"]) == ("accuracy", True, "%")
    assert record["status"] == "ok"
    assert record["profile"] == "smoke"
    assert 0 <= record["test_metric"] <= 1
    assert record["macs"] == record["dense_macs"]
    assert record["params"] == record["dense_params"]
    assert record["train_macs"] == record["dense_train_macs"] == 3 * record["dense_macs"] * 2 * 64
    assert record["soft_val_metric"] == record["val_metric"], "nothing is hardened at the end of plain training"
    assert record["total_s"] > record["wall_s"] > 0
    assert record["cpu_s"] > 0
    assert [record[f"{purpose}_macs"] for purpose in ("search", "source", "calibration")] == [0, 0, 0]
    for size in (1, 64):
        low, ratio, high = (record[f"latency_ratio_{part}batch{size}"] for part in ("low_", "", "high_"))
        assert 0 < low <= ratio <= high
        assert record[f"latency_ms_batch{size}"] > 0
    assert store.record(record["run_key"]) == record
    assert not checkpoints(store, small_cell())


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


@only_with_bf16
def test_products_have_the_precision_of_the_set_up_and_weights_are_always_fp32(tmp_path, monkeypatch):
    class Precise(Dense):
        name = "precise"
        seen: ClassVar[set[tuple[torch.dtype, torch.dtype]]] = set()

        def choose(self, job):
            network = super().choose(job)
            network[0].register_forward_hook(self.note)
            return network

        def note(self, module, inputs, output):
            if module.training and torch.is_grad_enabled():  # not where MACs are counted
                self.seen.add((module.weight.dtype, output.dtype))

    use_methods(monkeypatch, Precise)
    bf16 = dataclasses.replace(registry.setups()["cpu"], name="cpu-bf16", precision="bf16")
    monkeypatch.setitem(registry.setups(), "cpu-bf16", bf16)
    cells = [small_cell(method="precise", setup=setup) for setup in ("cpu", "cpu-bf16")]
    for cell, precision in zip(cells, (torch.float32, torch.bfloat16), strict=True):
        Precise.seen.clear()
        assert run_cell(cell, Store(tmp_path))["status"] == "ok"
        assert Precise.seen == {(torch.float32, precision)}


@IN_BOTH_LAYOUTS
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


@pytest.mark.parametrize("method", ["dense", "twice"])
def test_a_run_killed_in_its_last_bookkeeping_goes_on_to_the_same_record(tmp_path, monkeypatch, method):
    use_methods(monkeypatch, Twice)
    cell = small_cell(method=method)
    whole = run_cell(cell, Store(tmp_path / "whole"))
    store = Store(tmp_path / "killed")
    with monkeypatch.context() as patched:
        patched.setattr(measure, "latency", kill)  # after the last epoch, before the record
        with pytest.raises(KeyboardInterrupt):
            run_cell(cell, store)
    assert store.record(cell.run_key()) is None and checkpoints(store, cell)
    told = []
    assert outcome(run_cell(cell, store, progress=told.append)) == outcome(whole)
    assert told == history(store, cell), "also of epochs that were trained before"
    assert not checkpoints(store, cell)


@pytest.mark.parametrize("damaged", ["0.pt", "1.pt"])
def test_a_damaged_checkpoint_costs_only_time(tmp_path, monkeypatch, caplog, damaged):
    use_methods(monkeypatch, Twice)
    cell = small_cell(method="twice")
    whole = run_cell(cell, Store(tmp_path / "whole"))
    store = Store(tmp_path / "damaged")
    with monkeypatch.context() as patched:
        patched.setattr(measure, "latency", kill)
        with pytest.raises(KeyboardInterrupt):
            run_cell(cell, store)
    path = store.root / "checkpoints" / cell.run_key() / damaged
    path.write_bytes(path.read_bytes()[:50])
    assert outcome(run_cell(cell, store)) == outcome(whole)
    assert str(path) in caplog.text
    assert len(history(store, cell)) == 2


@pytest.mark.parametrize("epoch", [1, 2, 3, 4])
def test_a_search_is_counted_apart_and_once_whenever_it_was_killed(tmp_path, monkeypatch, epoch):
    use_methods(monkeypatch, Searching)
    cell, store = small_cell(method="searching"), Store(tmp_path / "killed")

    def kill_then(entry):
        if entry["epoch"] == epoch:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_cell(cell, store, progress=kill_then)
    record = run_cell(cell, store)
    assert outcome(record) == outcome(run_cell(cell, Store(tmp_path / "whole")))
    assert [entry["purpose"] for entry in history(store, cell)] == ["search", "search", "training", "training"]
    trained = 3 * record["dense_macs"] * 2
    assert record["search_macs"] == trained * 32 + 6 * record["dense_macs"], "a batch an epoch, and 6 to judge on"
    assert record["train_macs"] == record["search_macs"] + trained * 64
    assert 2 * PAUSE_S < record["search_s"] < record["wall_s"]
    assert record["wall_s"] - record["search_s"] < 2 * PAUSE_S, "the rest is training, which does not pause"


def test_a_loss_that_is_not_finite_is_recorded_as_diverged(tmp_path):
    store, cell = Store(tmp_path), small_cell(method="diverging")
    record = run_cell(cell, store)
    assert record["status"] == "diverged"
    assert record["error"] == "the training loss became nan in epoch 2"
    assert record["test_metric"] is None
    assert record["train_macs"] > 0
    assert store.record(cell.run_key()) == record
    assert len(history(store, cell)) == 1
    assert not checkpoints(store, cell)


def test_a_run_that_met_full_memory_goes_on_later(tmp_path, monkeypatch):
    store, cell, before = Store(tmp_path), small_cell(method="device-failing"), []
    record = run_cell(cell, store, progress=before.append)
    assert record["status"] == "failed"
    assert record["error"] == "CUDA out of memory; the same command goes on after the last finished epoch"
    monkeypatch.setattr(DeviceFailing, "callback", Callback)
    told = []
    assert run_cell(cell, store, progress=told.append)["status"] == "ok"
    assert [entry["epoch"] for entry in told] == [1, 2]
    assert told[0] == before[0], "the first epoch was not trained again"


def test_full_memory_is_not_blamed_on_the_backbone(tmp_path, monkeypatch):
    class Large(torch.nn.Module):
        def forward(self, inputs):
            raise MeetsFullMemory.error

    cell = small_cell()
    cell.run_key()  # found before the memory is full
    monkeypatch.setattr(registry, "build_backbone", lambda *_: Large())
    assert run_cell(cell, Store(tmp_path))["error"].startswith("CUDA out of memory; the same command")


def test_after_a_device_failed_nothing_more_is_run_and_nothing_lost(tmp_path, monkeypatch):
    error = torch.AcceleratorError("CUDA error: unspecified launch failure\nsearch for it")
    monkeypatch.setattr(MeetsFullMemory, "error", error)
    store, cell = Store(tmp_path), small_cell(method="device-failing")
    with pytest.raises(DeviceError, match=r"the device failed .*unspecified launch failure.; the same command goes on"):
        reproduce([cell, small_cell()], store)
    assert checkpoints(store, cell)
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


def test_a_set_up_that_this_machine_lacks_fails_its_cells_and_not_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    store, cell = Store(tmp_path), small_cell(setup="cuda-fp32")
    assert reproduce([cell, small_cell()], store) == {"ok": 1, "failed": 1}
    assert "PyTorch finds no CUDA device" in store.record(cell.run_key())["error"]


@pytest.mark.parametrize("backbone", ["cifar_resnet2", "vit_tiny_patch16_224"])
def test_a_backbone_that_cannot_serve_the_task_is_bad_input(tmp_path, backbone):
    with pytest.raises(UserError, match=backbone) as caught:
        run_cell(small_cell(backbone=backbone), Store(tmp_path))
    assert "cifar_resnet20" in str(caught.value)
    assert "\n" not in str(caught.value)


@only_with_channels_last
def test_each_build_has_the_same_weights_and_leaves_the_generators_alone(tmp_path, monkeypatch):
    seen = {}

    class Curious(WithCallback):
        name = "curious"

        class Callback(Callback):
            def loss(self, model, network, inputs, targets, loss):
                seen["inputs"] = inputs.shape[1:]
                return super().loss(model, network, inputs, targets, loss)

        callback = Callback

        def run(self, job):
            before = torch.get_rng_state()
            one, two = job.build(), job.build()
            seen["equal"] = all(
                torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True)
            )
            seen["undisturbed"] = torch.equal(before, torch.get_rng_state())
            seen["layout"] = one[3].weight.is_contiguous(memory_format=torch.channels_last)
            return super().run(job)

    use_methods(monkeypatch, Curious)
    assert run_cell(small_cell(method="curious", setup="cpu-channels-last"), Store(tmp_path))["status"] == "ok"
    assert seen == {"equal": True, "undisturbed": True, "layout": True, "inputs": (1, 8, 8)}


def test_a_network_of_another_size_than_asked_for_does_not_meet_the_budget(tmp_path, monkeypatch):
    class Whole(Dense):
        """Promises a budget and returns the dense network, as a method that forgot to prune would."""

        name = "whole"
        uses_budget = aims_at_budget = True

    use_methods(monkeypatch, Whole, Uniform, DenseShort, Grow)
    store = Store(tmp_path)
    cells = {name: small_cell(method=name, budget=0.5, backbone="tiny_residual") for name in ("whole", "uniform")}
    met = {name: run_cell(cell, store)["meets_budget"] for name, cell in cells.items()}
    assert met == {"whole": False, "uniform": True}
    assert run_cell(small_cell(method="whole", budget=0.98), store)["meets_budget"], (
        "0.02 of the dense MACs are allowed"
    )
    assert not run_cell(small_cell(method="whole", budget=0.97), store)["meets_budget"]
    for control in (small_cell(method="dense"), small_cell(method="dense_short", budget=0.5)):
        assert run_one(control, store)["meets_budget"] is None, "of another size on purpose"


def test_a_method_without_meaning_for_the_task_is_skipped_for_good(tmp_path):
    store, cell = Store(tmp_path), small_cell(method="skipping")
    record = run_cell(cell, store)
    assert (record["status"], record["error"]) == ("skipped", "its idea needs attention, which this network has not")
    assert (record["train_macs"], record["test_metric"], record["meets_budget"]) == (0, None, None)
    assert record["dense_macs"] > 0
    assert not list(tmp_path.glob("logs/*"))
    assert run_one(cell, store) == record == store.record(cell.run_key())


def test_reproducing_passes_over_what_is_skipped(tmp_path, monkeypatch):
    store, cell = Store(tmp_path), small_cell(method="skipping")
    assert reproduce([cell, small_cell()], store) == {"ok": 1, "skipped": 1}
    monkeypatch.setattr("nasbench_grow.harness.reproduce.run_cell", pytest.fail)
    assert reproduce([cell, small_cell()], store) == {"ok": 1, "skipped": 1}


def test_a_run_that_met_bad_input_in_the_middle_goes_on_once_it_is_mended(tmp_path, monkeypatch):
    class Late(Dense):
        name = "late"
        mended: ClassVar[bool] = False

        def run(self, job):
            network = yield from super().run(job)
            if not self.mended:
                raise UserError("a disk that is not there")
            return network

    use_methods(monkeypatch, Late)
    store, cell = Store(tmp_path), small_cell(method="late")
    assert reproduce([cell], store) == {"failed": 1}
    assert checkpoints(store, cell)
    Late.mended = True
    monkeypatch.setattr(Job, "_epoch", pytest.fail)  # all is trained
    assert reproduce([cell], store) == {"ok": 1}
    assert not checkpoints(store, cell)
