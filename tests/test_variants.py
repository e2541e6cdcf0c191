"""Looking at other sub-networks of a model in training: they compute what they would in its place; nothing changes."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from families import structure
from tiny_networks import EXAMPLE, Plain, Residual, digit_batches, seeded, sgd
from torch import Tensor, nn

from nasbench_grow.backbones.lstm import LanguageModel
from nasbench_grow.contract import ElasticModel

WORDS, STEPS = 11, 5
TEXT = torch.zeros(1, 1 + STEPS, dtype=torch.int64)


def language_model() -> nn.Module:
    return LanguageModel(WORDS, 6, layers=2, dropout=0.0, scale=0.5)


def batch(model: ElasticModel, step: int) -> tuple[Tensor, Tensor]:
    """Digits, or text that goes on from the batch before."""
    if model.example.dtype != torch.int64:
        return next(digit_batches(step + 1, 1))
    drawn = torch.randint(WORDS, (4, STEPS), generator=torch.Generator().manual_seed(step))
    return torch.cat([torch.full((4, 1), int(step > 0)), drawn], dim=1), drawn


def train(model: ElasticModel, steps: range) -> None:
    for step in steps:
        inputs, targets = batch(model, step)
        output = model.network.train()(inputs)
        model.optimizer.zero_grad()
        F.cross_entropy(output.flatten(0, -2), targets.flatten()).backward()
        model.optimizer.step()


def trained(make: Callable[[], nn.Module], share: float | None) -> ElasticModel:
    """A model after three steps with a random share of its structures; None: it was never resized."""
    model = ElasticModel(seeded(make), TEXT if make is language_model else EXAMPLE, sgd)
    if share is not None:
        model.resize(structure(model.space, 1, share))
    train(model, range(3))
    return model


def others(model: ElasticModel) -> list[Tensor]:
    """The seed, some structures, all, and those that are present."""
    space = model.space
    return [space.seed(), structure(space, 2, 0.4), structure(space, 3, 0.8), space.full(), model.structures]


def tensors(model: ElasticModel) -> list[Tensor]:
    """Copies of what trains, of what it hands on and of its optimizer's state."""
    momenta = [state["momentum_buffer"] for state in model.optimizer.state.values()]
    return [tensor.detach().clone() for tensor in (*model.network.parameters(), *model.network.buffers(), *momenta)]


CASES = [(Residual, None), (Residual, 0.5), (Plain, 0.0), (language_model, None), (language_model, 0.5)]
each = pytest.mark.parametrize("make, share", CASES)


@each
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_a_variant_computes_what_the_network_would_if_it_were_resized(make, share, training):
    model = trained(make, share)
    inputs, _ = batch(model, 3)
    wanted = others(model)
    model.network.train(training)
    looked_at = copy.deepcopy(model)
    found = [variant(inputs) for variant in looked_at.variants(wanted)]
    for present, output in zip(wanted, found, strict=True):
        resized = copy.deepcopy(model)
        resized.resize(present)
        assert resized.network.training == training
        torch.testing.assert_close(output, resized.network(inputs), rtol=0, atol=0)
    assert not torch.equal(found[0], found[3])


@each
def test_looking_leaves_the_model_as_it_was(make, share):
    model = trained(make, share)
    network, optimizer, before = model.network, model.optimizer, tensors(model)
    unchanged, present, macs = model.unchanged, model.structures.clone(), model.macs
    inputs, targets = batch(model, 3)
    for variant in model.variants(others(model)):
        assert variant is not model.network and variant is not model.dense
        F.cross_entropy(variant(inputs).flatten(0, -2), targets.flatten()).backward()
        with torch.no_grad():
            for tensor in (*variant.parameters(), *variant.buffers()):
                tensor.zero_()
    assert model.network is network and model.optimizer is optimizer and model.network.training
    assert (model.unchanged, model.macs) == (unchanged, macs) and torch.equal(model.structures, present)
    assert all(torch.equal(one, other) for one, other in zip(tensors(model), before, strict=True))


@each
def test_a_run_goes_on_as_if_nobody_had_looked(make, share):
    model = trained(make, share)
    looking = copy.deepcopy(model)
    for variant in looking.variants(others(model)):
        variant(batch(looking, 3)[0])
    for each in (model, looking):
        train(each, range(3, 5))
        each.resize(structure(each.space, 4, 0.6))
        train(each, range(5, 6))
    assert all(torch.equal(one, other) for one, other in zip(tensors(model), tensors(looking), strict=True))
    dense = looking.dense.state_dict()
    assert all(torch.equal(tensor, dense[name]) for name, tensor in model.dense.state_dict().items())


def test_a_variant_of_the_present_structures_goes_on_from_the_same_state():
    model = trained(language_model, 0.5)
    inputs, _ = batch(model, 3)
    (variant,) = model.variants([model.structures])
    state = model.network.layers[0].hidden.clone()
    assert state.any()
    output = variant(inputs)
    assert torch.equal(model.network.layers[0].hidden, state)
    torch.testing.assert_close(output, model.network(inputs), rtol=0, atol=0)
