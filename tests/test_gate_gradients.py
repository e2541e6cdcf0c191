"""The gradients along gates, by which structures are weighed: autograd's own, whatever the network is made of."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache

import families
import pytest
import torch
import torch.nn.functional as F
from tiny_networks import EXAMPLE, Plain, Residual, seeded
from torch import Tensor, nn

from nasbench_grow import grow
from nasbench_grow.backbones.lstm import LanguageModel
from nasbench_grow.structure.discovery import discover
from nasbench_grow.structure.gating import GatedNetwork
from nasbench_grow.structure.space import Space
from nasbench_grow.structure.subnetwork import extract


@cache
def space_of(make: Callable[[], nn.Module]) -> Space:
    return discover(seeded(make), EXAMPLE)


def language_model() -> nn.Module:
    return LanguageModel(11, 6, layers=2, dropout=0.0, scale=0.5)


def gated(kind: str) -> tuple[Space, GatedNetwork, Tensor]:
    """A random half of a network, with gates, and what it takes in."""
    if kind == "lstm":
        network, inputs = seeded(language_model).double(), torch.arange(12).remainder(11).view(2, 6)
        inputs[:, 0] = 0  # the text begins here
        space = discover(network, inputs)
    else:
        network, inputs = copy.deepcopy(families.network(kind)), families.FAMILIES[kind].example(2)
        space = families.space(kind)
    present = families.structure(space, 1, 0.5)
    return space, GatedNetwork(space, present, extract(space, network, present).train()), inputs


@pytest.mark.parametrize("kind", ["cifar_resnet", "mobilenetv2", "lstm"])
def test_the_gradients_along_gates_are_those_of_autograd(kind: str) -> None:
    space, network, inputs = gated(kind)
    gates = torch.ones(len(space), dtype=torch.double, requires_grad=True)
    (wanted,) = torch.autograd.grad(network(inputs, gates).square().sum(), gates)
    network(inputs).square().sum().backward()
    found = network.gradients()
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6 * float(wanted.abs().max()))
    assert found.count_nonzero() > 10 and (found == 0).any(), "absent structures have none"


def test_what_is_frozen_has_no_gradient_and_what_the_loss_does_not_depend_on_one_of_zero() -> None:
    network, space = seeded(Plain), space_of(Plain)
    network.bn2.requires_grad_(False)
    gates = GatedNetwork(space, space.full(), network)
    F.relu(network.bn1(network.conv1(torch.randn(4, 1, 8, 8)))).square().sum().backward()
    first, second, third = (gates.gradients()[group.structures] for group in space.groups)
    assert first.isfinite().all() and first.any() and second.isnan().all() and not third.any()


class FixedStream(Residual):
    """All that can be grown lies inside the blocks: without them there is nothing to scale."""

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(F.softmax(self.norm(self.stem(x)), dim=1)).mean((2, 3)))


def test_a_network_that_has_nothing_to_scale_has_gradients_of_zero() -> None:
    space = space_of(FixedStream)
    gates = GatedNetwork(space, space.seed(), extract(space, seeded(FixedStream), space.seed()))
    assert torch.equal(gates.gradients(), torch.zeros(len(space)))


class Idle(Plain):
    """Trains a part of it in every other step alone."""

    def __init__(self) -> None:
        super().__init__()
        self.side = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 10, 1))
        self.steps = 0

    def forward(self, x: Tensor) -> Tensor:
        self.steps += self.training
        output = super().forward(x)
        return output if self.training and self.steps % 2 else output + self.side(x).mean((2, 3))


def frozen() -> nn.Module:
    network = Plain()
    network.bn2.requires_grad_(False)
    return network


def test_networks_of_another_precision_with_frozen_or_idle_weights_are_weighed_too() -> None:
    for make in (lambda: Plain().double(), lambda: Plain().bfloat16(), frozen, Idle):
        network = seeded(make)
        dtype = network.fc.weight.dtype
        batches = [(torch.randn(8, 1, 8, 8, dtype=dtype), torch.arange(8)) for _ in range(30)]
        grown = grow(network, EXAMPLE.to(dtype), batches, granularity=1, epochs=1, progress=False)
        assert abs(grown.macs / grown.dense_macs - 0.5) <= 0.02


def test_a_group_that_a_normalised_convolution_takes_in_has_gates_whose_gradients_add_up_to_zero() -> None:
    network = seeded(Plain)
    space = space_of(Plain)
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(64, 1, 8, 8, generator=generator), torch.randint(10, (64,), generator=generator)
    gates = torch.full((len(space),), 0.7, requires_grad=True)
    loss = F.cross_entropy(GatedNetwork(space, space.full(), network.train())(inputs, gates), targets)
    (slopes,) = torch.autograd.grad(loss, gates)
    for group in space.groups[:2]:  # the last one goes into the classifier, which nothing normalises
        assert slopes[group.structures].sum().abs() < 1e-3 * slopes[group.structures].abs().sum()
    last = slopes[space.groups[2].structures]
    assert last.sum().abs() > 0.01 * last.abs().sum()
