"""What following has to see beyond one forward pass in evaluation mode, and what it must not let go."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasbench_grow import discover, extract
from nasbench_grow.structure.exactness import masked


class Swapped(nn.Module):
    """Halves meet each other; a second head runs in training alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.extra, self.width = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(8, 3), 8
        self.scale = nn.Parameter(torch.ones(8))

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        hidden = F.hardswish(self.first(inputs)) * self.scale
        one, other = hidden.view(len(hidden), 2, self.width // 2).unbind(1)
        hidden = hidden * torch.cat([other, one], 1)
        return (self.last(hidden), self.extra(hidden)) if self.training else (self.last(hidden),)


class Codebook(nn.Module):
    """The nearest of five codes takes the place of every vector."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.codes, self.last = nn.Linear(4, 8), nn.Parameter(torch.randn(5, 8)), nn.Linear(8, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.first(inputs)
        distances = self.codes.pow(2).sum(1) - 2 * hidden @ self.codes.t()
        return self.last(self.codes[distances.min(-1).indices])


def test_a_head_that_runs_only_in_training_is_followed() -> None:
    model = Swapped()
    space = discover(model, torch.zeros(1, 4))
    assert [group.size for group in space.groups] == [4]
    small = extract(space, model, space.seed()).train()
    assert [each.shape for each in small(torch.randn(2, 4))] == [(2, 3), (2, 3)]


def test_what_is_chosen_by_its_number_stays() -> None:
    torch.manual_seed(0)
    model = Codebook()
    space = discover(model, torch.zeros(1, 4))
    assert ("codes", 0) not in space.owners
    model, inputs = copy.deepcopy(model).double(), torch.randn(50, 4, dtype=torch.double)
    torch.testing.assert_close(extract(space, model, space.seed())(inputs), masked(space, model, space.seed(), inputs))
