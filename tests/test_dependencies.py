"""Couplings that Torch-Pruning's own groups get wrong: even splits, channels tied twice, reshaped scales."""

from __future__ import annotations

from abc import ABC, abstractmethod

import pytest
import torch
from torch import Tensor, nn

from nasbench_grow.dev.model_table.examine import deviation, structure
from nasbench_grow.structure.discovery import discover


def convolution(inputs: int, outputs: int, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, groups=groups, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class _Network(nn.Module, ABC):
    """A stem of 16 channels, what is tested, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.head = convolution(3, 16), convolution(8, 8), nn.Linear(16, 5)
        self.scale = nn.Parameter(torch.ones(16))

    @abstractmethod
    def middle(self, x: Tensor) -> Tensor:
        """16 channels to 16 channels."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self.stem(x)).mean((2, 3)) * self.scale)


class _HalfConvolved(_Network):
    """The second piece of a split is met first when the graph is traced from the end."""

    def middle(self, x: Tensor) -> Tensor:
        one, other = x.chunk(2, dim=1)
        return torch.cat([self.inner(one), other], dim=1)


class _ThirdPiece(_Network):
    """One piece of an even split goes to two places and one nowhere."""

    def middle(self, x: Tensor) -> Tensor:
        one, other, _, last = x.chunk(4, dim=1)
        return torch.cat([one, self.inner(torch.cat([one, other], dim=1)), last], dim=1)


class _Ghost(_Network):
    """A depthwise copy beside its source, added to the stem: four tensors tie the same channels in two ways."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.copy = convolution(16, 8), convolution(8, 8, groups=8)

    def middle(self, x: Tensor) -> Tensor:
        first = self.first(x)
        return x + torch.cat([first, self.copy(first)], dim=1)


class _Repeated(_Network):
    """Every channel is copied along an axis of its own by an expansion of five dimensions, then averaged again."""

    def middle(self, x: Tensor) -> Tensor:
        return x.unsqueeze(2).expand(-1, -1, 3, -1, -1).mean(2)


class _Scaled(_Network):
    """A scale of one dimension, reshaped to that of images, before a wider layer."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(16))
        self.wider, self.head = convolution(16, 32), nn.Linear(32, 5)
        self.scale = nn.Parameter(torch.ones(32))

    def middle(self, x: Tensor) -> Tensor:
        return self.wider(x * self.gamma.reshape(1, -1, 1, 1))


@pytest.mark.parametrize(
    ("network", "sizes"),
    [
        (_HalfConvolved, [8, 8]),
        (_ThirdPiece, [4, 8]),
        (_Ghost, [8]),
        (_Repeated, [16]),
        (_Scaled, [16, 32]),
    ],
)
def test_couplings_are_found_and_exact(network: type[_Network], sizes: list[int]) -> None:
    torch.manual_seed(0)
    model, example = network().eval(), torch.randn(1, 3, 8, 8)
    space = discover(model, example)
    assert space.fixed == {"head": "its channels are the model's output"}
    assert sorted(group.size for group in space.groups) == sorted(sizes)
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        error = deviation(space, model, example, structure(space, 0.5, generator), generator)
        assert error is not None and error < 1e-12
