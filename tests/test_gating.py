"""Gates scale each filter and layer after its normalisation; folding them changes nothing."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from families import FAMILIES, network, randomise, seeds, shares, space, structure
from hypothesis import given, settings
from torch import Tensor, nn

from nasbench_grow.structure.discovery import discover
from nasbench_grow.structure.gating import GatedNetwork
from nasbench_grow.structure.space import Space
from nasbench_grow.structure.subnetwork import extract

few = settings(max_examples=3, deadline=None, derandomize=True, database=None)
MANY = [
    "cifar_resnet",
    "cifar_wrn",
    "mobilenetv2",
    "densenet",
    "vgg_bn",
    "regnety",
    "efficientnet_gn",
    "convnext",
    "vit",
]
SEPARATE = MANY[:6]
"""Without the families whose layer norms see a channel through the statistics even if its gate is closed."""


def gated(family: str, seed: int, share: float, training: bool = False) -> tuple[Space, Tensor, GatedNetwork, Tensor]:
    """A random sub-network with gates, and the example to run it on."""
    configuration, model = space(family), copy.deepcopy(network(family)).train(training)
    present = structure(configuration, seed, share)
    small = extract(configuration, model, present)
    return configuration, present, GatedNetwork(configuration, present, small), FAMILIES[family].example(2)


def random_gates(space: Space, seed: int) -> Tensor:
    return torch.rand(len(space), generator=torch.Generator().manual_seed(seed), dtype=torch.double)


@pytest.mark.parametrize("family", MANY)
@few
@given(seed=seeds, share=shares)
def test_folded_scales_compute_what_the_gates_did(family: str, seed: int, share: float) -> None:
    configuration, _, network, example = gated(family, seed, share)
    gates = random_gates(configuration, seed)
    weights = copy.deepcopy(network.network.state_dict())
    with torch.no_grad():
        wanted = network(example, gates)
        folded = network.fold(gates)
        assert (folded(example) - wanted).abs().max() <= 1e-12 * wanted.abs().max()
        assert type(folded) is type(network.network)
        torch.testing.assert_close(network(example, torch.ones_like(gates)), network.network(example))
    assert all(torch.equal(tensor, weights[name]) for name, tensor in network.network.state_dict().items())


@pytest.mark.parametrize("family", MANY)
@few
@given(seed=seeds, share=shares)
def test_the_gradient_of_the_gates_is_the_slope_of_the_output(family: str, seed: int, share: float) -> None:
    configuration, present, network, example = gated(family, seed, share)
    gates = (0.5 + random_gates(configuration, seed)).requires_grad_(True)
    direction = random_gates(configuration, seed + 1) - 0.5
    projection = torch.randn(5, generator=torch.Generator().manual_seed(seed), dtype=torch.double)

    def value(gates: Tensor) -> Tensor:
        return (network(example, gates) * projection).sum()

    (gradient,) = torch.autograd.grad(value(gates), gates)
    step = 1e-7  # small enough that hardly any rectifier changes its side
    with torch.no_grad():
        slope = (value(gates + step * direction) - value(gates - step * direction)) / (2 * step)
    largest = gradient.abs().sum()
    assert abs(slope - gradient @ direction) <= 1e-5 * largest
    assert (gradient[~configuration.effective(present)] == 0).all()


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("family", SEPARATE)
def test_a_closed_gate_is_an_absent_structure(family: str, training: bool) -> None:
    @few
    @given(seed=seeds, share=shares)
    def for_every_structure(seed: int, share: float) -> None:
        configuration, present, network, example = gated(family, seed, 1.0, training)
        remaining = structure(configuration, seed, share)
        plain = [configuration.filters + index for index, layer in enumerate(configuration.layers) if layer.bypass]
        remaining[plain] = True  # their gates scale nothing
        fewer = extract(configuration, copy.deepcopy(network.network), remaining)
        with torch.no_grad():
            wanted = fewer(example)
            found = network(example, remaining.double())
        assert present.all()
        assert (found - wanted).abs().max() <= 1e-10 * wanted.abs().max()

    for_every_structure()


class Plain(nn.Module):
    """A convolution with a normalisation, one without, and a residual branch."""

    def __init__(self) -> None:
        super().__init__()
        self.normed, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.bare = nn.Conv2d(4, 5, 1)
        self.block = Branch()
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.normed(x)))
        return self.head(self.block(F.relu(self.bare(x))).mean((2, 3)))


class Branch(nn.Module):
    """A linear residual branch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(5, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


def plain() -> tuple[Space, GatedNetwork, Tensor]:
    torch.manual_seed(0)
    model = Plain()
    configuration = discover(model, torch.zeros(1, 3, 8, 8))
    randomise(model.double().train())
    return configuration, GatedNetwork(configuration, configuration.full(), model), torch.randn(4, 3, 8, 8).double()


def test_gates_scale_norms_and_where_there_is_none_the_convolutions() -> None:
    configuration, network, _ = plain()
    gated = {"norm.weight", "norm.bias", "bare.weight", "bare.bias", "block.conv.weight", "block.conv.bias"}
    assert set(configuration.gated) == {(name, 0) for name in gated}
    assert [layer.terminal for layer in configuration.layers] == [("block.conv.weight", "block.conv.bias")]
    gates = torch.arange(1.0, len(configuration) + 1).double()
    scaled = network.scaled(gates)
    parameters = dict(network.network.named_parameters())
    normed, bare, layer = gates[:4], gates[4:9], gates[9]
    assert torch.equal(scaled["norm.weight"], parameters["norm.weight"] * normed)
    assert torch.equal(scaled["bare.weight"], parameters["bare.weight"] * bare.view(-1, 1, 1, 1))
    assert torch.equal(scaled["block.conv.bias"], parameters["block.conv.bias"] * bare * layer)
    assert scaled.keys() == gated


def test_a_gate_acts_after_the_normalisation() -> None:
    configuration, network, example = plain()
    seen: list[Tensor] = []
    network.network.bare.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    for gate in (1.0, 0.25):
        gates = torch.ones(len(configuration), dtype=torch.double)
        gates[2] = gate
        network(example, gates)
    factors = torch.tensor([1, 1, 0.25, 1]).double().view(1, -1, 1, 1)
    torch.testing.assert_close(seen[1], seen[0] * factors, rtol=1e-12, atol=0)


def test_the_output_is_linear_in_a_layers_gate() -> None:
    configuration, network, example = plain()
    outputs = []
    for gate in (0.0, 0.5, 1.0):
        gates = torch.ones(len(configuration), dtype=torch.double)
        gates[-1] = gate
        outputs.append(network(example, gates))
    torch.testing.assert_close(outputs[1], (outputs[0] + outputs[2]) / 2, rtol=1e-12, atol=1e-12)
    without = configuration.full()
    without[-1] = False
    torch.testing.assert_close(outputs[0], extract(configuration, network.network, without)(example))


def test_weights_and_gates_get_their_gradients_in_one_pass() -> None:
    configuration, network, example = plain()
    gates = torch.full((len(configuration),), 0.5, dtype=torch.double, requires_grad=True)
    network(example, gates).square().sum().backward()
    assert gates.grad is not None and (gates.grad != 0).all()
    assert all(parameter.grad is not None for parameter in network.network.parameters())
