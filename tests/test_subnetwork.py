"""Restructuring: nothing that survives changes by a bit, nothing that is absent is touched, the optimizer follows."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from families import network, seeds, shares, space, structure
from hypothesis import given, settings
from hypothesis import strategies as st
from setups_here import only_with_channels_last
from torch import Tensor, nn

from nasbench_grow.structure.discovery import discover
from nasbench_grow.structure.space import Space
from nasbench_grow.structure.subnetwork import absorb, carry_optimizer, extract, zero_init

few = settings(max_examples=5, deadline=None, derandomize=True, database=None)
FAMILIES = ["cifar_resnet", "efficientnet_gn", "vit"]
Make = Callable[[nn.Module], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda model: torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9),
    "fused sgd": lambda model: torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, fused=True),
    "adam": lambda model: torch.optim.AdamW(model.parameters(), lr=0.001),
}
sequences = st.lists(st.tuples(seeds, shares), min_size=2, max_size=4)


def dense_of(family: str) -> nn.Module:
    """A dense_model to train, in single precision."""
    return copy.deepcopy(network(family)).float().train()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    """One step on random images."""
    generator = torch.Generator().manual_seed(seed)
    size = 64 if hasattr(model, "patch_embed") else 32
    images, labels = torch.randn(4, 3, size, size, generator=generator), torch.arange(4)
    optimizer.zero_grad()
    F.cross_entropy(model(images), labels).backward()
    optimizer.step()


def spread(space: Space, present: Tensor, name: str, small: Tensor) -> Tensor:
    """A sub-network's tensor in the full one's shape, with NaN where it holds nothing."""
    full = torch.full(space.shapes[name], torch.nan, dtype=torch.double)
    there = torch.ones(space.shapes[name], dtype=torch.bool)
    for dim in range(there.ndim):
        owner = space.owners.get((name, dim))
        if owner is not None:
            keep = torch.tensor([number < 0 or bool(present[number]) for number in owner.tolist()])
            there &= keep.view([-1 if axis == dim else 1 for axis in range(there.ndim)])
    full[there] = small.double().flatten()
    return full


def state_of(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, Tensor]:
    """Tensors of the optimizer's state that have an entry for every entry of the parameter."""
    state = optimizer.state.get(parameter, {})
    return {key: value for key, value in state.items() if isinstance(value, Tensor) and value.shape == parameter.shape}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_optimizer_follows_every_restructuring(family: str, kind: str) -> None:
    configuration = space(family)

    @few
    @given(sequence=sequences)
    def for_every_sequence(sequence: list[tuple[int, float]]) -> None:
        dense_model = dense_of(family)
        present = structure(configuration, *sequence[0])
        small = extract(configuration, dense_model, present)
        optimizer = OPTIMIZERS[kind](small)
        for seed, share in sequence[1:]:
            train(small, optimizer, seed)
            absorb(configuration, dense_model, present, small)
            after = structure(configuration, seed, share)
            grown = extract(configuration, dense_model, after)
            follower = OPTIMIZERS[kind](grown)
            carry_optimizer(configuration, (present, small, optimizer), (after, grown, follower))
            assert_follows(configuration, (present, small, optimizer), (after, grown, follower))
            present, small, optimizer = after, grown, follower
        train(small, optimizer, 0)

    for_every_sequence()


