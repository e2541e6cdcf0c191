"""Every method there is, killed after every epoch and resumed, ends with the bits of the run that was not killed.

Methods of later versions are included without being named: whatever is registered is tried.
"""

import pytest
from cells import small_cell

from nasbench_grow.harness import registry
from nasbench_grow.harness.reproduce import run_one
from nasbench_grow.harness.store import Store

EPOCHS = 4
MEASURED = {"wall_s", "cpu_s", "search_s", "total_s", "peak_memory_bytes", "started_at"}
"""Fields that no two runs agree in, and the latencies."""


class Killed(BaseException):
    """Ends a run as a signal does: nothing in it expects this."""


def outcome(record):
    """What must not depend on when, where and in how many pieces a cell was run."""
    return {
        field: value for field, value in record.items() if field not in MEASURED and not field.startswith("latency")
    }


def killing(epoch):
    """A listener that ends the run when it hears of an epoch."""

    def tell(entry):
        if entry["epoch"] == epoch:
            raise Killed

    return tell


@pytest.mark.parametrize("method", sorted(registry.methods()))
def test_a_method_killed_after_any_epoch_goes_on_to_the_same_bits(tmp_path, method):
    cell = small_cell(method=method, budget=0.5, epochs=EPOCHS, backbone="tiny_residual")
    heard = []
    whole = run_one(cell, Store(tmp_path / "whole"), progress=heard.append)
    if whole["status"] == "skipped":
        pytest.skip(f"{method} skips: {whole['error']}")
    assert whole["status"] == "ok", whole["error"]
    for epoch in range(1, len(heard) + 1):
        store = Store(tmp_path / f"killed-{epoch}")
        with pytest.raises(Killed):
            run_one(cell, store, progress=killing(epoch))
        assert outcome(run_one(cell, store)) == outcome(whole), f"killed after epoch {epoch}"


def test_l1_killed_in_the_epoch_before_it_prunes_still_prunes(tmp_path):
    cell = small_cell(method="l1", budget=0.5, epochs=EPOCHS, backbone="tiny_residual")
    store = Store(tmp_path)
    with pytest.raises(Killed):
        run_one(cell, store, progress=killing(EPOCHS // 2))
    record = run_one(cell, store)
    assert record["meets_budget"]
    assert record["train_macs"] == pytest.approx(0.75 * record["dense_train_macs"], rel=0.01)
