"""The property of the product: a sub-network computes, and learns, what the masked full network does.

Extraction is held against :func:`nasbench_grow.structure.exactness.masked`, which multiplies absent entries by zero and
shares no code with it, in double precision: outputs, gradients of every shared parameter, running statistics.
"""

from __future__ import annotations

import copy

import pytest
import torch
from families import FAMILIES, network, seeds, shares, space, structure
from hypothesis import given, settings
from torch import Tensor, nn

from nasbench_grow.structure.exactness import masked
from nasbench_grow.structure.space import Space
from nasbench_grow.structure.subnetwork import extract

few = settings(max_examples=3, deadline=None, derandomize=True, database=None)
TOLERANCE = 1e-10


def kept_entries(space: Space, present: Tensor, name: str, tensor: Tensor) -> Tensor:
    """What is present of a full tensor, by boolean masks."""
    present = space.resolved(present)
    for dim in range(tensor.ndim):
        owner = space.owners.get((name, dim))
        if owner is not None:
            keep = torch.tensor([number < 0 or bool(present[number]) for number in owner.tolist()])
            tensor = tensor.transpose(0, dim)[keep].transpose(0, dim)
    return tensor


def gradients(model: nn.Module, output: Tensor) -> dict[str, Tensor]:
    """Gradients of a random projection of the output, by the parameters' names."""
    projection = torch.randn(output.shape, generator=torch.Generator().manual_seed(2), dtype=torch.double)
    (output * projection).sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def check(space: Space, model: nn.Module, present: Tensor, example: Tensor) -> None:
    """Extracts, runs both networks forward and backward, and compares all there is to compare."""
    full = copy.deepcopy(model)
    small = extract(space, full, present)
    output, wanted = small(example), masked(space, full, present, example)
    assert output.shape == wanted.shape
    assert (output - wanted).abs().max() <= TOLERANCE * wanted.abs().max()

    found, expected = gradients(small, output), gradients(full, wanted)
    assert found.keys() == {name for name, _ in small.named_parameters()} & expected.keys()
    largest = max(gradient.abs().max() for gradient in expected.values())
    for name, gradient in found.items():
        reference = kept_entries(space, present, name, expected[name])
        assert gradient.shape == reference.shape, name
        # A bias before a normalisation has no gradient but rounding errors, hence the floor.
        scale = max(reference.abs().max(), 1e-3 * largest)
        assert (gradient - reference).abs().max() <= TOLERANCE * scale, name

    buffers = dict(full.named_buffers())
    for name, buffer in small.named_buffers():
        reference = kept_entries(space, present, name, buffers[name])
        assert torch.allclose(buffer.double(), reference.double(), rtol=TOLERANCE, atol=TOLERANCE), name


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_sub_network_equals_the_masked_network(family: str, training: bool) -> None:
    model = network(family).train(training)
    configuration, example = space(family), FAMILIES[family].example()

    @few
    @given(seed=seeds, share=shares)
    def for_every_structure(seed: int, share: float) -> None:
        check(configuration, model, structure(configuration, seed, share), example)

    for_every_structure()


@pytest.mark.parametrize("family", FAMILIES)
def test_what_can_grow_is_found(family: str) -> None:
    expected, found = FAMILIES[family], space(family)
    assert len(found.groups) >= expected.groups
    assert len(found.layers) >= expected.layers
    assert found.fixed[expected.classifier] == "its channels are the model's output"
    whole = {name for name in found.fixed if not name.startswith("layer ")}  # plain layers that cannot leave
    assert whole == {expected.classifier, *expected.fixed}
    for name in expected.fixed:
        assert found.fixed[name].startswith("the network does not run without some of them (")


def test_the_widths_of_a_transformer_are_those_of_its_mlps_its_tokens_and_its_heads() -> None:
    assert space("vit").widths(space("vit").full()) == {
        "patch_embed.proj": 192,
        "blocks.0.attn.qkv": 3,
        "blocks.0.mlp.fc1": 768,
        "blocks.1.attn.qkv": 3,
        "blocks.1.mlp.fc1": 768,
    }
