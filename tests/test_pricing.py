"""``Space.macs`` is what the counter says of the extracted network, for every structure of any model."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from families import seeds, shares, structure
from hypothesis import given, settings
from torch import Tensor, nn

from nasbench_grow import grow
from nasbench_grow.cost.macs import count_macs, products
from nasbench_grow.structure.discovery import discover
from nasbench_grow.structure.pricing import REASON
from nasbench_grow.structure.subnetwork import extract


class Cosine(nn.Module):
    """A head whose classes are a bare parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.w = nn.Linear(6, 16), nn.Parameter(torch.randn(50, 16))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.normalize(self.a(x)), F.normalize(self.w))


class NonLocal(nn.Module):
    """Every position looks at every other one; a residual block that can be removed. ``by`` says by which operation."""

    def __init__(self, by: str, width: int = 8) -> None:
        super().__init__()
        self.by = by
        self.q, self.k, self.v = nn.Conv2d(width, 6, 1), nn.Conv2d(width, 6, 1), nn.Conv2d(width, 10, 1)
        self.out = nn.Conv2d(10, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).flatten(2) for layer in (self.q, self.k, self.v))
        if self.by == "einsum":
            y = torch.einsum("bcn,bcm->bnm", q, k).softmax(-1)
            y = torch.einsum("bnm,bcm->bcn", y, v)
        elif self.by == "matmul":
            y = v @ (q.transpose(1, 2) @ k).softmax(-1).transpose(1, 2)
        elif self.by == "bmm":
            y = torch.bmm(v, torch.bmm(q.transpose(1, 2), k).softmax(-1).transpose(1, 2))
        else:
            y = F.scaled_dot_product_attention(*(each.transpose(1, 2) for each in (q, k, v)), scale=1.0).transpose(1, 2)
        return x + self.out(y.unflatten(2, x.shape[2:]))


class Image(nn.Module):
    """A stem, ``middle`` from 8 to ``channels`` channels, and a head."""

    def __init__(self, middle: nn.Module, channels: int = 8) -> None:
        super().__init__()
        self.stem, self.middle = nn.Conv2d(3, 8, 3, padding=1), middle
        self.fc = nn.Linear(channels, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.middle(self.stem(x).relu()).flatten(2).mean(2))


class Gram(nn.Module):
    """All pairs of the channels of two layers that are added up: a square of their width."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Linear(6, 9), nn.Linear(6, 9), nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = (self.a(x) + self.b(x)).relu()  # (B, 3, 9)
        gram = h.transpose(1, 2) @ h  # (B, 9, 9)
        return self.fc((h @ gram).mean(1))


class Concatenated(nn.Module):
    """A product along a concatenation of three layers."""

    def __init__(self) -> None:
        super().__init__()
        self.parts, self.fc = nn.ModuleList(nn.Linear(6, width) for width in (7, 5, 4)), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.cat([part(x) for part in self.parts], 1).relu()
        seen = h.detach()  # which the dependency graph does not follow
        return self.fc(h) + (seen[:, None] @ seen[:, :, None])[:, 0] / 16


class Similar(nn.Module):
    """Looks from every position at those with alike features; a residual block that can be removed."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.out = nn.Conv2d(8, 6, 1), nn.Conv2d(6, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x)
        flat = q.flatten(2)
        near = torch.einsum("bcn,bcm->bnm", flat, flat).softmax(-1).mean((1, 2))
        return x + self.out(q * near[:, None, None, None])


class Positions(nn.Module):
    """A bare parameter along the positions, once a channel."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(16, 16))

    def forward(self, x: Tensor) -> Tensor:
        seen = x.detach().flatten(2)
        return x * torch.tensordot(seen, self.w, dims=([2], [0])).square().sum((1, 2))[:, None, None, None]


class Functional(nn.Module):
    """A convolution by a bare parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(6, 8, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.w, padding=1)


class Steps(nn.Module):
    """Attention of the last over all time steps of a recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.rnn, self.fc = nn.Linear(4, 6), nn.GRU(6, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        found, _ = self.rnn(self.a(x).relu())
        weights = (found @ found[:, -1:].transpose(1, 2)).softmax(1)
        return self.fc((weights.transpose(1, 2) @ found)[:, 0])


class Pairs(nn.Module):
    """A product along all pairs of channels: one axis as long as the square of a width."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Linear(6, 5), nn.Linear(6, 7), nn.Linear(5, 3)
        self.last = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x).relu()
        seen = a.detach()
        pairs = (seen[:, :, None] * seen[:, None]).flatten(1)
        return self.fc(a) + self.last(self.b(x).relu()) + (pairs[:, None] @ pairs[:, :, None])[:, 0]


