"""Profiles name every method, and none is tuned for a profile of comparisons."""

from __future__ import annotations

import pytest

from nasbench_grow.harness import registry
from nasbench_grow.harness.profiles import PROFILES, Grid


def test_a_grid_is_written_out_in_words() -> None:
    with pytest.raises(TypeError):
        Grid(("grow",), ("digits",), ("cifar_resnet20",), (0.5,), (0,), 1)  # type: ignore[misc]
    with pytest.raises(TypeError, match="methods"):
        Grid(tasks=("digits",), backbones=("cifar_resnet20",), budgets=(0.5,), seeds=(0,), epochs=1)  # type: ignore[call-arg]


@pytest.mark.parametrize("name", PROFILES)
def test_methods_are_named_as_in_their_records(name: str) -> None:
    methods = {method for grid in PROFILES[name].grids for method in grid.methods}
    assert methods and {str(registry.method(method)) for method in methods} == methods


@pytest.mark.parametrize("name", [name for name in PROFILES if not name.startswith("ablation-")])
def test_in_a_comparison_every_method_has_its_default_settings(name: str) -> None:
    assert not [method for grid in PROFILES[name].grids for method in grid.methods if "[" in method]
