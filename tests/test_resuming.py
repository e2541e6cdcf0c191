"""Every method there is, killed in every epoch and resumed, ends with the bits of the run that was not killed.

Methods of later versions are included without being named: whatever is registered is tried.
"""

import pytest
from cells import small_cell
from killing import Killed, killing, outcome, run_whole_and_in_pieces

from nasbench_grow.harness import registry
from nasbench_grow.harness.reproduce import run_one
from nasbench_grow.harness.store import Store

EPOCHS = 4
OF_ITS_OWN = {"darts_cells"}
"""Methods whose networks are too large for this, at their defaults; they are killed in tests of their own."""


SETTINGS = {"total": 0.4, "candidates": 10, "least_search": 0}
"""Of methods that have them: a few networks instead of dozens; and growing that learns in a run as short as this."""


def cell_of(method):
    settings = registry.methods()[method].Settings
    changed = ",".join(f"{name}={value}" for name, value in SETTINGS.items() if hasattr(settings, name))
    spelt = f"{method}[{changed}]" if changed else method
    return small_cell(method=spelt, budget=0.5, epochs=EPOCHS, backbone="tiny_residual")


@pytest.mark.parametrize("method", sorted(set(registry.methods()) - OF_ITS_OWN))
def test_a_method_killed_in_every_epoch_goes_on_to_the_same_bits(tmp_path, method):
    whole, pieces = run_whole_and_in_pieces(cell_of(method), tmp_path)
    assert whole["status"] in ("ok", "skipped"), whole["error"]
    assert outcome(pieces) == outcome(whole)


@pytest.mark.parametrize("epoch", range(1, EPOCHS + 1))
def test_l1_killed_around_the_epoch_before_it_prunes_still_prunes(tmp_path, epoch):
    store = Store(tmp_path)
    with pytest.raises(Killed):
        run_one(cell_of("l1"), store, progress=killing(epoch))
    record = run_one(cell_of("l1"), store)
    assert record["meets_budget"]
    assert record["train_macs"] == pytest.approx(0.75 * record["dense_train_macs"], rel=0.01)