@only_with_channels_last
@pytest.mark.parametrize("fused", [False, True])
def test_channels_last_in_memory_stays_so_for_weights_and_momentum(fused: bool) -> None:
    configuration = space("cifar_resnet")

    def trained(layout: torch.memory_format) -> tuple[nn.Module, torch.optim.Optimizer]:
        dense_model = dense_of("cifar_resnet").to(memory_format=layout)
        present = structure(configuration, 0, 0.3)
        small = extract(configuration, dense_model, present)
        optimizer = torch.optim.SGD(small.parameters(), lr=0.01, momentum=0.9, fused=fused)
        for seed, share in ((1, 0.6), (2, 0.5)):
            train(small, optimizer, seed)
            absorb(configuration, dense_model, present, small)
            after = structure(configuration, seed, share)
            grown = extract(configuration, dense_model, after)
            follower = torch.optim.SGD(grown.parameters(), lr=0.01, momentum=0.9, fused=fused)
            carry_optimizer(configuration, (present, small, optimizer), (after, grown, follower))
            present, small, optimizer = after, grown, follower
        train(small, optimizer, 3)
        return small, optimizer

    plain, _ = trained(torch.contiguous_format)
    small, optimizer = trained(torch.channels_last)
    for parameter, same in zip(small.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(parameter, same, rtol=1e-3, atol=1e-4)
        if parameter.ndim == 4:
            momentum = optimizer.state[parameter]["momentum_buffer"]
            assert parameter.is_contiguous(memory_format=torch.channels_last)
            assert momentum.is_contiguous(memory_format=torch.channels_last)


State = tuple[Tensor, nn.Module, torch.optim.Optimizer]


def assert_follows(space: Space, before: State, after: State) -> None:
    """Every live parameter is optimized; survivors keep weights and state bit by bit; the newborn start at zero."""
    old = dict(before[1].named_parameters())
    had = {key for state in before[2].state.values() for key in state}
    optimized = {id(parameter) for group in after[2].param_groups for parameter in group["params"]}
    assert optimized == {id(parameter) for parameter in after[1].parameters()}
    for name, parameter in after[1].named_parameters():
        new_weights = spread(space, after[0], name, parameter.detach())
        states = state_of(after[2], parameter)
        if name not in old:
            assert after[2].state.get(parameter, {}).keys() == (set() if "step" in had else had)
            assert all((value == 0).all() for value in states.values())
            continue
        old_weights = spread(space, before[0], name, old[name].detach())
        survive = ~old_weights.isnan() & ~new_weights.isnan()
        assert torch.equal(old_weights[survive], new_weights[survive])
        old_states = state_of(before[2], old[name])
        assert states.keys() == old_states.keys()
        for key, value in states.items():
            now, earlier = spread(space, after[0], name, value), spread(space, before[0], name, old_states[key])
            assert torch.equal(now[survive], earlier[survive])
            assert (now[~now.isnan() & ~survive] == 0).all()
        if "step" in before[2].state.get(old[name], {}):
            assert after[2].state[parameter]["step"] == before[2].state[old[name]]["step"]


@pytest.mark.parametrize("family", FAMILIES)
@few
@given(seed=seeds, share=shares)
def test_absorbing_what_was_extracted_changes_nothing(family: str, seed: int, share: float) -> None:
    configuration, dense_model = space(family), dense_of(family)
    before = copy.deepcopy(dense_model.state_dict())
    present = structure(configuration, seed, share)
    absorb(configuration, dense_model, present, extract(configuration, dense_model, present))
    assert all(torch.equal(tensor, before[name]) for name, tensor in dense_model.state_dict().items())


@pytest.mark.parametrize("family", FAMILIES)
@few
@given(first=st.tuples(seeds, shares), second=st.tuples(seeds, shares))
def test_a_structure_that_leaves_and_returns_finds_its_weights_again(
    family: str, first: tuple[int, float], second: tuple[int, float]
) -> None:
    configuration, dense_model = space(family), dense_of(family)
    origin = copy.deepcopy(dense_model.state_dict())
    one, other = structure(configuration, *first), structure(configuration, *second)
    small = extract(configuration, dense_model, one)
    train(small, OPTIMIZERS["sgd"](small), 0)
    absorb(configuration, dense_model, one, small)
    for name, tensor in dense_model.state_dict().items():  # what was absent is untouched
        if name in small.state_dict():
            learned = spread(configuration, one, name, small.state_dict()[name])
            expected = torch.where(learned.isnan(), origin[name].double(), learned)
        else:
            expected = origin[name].double()
        assert torch.equal(tensor.double(), expected)

    middle = extract(configuration, dense_model, other)
    absorb(configuration, dense_model, other, middle)
    again = extract(configuration, dense_model, one)
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, small.state_dict()[name])


@few
@given(seed=seeds, share=shares)
def test_a_sub_network_shares_no_memory_with_the_bank(seed: int, share: float) -> None:
    configuration, dense_model = space("cifar_resnet"), dense_of("cifar_resnet")
    before = copy.deepcopy(dense_model.state_dict())
    small = extract(configuration, dense_model, structure(configuration, seed, share))
    with torch.no_grad():
        for tensor in small.state_dict().values():
            tensor.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in dense_model.state_dict().items())


