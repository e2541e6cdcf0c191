"""The table of headroom, by hand: where methods stand among random architectures, and what share of the way they go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from synthetic_results import blocks, record, write

from nasbench_grow.report.block import FEWEST
from nasbench_grow.report.headroom import headroom
from nasbench_grow.report.tables import Table, comparison


def of(method: str, val: float, seed: int = 0, **changes: Any) -> dict[str, Any]:
    # The test metric would put everything in another order.
    return record(method, 0.5, seed, val_metric=val, test_metric=1 - val, **changes)


def draws(count: int = FEWEST) -> list[dict[str, Any]]:
    """The networks 0, 1, 2, ... at 0.50, 0.51, 0.52, ..."""
    return [of(f"random[draw={number}]", 0.50 + 0.01 * number) for number in range(count)]


def table(folder: Path, cells: list[dict[str, Any]]) -> Table:
    return headroom(blocks(write(folder, cells, with_histories=False)))


def test_a_method_is_placed_among_the_draws_and_on_the_way_from_uniform_to_the_best(tmp_path: Path) -> None:
    methods = [*(of("uniform", 0.52 + 0.01 * seed, seed) for seed in range(3)), of("retrain", 0.575)]
    found = table(tmp_path, [*draws(), *methods])
    rows = found.data.set_index("row")
    assert rows.loc["lowest draw", "val_metric"] == pytest.approx(0.50)
    assert rows.loc["median draw", "val_metric"] == pytest.approx(0.545)
    assert rows.loc["best draw, random[draw=9]", "val_metric"] == pytest.approx(0.59)
    assert rows.loc["uniform", "val_metric"] == pytest.approx(0.53) and rows.loc["uniform", "seeds"] == 3
    assert rows.loc["uniform", "draws_below"] == pytest.approx(0.3) and rows.loc["uniform", "captured"] == 0
    assert rows.loc["retrain", "draws_below"] == pytest.approx(0.8)
    assert rows.loc["retrain", "captured"] == pytest.approx((0.575 - 0.53) / (0.59 - 0.53))
    (part,) = found.parts
    assert "10 architectures drawn at random" in part.notes[0] and "standard deviation 3.03" in part.notes[0]


def test_the_best_draw_is_judged_by_the_seeds_that_did_not_choose_it(tmp_path: Path) -> None:
    again = [of("random[draw=9]", 0.56, 1), of("random[draw=9]", 0.58, 2)]
    rows = table(tmp_path, [*draws(), *again, of("uniform", 0.53), of("retrain", 0.55)]).data.set_index("row")
    assert rows.loc["best draw, other seeds", "val_metric"] == pytest.approx(0.57)
    assert rows.loc["retrain", "captured"] == pytest.approx((0.55 - 0.53) / (0.57 - 0.53))


def test_of_a_metric_that_should_be_low_the_lowest_is_the_best(tmp_path: Path) -> None:
    low = {"metric": "perplexity", "higher_is_better": False, "metric_scale": 1.0, "metric_unit": ""}
    cells = [of(f"random[draw={number}]", 100.0 + number, **low) for number in range(FEWEST)]
    rows = table(tmp_path, [*cells, of("uniform", 104.0, **low), of("retrain", 103.0, **low)]).data.set_index("row")
    assert rows.loc["best draw, random[draw=0]", "val_metric"] == pytest.approx(100.0)
    assert rows.loc["retrain", "captured"] == pytest.approx(0.25)
    assert rows.loc["retrain", "draws_below"] == pytest.approx(0.6)


def test_nothing_is_captured_where_uniform_is_the_best(tmp_path: Path) -> None:
    rows = table(tmp_path, [*draws(), of("uniform", 0.65), of("retrain", 0.66)]).data.set_index("row")
    assert rows["captured"].isna().all()


def test_a_few_draws_say_nothing(tmp_path: Path) -> None:
    found = table(tmp_path, [*draws(FEWEST - 1), of("uniform", 0.53)])
    assert found.data.empty and not found.parts


@pytest.mark.parametrize(("count", "shown"), [(FEWEST, 1), (FEWEST - 1, FEWEST)])
def test_many_draws_do_not_crowd_the_comparison_but_its_csv_has_them(tmp_path: Path, count: int, shown: int) -> None:
    (block,) = blocks(write(tmp_path, [*draws(count), of("uniform", 0.53)], with_histories=False))
    found = comparison([block])
    assert len(found.data) == count + 1
    (part,) = found.parts
    assert len(part.rows) == shown
    assert len(block.without_draws().methods) == shown, "so do the figures show the others alone"
    assert any(f"{count} numbered draws" in note for note in part.notes) == (shown == 1)
