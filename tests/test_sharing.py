"""Shared weights: a path computes and learns what the extracted network does, in the dense network's parameters."""

from __future__ import annotations

import copy

import pytest
import torch
from families import FAMILIES, network, seeds, shares, space, structure
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_networks import Plain, Residual
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nasbench_grow.backbones.lstm import LanguageModel
from nasbench_grow.structure import sharing
from nasbench_grow.structure.discovery import discover
from nasbench_grow.structure.exactness import masked
from nasbench_grow.structure.sharing import SharedWeights
from nasbench_grow.structure.space import Space
from nasbench_grow.structure.subnetwork import carry_state, extract

few = settings(max_examples=4, deadline=None, derandomize=True, database=None)
WORDS = torch.tensor([[0, 3, 1, 4, 1, 5], [0, 2, 6, 5, 3, 5]])
EXAMPLE = torch.zeros(1, 1, 8, 8)


def language_model() -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(7, 6, layers=2, dropout=0.0, scale=0.5).double()


def first_filters(space: Space, share: float) -> Tensor:
    """The first filters of every group, as slimmable networks keep them, and every layer."""
    present = space.full()
    for group in space.groups:
        present[group.start + max(1, round(share * group.size)) : group.start + group.size] = False
    return present


def assert_same_gradients(space: Space, present: Tensor, dense: nn.Module, small: nn.Module) -> None:
    """The dense network's gradients are the small one's where it has entries, and zero or none elsewhere."""
    expected = dict(small.named_parameters())
    for name, parameter in dense.named_parameters():
        if name not in expected:
            assert parameter.grad is None, name
            continue
        gradient = torch.zeros_like(parameter)
        index = [torch.arange(length) for length in parameter.shape]
        for dim in range(parameter.ndim):
            kept = space.kept(present, (name, dim))
            index[dim] = index[dim] if kept is None else kept
        gradient[torch.meshgrid(*index, indexing="ij")] = expected[name].grad
        assert (parameter.grad - gradient).abs().max() <= 1e-10 * (1 + gradient.abs().max()), name


def assert_learns_alike(space: Space, dense: nn.Module, present: Tensor, inputs: Tensor) -> None:
    small = extract(space, dense, present)
    output, expected = SharedWeights(space, dense)(present, inputs), small(inputs)
    assert (output - expected).abs().max() <= 1e-10 * (1 + expected.abs().max())
    output.square().sum().backward()
    expected.square().sum().backward()
    assert_same_gradients(space, present, dense, small)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("family", ["cifar_resnet", "vgg_bn", "mobilenetv1", "mobilenetv2", "efficientnet_gn", "vit"])
@few
@given(seed=seeds, share=shares)
def test_a_path_computes_and_learns_what_the_extracted_network_does(
    family: str, training: bool, seed: int, share: float
) -> None:
    dense = copy.deepcopy(network(family)).train(training)
    present = structure(space(family), seed, share)
    assert_learns_alike(space(family), dense, present, FAMILIES[family].example(2))


@pytest.mark.parametrize("family", ["cifar_resnet", "vgg_bn", "mobilenetv1"])
@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_the_widths_of_a_slimmable_network_too(family: str, share: float) -> None:
    dense = copy.deepcopy(network(family)).train()
    present = first_filters(space(family), share)
    assert_learns_alike(space(family), dense, present, FAMILIES[family].example(2))


@pytest.mark.parametrize("seed", range(3))
def test_a_path_of_an_lstm_learns_in_every_gate(seed: int) -> None:
    dense = language_model()
    configuration = discover(dense, WORDS)
    assert_learns_alike(configuration, dense, structure(configuration, seed, 0.5), WORDS)


@pytest.mark.parametrize("family", ["cifar_resnet", "mobilenetv2"])
def test_a_path_is_the_dense_network_with_its_absent_entries_at_zero(family: str) -> None:
    dense, configuration = copy.deepcopy(network(family)).eval(), space(family)
    present, example = structure(configuration, 5, 0.5), FAMILIES[family].example(2)
    output = SharedWeights(configuration, dense)(present, example)
    torch.testing.assert_close(output, masked(configuration, dense, present, example), rtol=1e-10, atol=1e-10)


