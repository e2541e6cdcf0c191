"""Searches repeated on a table: they stay within budget and total, learn, and find what a look at all of it finds."""

import pandas as pd
import pytest
from test_oracle import made_up

from nasbench_grow import UserError
from nasbench_grow.oracle import Table
from nasbench_grow.oracle.grid import GRID
from nasbench_grow.oracle.nni_grid import GridSpace
from nasbench_grow.oracle.simulation import quantiles, simulate
from nasbench_grow.oracle.table import KEYS

BUDGET = 0.8
BEST, STEPS = (12, 16, 48, 1, 2, 2), (4, 8, 16, 1, 1, 1)
SEARCHES = ("random_search", "regularized_evolution", "tpe")


@pytest.fixture(scope="module")
def table():
    """Every network; a step away from the one best of all in any direction costs five points."""
    frame = made_up(GRID).frame
    steps = sum((frame[key] - best).abs() / step for key, best, step in zip(KEYS, BEST, STEPS, strict=True))
    return Table(frame.assign(val=(0.9 - 0.05 * steps) * frame["epoch"] / 2))


@pytest.fixture(scope="module")
def runs(table):
    return pd.concat(
        [simulate(table, search, BUDGET, repetitions=12, epochs=1, total=12.0) for search in SEARCHES],
        ignore_index=True,
    )


def test_a_search_spends_no_more_than_its_total_and_its_incumbent_never_gets_worse(runs):
    assert runs["train_macs"].max() <= 12
    assert (runs["regret"] >= 0).all()
    for _, one in runs.groupby(["method", "repetition"]):
        assert (one["train_macs"].diff().dropna() > 0).all()
        assert (one["regret"].diff().dropna() <= 1e-12).all()  # the scores of these epochs rank as the last ones do


def test_searches_of_other_seeds_differ_and_those_of_one_seed_do_not(table, runs):
    again = simulate(table, "regularized_evolution", BUDGET, repetitions=2, epochs=1, total=12.0)
    before = runs[(runs["method"] == "regularized_evolution") & (runs["repetition"] < 2)]
    pd.testing.assert_frame_equal(again, before.reset_index(drop=True))
    first, second = (one["train_macs"].tolist() for _, one in again.groupby("repetition"))
    assert first != second


def test_searches_that_learn_beat_the_one_that_does_not(runs):
    found = quantiles(runs, spent=(12.0,)).set_index("method")["mean"]
    assert found["regularized_evolution"] < found["random_search"]
    assert found["tpe"] < found["random_search"]


def test_the_cost_is_that_of_the_trials(table):
    one = simulate(table, "random_search", 1.0, repetitions=1, epochs=2, total=3.0)
    dense = table.query((16, 32, 64), (3, 3, 3)).train_macs
    steps = one["train_macs"].diff().dropna() * dense
    costs = {table.query(*each).train_macs for each in GRID}
    assert all(min(abs(step - cost) for cost in costs) < 1e-3 for step in steps)
    assert one["seconds"].tolist() == [5.0 * trial for trial in one["trial"]]


def test_a_sample_beyond_the_budget_moves_to_the_nearest_network_within(table):
    space = GridSpace(table, BUDGET)
    widest = {f"width_{stage}": width for stage, width in enumerate((16, 32, 64), 1)}
    moved = GridSpace.network(space.nearest({**widest, "depth_1": 3, "depth_2": 3, "depth_3": 3}))
    assert table.query(*moved).macs <= BUDGET * table.dense_macs
    for each in GRID:
        sample = dict(zip(KEYS, (*each.widths, *each.depths), strict=True))
        if table.query(*each).macs <= BUDGET * table.dense_macs:
            assert GridSpace.network(space.nearest(sample)) == each


def test_what_draws_no_trials_is_refused(table):
    with pytest.raises(UserError, match="'uniform' draws no trials"):
        simulate(table, "uniform", BUDGET)
    with pytest.raises(UserError, match="epoch 3 is out of range"):
        simulate(table, "random_search", BUDGET, epochs=3)
