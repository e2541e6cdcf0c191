"""Profiles name every method, and none is tuned for a profile of comparisons."""

from __future__ import annotations

import pytest

from nasbench_grow.contract import settings as spelling
from nasbench_grow.harness import registry
from nasbench_grow.harness.profiles import PROFILES, Grid

CHOOSING = ("choosing", "tuning")


def test_a_grid_is_written_out_in_words() -> None:
    with pytest.raises(TypeError):
        Grid(("grow",), ("digits",), ("cifar_resnet20",), (0.5,), (0,), 1)  # type: ignore[misc]
    with pytest.raises(TypeError, match="methods"):
        Grid(tasks=("digits",), backbones=("cifar_resnet20",), budgets=(0.5,), seeds=(0,), epochs=1)  # type: ignore[call-arg]


@pytest.mark.parametrize("name", PROFILES)
def test_methods_are_named_as_in_their_records(name: str) -> None:
    methods = {method for grid in PROFILES[name].grids for method in grid.methods}
    assert methods and {str(registry.method(method)) for method in methods} == methods


@pytest.mark.parametrize("name", [name for name in PROFILES if name not in CHOOSING])
def test_in_a_comparison_every_method_has_its_default_settings(name: str) -> None:
    """What another method's network, a start or a number of a draw says is no choice, nor that a short run learns."""
    for method in {method for grid in PROFILES[name].grids for method in grid.methods}:
        _, settings = spelling.split(method)
        assert settings.keys() <= {"of", "draw", "start", "least_search"} and "[" not in settings.get("of", ""), method


def test_settings_are_chosen_on_other_cells_than_those_of_the_tables() -> None:
    def cells(name: str) -> set[tuple[str, str, float, int]]:
        return {
            (task, backbone, budget, seed)
            for grid in PROFILES[name].grids
            for task in grid.tasks
            for backbone in grid.backbones
            for budget in grid.budgets
            for seed in grid.seeds
        }

    shown = cells("beds") | cells("headroom") | cells("pruning")
    assert all(cells(name).isdisjoint(shown) for name in CHOOSING)
