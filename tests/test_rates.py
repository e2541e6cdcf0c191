"""The learning rates of an optimizer's parameter groups under one schedule."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nasbench_grow.contract.rates import set_learning_rate
from nasbench_grow.contract.task import Recipe


def rates(optimizer: torch.optim.Optimizer) -> list[float]:
    return [group["lr"] for group in optimizer.param_groups]


def own_rates(network: nn.Sequential) -> torch.optim.Optimizer:
    """The first layer learns at the recipe's rate, the second at a tenth of it."""
    return torch.optim.SGD(
        [{"params": network[0].parameters()}, {"params": network[1].parameters(), "lr": 0.01}], lr=0.1
    )


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))


def test_the_recipes_own_rate_is_set_to_the_last_bit() -> None:
    recipe = Recipe(learning_rate=0.1 / 3)
    optimizer = recipe.optimizer(network())
    assert len(optimizer.param_groups) == 2
    for step in range(1, 101):
        rate = recipe.learning_rate_at(step / 100)
        set_learning_rate(optimizer, rate, recipe.learning_rate)
        assert rates(optimizer) == [rate, rate]


def test_a_group_keeps_its_proportion_through_the_schedule() -> None:
    optimizer = own_rates(network())
    for rate in (0.1, 0.05, 0.0, 0.08):
        set_learning_rate(optimizer, rate, 0.1)
        assert rates(optimizer) == [rate, pytest.approx(rate / 10)]


def test_a_resumed_optimizer_goes_on_with_its_proportions() -> None:
    optimizer, resumed = own_rates(network()), own_rates(network())
    set_learning_rate(optimizer, 0.02, 0.1)
    resumed.load_state_dict(optimizer.state_dict())
    for each in (optimizer, resumed):
        set_learning_rate(each, 0.05, 0.1)
    assert rates(resumed) == rates(optimizer) == [0.05, pytest.approx(0.005)]