IMAGE, WIDE = torch.zeros(1, 3, 4, 4), torch.zeros(3, 3, 8, 6)
ZOO: dict[str, tuple[Callable[[], nn.Module], Tensor, int]] = {
    "cosine": (Cosine, torch.zeros(2, 6), 1),
    "einsum": (lambda: Image(NonLocal("einsum")), IMAGE, 1),
    "matmul, larger images": (lambda: Image(NonLocal("matmul")), WIDE, 1),
    "bmm": (lambda: Image(NonLocal("bmm")), IMAGE, 1),
    "attention": (lambda: Image(NonLocal("attention")), IMAGE, 1),
    "two blocks": (lambda: Image(nn.Sequential(Similar(), NonLocal("einsum"))), WIDE, 2),
    "similar, larger images": (lambda: Image(Similar()), WIDE, 2),
    "gram": (Gram, torch.zeros(1, 3, 6), 1),
    "concatenated": (Concatenated, torch.zeros(1, 6), 3),
    "positions": (lambda: Image(Positions()), IMAGE, 0),
    "functional": (lambda: Image(Functional(), 6), WIDE, 0),
    "one step": (Steps, torch.zeros(1, 1, 4), 2),
    "nine steps": (Steps, torch.zeros(2, 9, 4), 2),
    "pairs": (Pairs, torch.zeros(2, 6), 1),
}


@pytest.mark.parametrize("name", ZOO)
def test_the_macs_of_every_structure_are_those_of_its_network(name: str) -> None:
    build, example, groups = ZOO[name]
    torch.manual_seed(0)
    model = build().eval()
    space = discover(model, example)
    assert len(space.groups) >= groups
    assert space.macs(space.full()) == count_macs(model, example)

    @settings(max_examples=8, deadline=None, derandomize=True, database=None)
    @given(seed=seeds, share=shares)
    def for_every_structure(seed: int, share: float) -> None:
        present = structure(space, seed, share)
        assert space.macs(present) == count_macs(extract(space, model, present), example)

    for_every_structure()


def test_a_width_whose_cost_is_no_product_is_fixed_and_said() -> None:
    space = discover(Pairs(), torch.zeros(2, 6))
    assert "b" in space.widths(space.full()) and space.fixed["a"] == REASON


def test_the_lengths_of_every_product_are_those_that_are_counted() -> None:
    model, example = Image(NonLocal("attention")), torch.zeros(2, 3, 4, 4)
    found = [(product.module, product.operation, math.prod(product.lengths)) for product in products(model, example)]
    assert found == [
        ("stem", "aten::_convolution", 2 * 16 * 8 * 27),
        ("middle.q", "aten::_convolution", 2 * 16 * 6 * 8),
        ("middle.k", "aten::_convolution", 2 * 16 * 6 * 8),
        ("middle.v", "aten::_convolution", 2 * 16 * 10 * 8),
        ("middle", "aten::scaled_dot_product_attention", 2 * 16 * 16 * 6),
        ("middle", "aten::scaled_dot_product_attention", 2 * 16 * 16 * 10),
        ("middle.out", "aten::_convolution", 2 * 16 * 8 * 10),
        ("fc", "aten::linear", 2 * 5 * 8),
    ]
    assert sum(macs for _, _, macs in found) == 2 * count_macs(model, example)


@pytest.mark.parametrize("budget", [0.5, 0.9])
def test_a_budget_is_met_where_products_outside_layers_cost_most(budget: float) -> None:
    torch.manual_seed(0)
    data = [(torch.randn(4, 6), torch.randint(50, (4,)))] * 12
    grown = grow(Cosine(), torch.zeros(1, 6), data, budget=budget, epochs=1, granularity=1, progress=False)
    assert budget - 1 / 16 < grown.macs / grown.dense_macs <= budget
    assert grown.macs == count_macs(grown.network, torch.zeros(1, 6))
