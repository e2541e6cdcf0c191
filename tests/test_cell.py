import dataclasses
import re

import pytest
from cells import small_cell

from nasbench_grow.base.errors import UserError
from nasbench_grow.baselines.grow import Grow
from nasbench_grow.contract.task import Recipe
from nasbench_grow.harness import cell as cell_module
from nasbench_grow.harness import registry
from nasbench_grow.harness.cell import Cell
from nasbench_grow.tasks.digits import Digits

CELL = Cell("dense", "digits", "cifar_resnet20", 0.5, seed=0, epochs=2, train_samples=64)


def test_the_run_key_is_the_same_for_equal_cells():
    assert re.fullmatch("[0-9a-f]{16}", CELL.run_key())
    assert dataclasses.replace(CELL).run_key() == CELL.run_key()


@pytest.mark.parametrize(
    "change",
    [
        {"method": "grow"},
        {"task": "cifar10"},
        {"backbone": "resnet18"},
        {"setup": "cpu-channels-last"},
        {"budget": 0.25},
        {"seed": 1},
        {"epochs": 3},
        {"train_samples": None},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_determines_the_result_changes_the_run_key(change):
    assert dataclasses.replace(CELL, **change).run_key() != CELL.run_key()


def test_the_recipe_the_setup_and_the_protocol_are_part_of_the_run_key(monkeypatch):
    keys = {CELL.run_key()}
    monkeypatch.setattr(Digits, "recipe", Recipe(batch_size=7))
    keys.add(CELL.run_key())
    monkeypatch.setitem(registry.setups(), "cpu", dataclasses.replace(registry.setups()["cpu"], granularity=4))
    keys.add(CELL.run_key())
    monkeypatch.setitem(registry.setups(), "cpu", dataclasses.replace(registry.setups()["cpu"], precision="bf16"))
    keys.add(CELL.run_key())
    monkeypatch.setattr(cell_module, "PROTOCOL", cell_module.PROTOCOL + 1)
    keys.add(CELL.run_key())
    assert len(keys) == 5


def test_a_new_version_of_a_method_is_part_of_the_run_key_of_its_cells_and_variants_only(monkeypatch):
    cells = [dataclasses.replace(CELL, method=name) for name in ("dense", "grow", "grow[growth=0.3]")]
    monkeypatch.setattr(Grow, "version", 1)
    first = [cell.run_key() for cell in cells]
    monkeypatch.setattr(Grow, "version", 2)
    second = [cell.run_key() for cell in cells]
    assert first[0] == second[0]
    assert len({*first, *second}) == 5


def test_the_run_key_of_a_first_version_is_that_of_records_made_before_there_were_versions():
    cell = Cell("dense", "cifar10", "cifar_resnet20", 1.0, seed=0, epochs=5, train_samples=2048)
    assert cell.run_key() == "cfc9dd4d41f4c774"


def test_a_whole_number_as_budget_is_the_same_cell():
    assert small_cell(budget=1) == small_cell(budget=1.0)
    assert small_cell(budget=1).run_key() == small_cell(budget=1.0).run_key()


def test_a_method_that_ignores_the_budget_has_one_cell_for_all_budgets():
    assert small_cell(method="dense", budget=0.25) == small_cell(method="dense", budget=1.0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"budget": 0.0}, "budget 0 is out of range"),
        ({"budget": -0.5}, "budget -0.5 is out of range"),
        ({"budget": 1.5}, "budget 1.5 is out of range"),
        ({"budget": float("nan")}, "budget nan is out of range"),
        ({"seed": -1}, "seed -1 is out of range"),
        ({"seed": 2**32}, "seed 4294967296 is out of range"),
        ({"epochs": 0}, "epochs 0 is out of range"),
        ({"epochs": -3}, "epochs -3 is out of range"),
        ({"train_samples": 0}, "train samples 0 is out of range"),
        ({"method": "danse"}, "unknown method 'danse'; did you mean 'dense'"),
        ({"task": "digit"}, "unknown task 'digit'; did you mean 'digits'"),
        ({"setup": "gpu"}, "unknown setup 'gpu'"),
    ],
)
def test_bad_input_is_named_in_one_line(change, words):
    with pytest.raises(UserError) as caught:
        small_cell(**change)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
