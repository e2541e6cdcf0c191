"""The table of trained networks: what it says of each, the best of a budget, regret, and how it is written."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from nasbench_grow import UserError, count_macs, discover, extract
from nasbench_grow.dev import oracle as training
from nasbench_grow.harness import registry
from nasbench_grow.harness.cell import make_cell
from nasbench_grow.harness.reproduce import run_one
from nasbench_grow.harness.store import Store
from nasbench_grow.oracle import Architecture, Table
from nasbench_grow.oracle.grid import DEPTHS, GRID, LASTING
from nasbench_grow.oracle.table import COLUMNS

WIDEST = Architecture((16, 32, 64), (3, 3, 3))
NARROW = Architecture((8, 16, 32), (1, 1, 1))


def made_up(networks, seeds=(0,), epochs=2):
    """A table in which a network is as good as its widths and depths add up to, a little less with each seed."""
    rows = []
    for widths, depths in networks:
        size = sum(widths) + 10 * sum(depths)
        for seed in seeds:
            for epoch in range(1, epochs + 1):
                val = size / 1000 * epoch / epochs - 0.01 * seed
                test = val - 0.02 if epoch == epochs else math.nan
                rows.append(
                    (*widths, *depths, seed, epoch, val, test, 1000 * size, size, 10 * size * epoch, 2.5 * epoch)
                )
    return Table(pd.DataFrame(rows, columns=COLUMNS))


@pytest.fixture(scope="module")
def network():
    return registry.build_backbone("cifar_resnet20", registry.task("cifar10_16px")()), torch.zeros(1, 3, 16, 16)


@pytest.fixture(scope="module")
def space(network):
    return discover(*network)


def test_the_grid_holds_the_whole_network_and_no_two_alike():
    assert len(GRID) == len(set(GRID)) == 729
    assert WIDEST in GRID


def test_a_network_of_the_grid_has_the_widths_and_blocks_that_it_is_named_by(network, space):
    model, example = network
    for each in [WIDEST, NARROW, *training.shuffled()[:3]]:
        found = extract(space, model, registry.method(each.method).present(space))
        for stage, (width, depth) in enumerate(zip(*each, strict=True), 1):
            blocks = getattr(found, f"layer{stage}")
            there = [block for block in blocks if hasattr(block, "conv1")]
            assert len(there) == depth
            assert {module.out_channels for block in there for module in (block.conv1, block.conv2)} == {width}
        assert count_macs(found, example) == space.macs(registry.method(each.method).present(space))


def test_blocks_that_cannot_leave_are_those_that_change_the_resolution(space):
    removable = [len(stage) for stage in space.stages()]
    assert [DEPTHS[-1] - each for each in removable] == list(LASTING)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("widths=8-16", "widths 8-16 does not fit this network: give 3 numbers, from 1 up to 16-32-64"),
        ("widths=8-16-65", "from 1 up to 16-32-64"),
        ("widths=0-16-32", "from 1 up to 16-32-64"),
        ("layers=4-0-0", "from 0 up to 3-2-2"),
    ],
)
def test_by_stage_refuses_what_the_network_does_not_have(space, settings, said):
    with pytest.raises(UserError, match=said):
        registry.method(f"by_stage[{settings}]").present(space)


def test_by_stage_refuses_what_is_no_list():
    with pytest.raises(UserError, match="widths '8;16' cannot be read"):
        registry.method("by_stage[widths=8;16]")


def test_query_gives_the_entry_of_an_epoch_and_test_at_the_last_alone():
    table = made_up([WIDEST, NARROW], seeds=(0, 1))
    size = 8 + 16 + 32 + 30
    first, last = table.query((8, 16, 32), (1, 1, 1), epoch=1), table.query([8, 16, 32], [1, 1, 1])
    assert first.val == pytest.approx(size / 2000 - 0.005)  # the mean of two seeds
    assert math.isnan(first.test)
    assert last.test == pytest.approx(last.val - 0.02)
    assert (last.macs, last.params, last.train_macs, last.seeds) == (1000 * size, size, 20 * size, 2)
    assert (first.seconds, last.seconds) == (2.5, 5.0)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (((8, 16, 33), (1, 1, 1), None), "no network of widths 8-16-33, depths 1-1-1"),
        (((8, 16), (1, 1, 1), None), "give a width for each stage"),
        (((8, 16, 32), (1, 1, 1), 3), "epoch 3 is out of range: give one from 1 to 2"),
        (((12, 16, 32), (1, 1, 1), None), "not in the table yet"),
    ],
)
def test_query_names_what_it_has_not(asked, said):
    with pytest.raises(UserError, match=said):
        made_up([NARROW, WIDEST]).query(*asked)


def test_best_front_and_regret_agree_with_a_look_at_every_network():
    frame = made_up([*training.shuffled()[:60], WIDEST]).frame
    table = Table(frame.assign(val=np.random.default_rng(0).random(len(frame))))
    costs = {each: table.query(*each).macs for each in table.architectures}
    for budget in (0.6, 0.8, 1.0):
        allowed = [each for each in costs if costs[each] <= budget * table.dense_macs]
        values = [table.query(*each).val for each in allowed]
        best = table.best(budget)
        assert best in allowed
        assert table.query(*best).val == max(values)
        assert min(table.regret(each, budget) for each in allowed) == 0
        assert table.regret(allowed[0], budget) == pytest.approx(max(values) - values[0])
    for each in costs:
        most = max(table.query(*other).val for other in costs if costs[other] <= costs[each])
        assert (table.query(*each).val == most) == (each in table.front())


def test_a_budget_below_every_network_is_named():
    with pytest.raises(UserError, match=r"costs at most 0.01 of ResNet-20; give 0\.\d+ or more"):
        made_up([NARROW, WIDEST]).best(0.01)


def test_a_file_that_is_no_table_is_refused(tmp_path):
    with pytest.raises(UserError, match="make oracle"):
        Table.load(tmp_path / "none.csv")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="lacks 'depth_1'"):
        Table.load(tmp_path / "other.csv")


def test_what_is_written_is_what_the_cells_recorded(tmp_path):
    cell = make_cell(
        method="by_stage[layers=0-0-0,widths=8-8-8]",
        task="digits",
        backbone="cifar_resnet20",
        budget=1.0,
        seed=1,
        epochs=2,
        train_samples=128,
    )
    store = Store(tmp_path)
    record = run_one(cell, store, progress=lambda entry: None)
    found = training.rows(store, [(NARROW, cell), (WIDEST, make_cell(**{**vars(cell), "seed": 7}))])
    assert list(found["epoch"]) == [1, 2]  # the cell that is not finished has no row
    assert np.isnan(found["test"].iloc[0])
    assert found["test"].iloc[1] == pytest.approx(record["test_metric"], abs=1e-5)
    assert found["val"].iloc[1] == pytest.approx(record["val_metric"], abs=1e-5)
    assert list(found["train_macs"]) == [record["train_macs"] // 2, record["train_macs"]]
    assert set(found["macs"]) == {record["macs"]}
    found.to_csv(tmp_path / "table.csv", index=False)
    assert Table.load(tmp_path / "table.csv").query(*NARROW).val == pytest.approx(record["val_metric"], abs=1e-5)
