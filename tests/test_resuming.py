"""Every shipped method, interrupted and resumed, ends with the bits of the run that was not interrupted."""

import pytest
from cells import small_cell

from nasbench_grow.harness import registry
from nasbench_grow.harness.runner import run_cell
from nasbench_grow.harness.store import Store

SHIPPED = ["dense", "uniform", "random", "l1", "grow", "grow-paper", "retrain"]


@pytest.mark.parametrize("method", SHIPPED)
def test_an_interrupted_method_goes_on_to_the_same_bits(tmp_path, method):
    cell = small_cell(method=method, budget=0.5, epochs=3, backbone="cifar_resnet20")
    whole = run_cell(cell, with_giver(cell, tmp_path / "whole"))
    assert whole["status"] == "ok", whole["error"]
    store = with_giver(cell, tmp_path / "pieces")

    def interrupt(entry):
        if entry["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_cell(cell, store, progress=interrupt)
    pieces = run_cell(cell, store)
    for field in ("status", "weights_sha256", "macs", "train_macs", "val_metric", "soft_val_metric", "test_metric"):
        assert pieces[field] == whole[field], field


def with_giver(cell, folder):
    """A results folder in which the cell that this one takes its architecture from is finished."""
    store, giver = Store(folder), cell.giver()
    if giver is not None:
        assert run_cell(giver, store)["status"] == "ok"
    return store


def test_the_list_above_is_complete():
    shipped = {name for name, cls in registry.methods().items() if cls.__module__.startswith("baselines.")}
    assert shipped == set(SHIPPED)
