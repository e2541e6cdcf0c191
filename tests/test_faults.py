"""What is blamed where a space is wrong, and what is not looked at twice."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nasbench_grow.structure import faults
from nasbench_grow.structure.discovery import discover
from nasbench_grow.structure.faults import Faults
from nasbench_grow.structure.space import Space

EXAMPLE = torch.randn(2, 6)
Wrong = Callable[[set[str]], bool]
"""Whether extraction would be wrong where the named groups have lost filters."""


@pytest.fixture
def model() -> nn.Module:
    sizes = (6, 5, 7, 9, 11, 3)
    return nn.Sequential(*(layer for pair in pairwise(sizes) for layer in (nn.Linear(*pair), nn.Tanh())))


def pretended(monkeypatch: pytest.MonkeyPatch, wrong: Wrong) -> list[Tensor]:
    """Lets extraction be wrong where ``wrong`` says; the list of all that is looked at."""
    seen: list[Tensor] = []

    def failure(space: Space, model: nn.Module, example: Any, present: Tensor, *_: Any, **__: Any) -> str | None:
        seen.append(present)
        lost = {group.name for group in space.groups if not present[group.structures].all()}
        return "wrong" if wrong(lost) else None

    monkeypatch.setattr(faults, "failure", failure)
    return seen


def test_a_right_space_has_no_faults(model: nn.Module) -> None:
    space = discover(model, EXAMPLE[:1])
    assert Faults(model.double(), EXAMPLE.double(), 1e-8).of(space) == {}


def test_a_wrong_coupling_is_blamed_on_its_group(model: nn.Module) -> None:
    space = discover(model, EXAMPLE[:1])
    space.owners["4.weight", 1] = space.owners["4.weight", 1].roll(1)
    assert list(Faults(model.double(), EXAMPLE.double(), 1e-8).of(space)) == ["2"]


def test_groups_that_were_wrong_alone_are_not_looked_at_again(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = discover(model, EXAMPLE[:1])
    seen = pretended(monkeypatch, lambda lost: "2" in lost)
    found = Faults(model, EXAMPLE, 1e-8)
    assert found.of(space) == {"2": "wrong"}
    first = len(seen)
    assert found.of(space) == {"2": "wrong"} and len(seen) == first + 1
    space.owners["4.weight", 1] = space.owners["4.weight", 1].roll(1)  # another space: group 2 alone is looked at anew
    assert found.of(space) == {"2": "wrong"} and len(seen) == first + 3


def test_of_two_that_fail_together_the_larger_one_is_blamed(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    space = discover(model, EXAMPLE[:1])
    pretended(monkeypatch, lambda lost: {"0", "4"} <= lost)
    reasons = Faults(model, EXAMPLE, 1e-8).of(space)
    assert reasons == {"4": "its filters leave only together with other groups'"}


def test_what_fails_together_is_found_in_few_looks() -> None:
    looks = []

    def fails(present: Tensor) -> bool:
        looks.append(present)
        return not present[20] and not present[45]

    failing, needed = faults._needed(torch.zeros(64, dtype=torch.bool), [[index] for index in range(64)], fails)
    assert needed == [20, 45] and torch.nonzero(~failing).flatten().tolist() == [20, 45]
    assert len(looks) < 32