@pytest.mark.parametrize("family", ["cifar_resnet", "mobilenetv2", "densenet", "vgg_bn"])
@few
@given(seed=seeds, share=shares, more=shares, quiet=st.booleans())
def test_silent_newborns_leave_the_function_as_it_was_and_can_learn(
    family: str, seed: int, share: float, more: float, quiet: bool
) -> None:
    """So are quiet ones where all filters are normalised: not in VGG's linear layers."""
    quiet = quiet and family != "vgg_bn"
    configuration, dense_model = space(family), copy.deepcopy(network(family))
    before = structure(configuration, seed, share)
    after = before | structure(configuration, seed + 1, more)
    plain = [configuration.filters + index for index, layer in enumerate(configuration.layers) if layer.bypass]
    after[plain] = before[plain]  # a newborn one cannot be silent
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    small = extract(configuration, dense_model, before)
    zero_init(configuration, dense_model, before, after, normalised_only=quiet)
    large = extract(configuration, dense_model, after)
    for training in (False, True):
        small.train(training)
        large.train(training)
        assert torch.allclose(large(images), small(images), atol=1e-8)
    optimizer = torch.optim.SGD(large.parameters(), lr=0.1)
    for _ in range(2):  # the second step is the first to reach what makes a newborn filter
        optimizer.zero_grad()
        large(images).square().sum().backward()
        optimizer.step()
    for name, parameter in large.named_parameters():
        if parameter.ndim == 4 and parameter.shape[-1] > 1:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_running_statistics_travel_both_ways() -> None:
    configuration, dense_model = space("cifar_resnet"), dense_of("cifar_resnet")
    present = structure(configuration, 3, 0.5)
    small = extract(configuration, dense_model, present)
    before = small.bn1.running_mean.clone()
    kept = present[: configuration.groups[0].size]
    assert torch.equal(before, dense_model.bn1.running_mean[kept])
    small(torch.randn(4, 3, 32, 32))
    assert not torch.equal(small.bn1.running_mean, before)
    absorb(configuration, dense_model, present, small)
    assert torch.equal(small.bn1.running_mean, dense_model.bn1.running_mean[kept])
    assert dense_model.bn1.num_batches_tracked == small.bn1.num_batches_tracked


def test_modes_and_frozen_parameters_are_kept() -> None:
    configuration, dense_model = space("cifar_resnet"), dense_of("cifar_resnet")
    dense_model.layer2.eval()
    dense_model.conv1.weight.requires_grad_(False)
    small = extract(configuration, dense_model, configuration.full())
    assert {name: module.training for name, module in small.named_modules()} == {
        name: module.training for name, module in dense_model.named_modules()
    }
    assert not small.conv1.weight.requires_grad and small.fc.weight.requires_grad


@pytest.mark.parametrize("family", ["resnext", "mobilenetv2", "efficientnet_gn", "convnext", "vit", "densenet"])
@few
@given(seed=seeds, share=shares)
def test_sizes_kept_as_attributes_are_those_of_the_tensors(family: str, seed: int, share: float) -> None:
    configuration = space(family)
    small = extract(configuration, network(family), structure(configuration, seed, share))
    for module in small.modules():
        if isinstance(module, nn.Conv2d):
            shape = (module.out_channels, module.in_channels // module.groups, *module.kernel_size)
            assert module.weight.shape == shape
            assert module.out_channels % module.groups == module.in_channels % module.groups == 0
        elif isinstance(module, nn.Linear):
            assert module.weight.shape == (module.out_features, module.in_features)
        elif isinstance(module, nn.BatchNorm2d):
            assert module.weight.shape == module.running_mean.shape == (module.num_features,)
        elif isinstance(module, nn.GroupNorm):
            assert module.weight.shape == (module.num_channels,) and module.num_channels % module.num_groups == 0
        elif isinstance(module, nn.LayerNorm):
            assert module.weight.shape == module.normalized_shape


def test_transposed_convolutions_and_learned_slopes_shrink_too() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.PReLU(6), nn.ConvTranspose2d(6, 4, 2, 2), nn.ReLU(), nn.Conv2d(4, 2, 1)
    )
    configuration = discover(model, torch.zeros(1, 3, 8, 8))
    small = extract(configuration, model, configuration.seed())
    assert (small[0].out_channels, small[1].num_parameters) == (1, 1)
    assert (small[2].in_channels, small[2].out_channels, small[4].in_channels) == (1, 1, 1)
    assert small(torch.zeros(1, 3, 8, 8)).shape == (1, 2, 16, 16)