@few
@given(sequence=st.lists(st.tuples(seeds, shares), min_size=2, max_size=4))
def test_the_state_of_a_recurrent_network_goes_on_from_path_to_path(sequence: list[tuple[int, float]]) -> None:
    dense = language_model()
    configuration = discover(dense, WORDS)
    shared, state = SharedWeights(configuration, dense), dense.layers[0].hidden.clone()
    before: tuple[Tensor, nn.Module] | None = None
    going_on = WORDS.clone()
    going_on[:, 0] = 1
    for seed, share in sequence:
        present = structure(configuration, seed, share)
        small = extract(configuration, dense, present)
        if before is not None:
            carry_state(configuration, before, (present, small))
        torch.testing.assert_close(shared(present, going_on), small(going_on), rtol=1e-10, atol=1e-12)
        before = present, small
    assert torch.equal(dense.layers[0].hidden, state), "the dense network's own state was touched"


def test_a_step_through_a_path_changes_what_it_holds_and_nothing_else() -> None:
    dense = Residual().train()
    configuration = discover(dense, EXAMPLE)
    dense.double()
    shared = SharedWeights(configuration, dense)
    before = copy.deepcopy(dense.state_dict())
    present = structure(configuration, 0, 0.5)
    present[configuration.filters :] = torch.tensor([True, False, True])
    path = shared.path(present)
    assert {id(parameter) for parameter in path.parameters()} == {id(parameter) for parameter in dense.parameters()}
    optimizer = torch.optim.SGD(path.parameters(), lr=0.1)
    images = torch.randn(4, 1, 8, 8, dtype=torch.double)
    first = path(images)
    first.square().sum().backward()
    optimizer.step()
    assert not torch.allclose(path(images), first), "the path does not see the step"
    kept = configuration.kept(present, ("stem.weight", 0))
    assert kept is not None and 0 < len(kept) < 12
    changed = (dense.stem.weight != before["stem.weight"]).flatten(1).any(1)
    assert torch.equal(torch.nonzero(changed).flatten(), kept)
    for name, tensor in dense.state_dict().items():
        if "running" in name or "tracked" in name or name.startswith("blocks.1."):
            assert torch.equal(tensor, before[name]), name


def test_batch_norms_that_are_frozen_use_the_dense_networks_statistics() -> None:
    dense, configuration = Plain().double().train(), discover(Plain(), EXAMPLE)
    shared, present = SharedWeights(configuration, dense), first_filters(configuration, 0.5)
    images = torch.randn(4, 1, 8, 8, dtype=torch.double)
    shared(present, images)
    dense.bn1.running_mean.uniform_()
    dense.bn1.eval()
    torch.testing.assert_close(shared(present, images), extract(configuration, dense, present)(images))


def test_a_path_has_the_mode_of_the_dense_network() -> None:
    dense, configuration = Plain(), discover(Plain(), EXAMPLE)
    path = SharedWeights(configuration, dense).path(configuration.full())
    images = torch.randn(4, 1, 8, 8)
    path.eval()
    assert not dense.training
    torch.testing.assert_close(path(images), dense(images))
    dense.train()
    torch.testing.assert_close(path(images), dense(images))


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_path_costs_what_its_sub_network_costs(share: float) -> None:
    dense = Residual()
    configuration = discover(dense, EXAMPLE)
    present = structure(configuration, 1, share)
    with FlopCounterMode(display=False) as counter:
        SharedWeights(configuration, dense)(present, EXAMPLE)
    assert counter.get_total_flops() == 2 * configuration.macs(present) < 2 * configuration.macs(configuration.full())


def test_more_paths_than_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "KEPT_PATHS", 2)
    dense = Residual().eval()
    configuration = discover(dense, EXAMPLE)
    shared, images = SharedWeights(configuration, dense), torch.randn(2, 1, 8, 8)
    for seed in (0, 1, 2, 0):
        present = structure(configuration, seed, 0.5)
        torch.testing.assert_close(shared(present, images), extract(configuration, dense, present)(images))
