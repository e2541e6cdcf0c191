import copy
import dataclasses
import re

import pytest
from cells import small_cell
from torch import nn

from nasbench_grow.base.errors import UserError
from nasbench_grow.baselines.grow import Grow
from nasbench_grow.contract.task import Recipe
from nasbench_grow.growing.relaxation import RelaxationSettings
from nasbench_grow.growing.sampling import SamplingSettings as Default
from nasbench_grow.harness import cell as cell_module
from nasbench_grow.harness import dense, registry
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


def test_the_definition_of_the_task_is_part_of_the_run_key_and_its_description_is_not(monkeypatch):
    key = CELL.run_key()
    monkeypatch.setattr(Digits, "summary", "other words for the same digits")
    assert CELL.run_key() == key
    monkeypatch.setattr(Digits, "version", Digits.version + 1)
    assert CELL.run_key() != key


def test_the_definition_of_the_backbone_is_part_of_the_run_key(monkeypatch):
    def built(network):
        monkeypatch.setattr(registry, "build_backbone", lambda name, task: copy.deepcopy(network))
        dense.fingerprint.cache_clear()
        dense.macs.cache_clear()
        return CELL.run_key()

    def network(*layers):
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 10))

    try:
        keys = [
            built(network(nn.ReLU())),
            built(network(nn.GELU())),  # the same tensors
            built(network(nn.Conv2d(1, 1, 3, padding=1))),
            built(network(nn.Conv2d(1, 1, 3, padding=2, dilation=2))),  # the same tensors and MACs
            built(network(nn.Conv2d(1, 1, 5, padding=2))),
        ]
    finally:
        dense.fingerprint.cache_clear()
        dense.macs.cache_clear()
    assert len(set(keys)) == len(keys)


def test_a_new_version_of_a_method_is_part_of_the_run_key_of_its_cells_whatever_their_settings(monkeypatch):
    cells = [dataclasses.replace(CELL, method=name) for name in ("dense", "grow", "grow[growth=0.25]", "retrain")]
    first = [cell.run_key() for cell in cells]
    monkeypatch.setattr(Grow, "version", Grow.version + 1)
    second = [cell.run_key() for cell in cells]
    assert first[0] == second[0]
    assert len({*first, *second}) == 7, "also of a cell that begins with one of them"


def test_what_a_setting_resolves_to_is_part_of_the_run_key(monkeypatch):
    """A default that changes makes other cells, though they are spelt as before."""
    cells = [small_cell(method=name, budget=0.5) for name in ("grow", "retrain")]
    first = [cell.run_key() for cell in cells]
    monkeypatch.setattr(Grow, "Settings", dataclasses.make_dataclass(
        "Changed", [("periods", int, Grow.Settings.periods + 1)], bases=(Grow.Settings,), frozen=True
    ))  # fmt: skip
    registry.method.cache_clear()
    again = [small_cell(method=name, budget=0.5) for name in ("grow", "retrain")]
    assert [cell.method for cell in again] == ["grow", "retrain"]
    assert not {*first} & {cell.run_key() for cell in again}


@pytest.mark.parametrize(
    "spellings",
    [
        ("grow", f"grow[growth={Default.growth}]", f"grow[periods={Default.periods}, growth={Default.growth}0]"),
        ("grow[growth=0.25,periods=6]", "grow[ periods = 6, growth=0.250 ]"),
        ("placebo[periods=6]", f"placebo[growth={Default.growth},periods=6]"),
        *((name, f"{name}[granularity=8]") for name in ("grow", "placebo", "scaled")),  # as the set-up has it
        ("grow-paper", f"grow-paper[periods={RelaxationSettings.periods}]"),
        ("retrain", "retrain[of=grow]", f"retrain[of=grow[growth={Default.growth}]]"),
        ("retrain[of=grow[growth=0.25]]", f"retrain[of=grow[periods={Default.periods},growth=.25]]"),
    ],
    ids=lambda spellings: spellings[0],
)
def test_however_it_is_spelt_a_method_is_one_cell(spellings):
    cells = [small_cell(method=name, budget=0.5) for name in spellings]
    assert {cell.method for cell in cells} == {spellings[0]}
    assert len({cell.run_key() for cell in cells}) == 1


def test_other_settings_are_other_cells_of_the_same_comparison():
    names = ["grow", "grow[growth=0.25]", "grow[growth=0.25,periods=6]", "retrain", "retrain[of=grow[growth=0.25]]"]
    names += ["placebo", "retrain[of=placebo]", "scaled", "random", "random[draw=0]", "random[draw=1]"]
    cells = [small_cell(method=name, budget=0.5) for name in names]
    assert len({cell.run_key() for cell in cells}) == len({cell.method_key() for cell in cells}) == len(cells)
    assert len({cell.comparison_key() for cell in cells}) == 1


def test_seeds_and_budgets_share_the_keys_of_method_and_comparison():
    cells = [small_cell(method="grow", budget=budget, seed=seed) for budget, seed in ((0.5, 0), (0.5, 1), (0.25, 0))]
    assert len({cell.run_key() for cell in cells}) == 3
    assert len({cell.method_key() for cell in cells}) == len({cell.comparison_key() for cell in cells}) == 1
    longer = small_cell(method="grow", budget=0.5, epochs=3)
    assert longer.comparison_key() != cells[0].comparison_key()
    assert longer.method_key() == cells[0].method_key()


def test_a_whole_number_as_budget_is_the_same_cell():
    assert small_cell(budget=1) == small_cell(budget=1.0)
    assert small_cell(budget=1).run_key() == small_cell(budget=1.0).run_key()


def test_a_method_that_ignores_the_budget_has_one_cell_for_all_budgets():
    assert small_cell(method="dense", budget=0.25) == small_cell(method="dense", budget=1.0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"budget": 0.0}, "budget 0.0 is out of range"),
        ({"budget": -0.5}, "budget -0.5 is out of range"),
        ({"budget": 1.5}, "budget 1.5 is out of range"),
        ({"budget": 1.0000001}, "budget 1.0000001 is out of range"),
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
