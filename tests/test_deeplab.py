"""DeepLabv3+: its MACs, the size of its output, and that all of it grows."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from families import randomise, settle, structure
from test_exactness import check
from torch import nn

from nasbench_grow import backbones
from nasbench_grow.backbones.deeplab import deeplab
from nasbench_grow.cost.macs import count_macs
from nasbench_grow.structure.discovery import discover

CPU = torch.device("cpu")


def closed_form(height: int, width: int, classes: int, blocks: tuple[int, ...], rates: int = 3) -> int:
    """MACs of DeepLabv3+ on a bottleneck ResNet at output stride 16: weight size times positions, layer by layer."""

    def positions(stride: int) -> int:
        return -(-height // stride) * -(-width // stride)

    total = 3 * 64 * 49 * positions(2)
    c_in = 64
    for stage, (count, inner) in enumerate(zip(blocks, (64, 128, 256, 512), strict=True)):
        out, before = 4 * inner, positions(min(16, 4 * 2 ** max(0, stage - 1)))
        after = positions(min(16, 4 * 2**stage))
        for block in range(count):
            total += c_in * inner * (before if block == 0 else after) + inner * inner * 9 * after + inner * out * after
            total += c_in * out * after if block == 0 else 0
            c_in = out
    pyramid = 2048 * 256 * (1 + 9 * rates) * positions(16) + 2048 * 256 + (rates + 2) * 256 * 256 * positions(16)
    decoder = 256 * 48 + (256 + 48) * 256 * 9 + 256 * 256 * 9 + 256 * classes
    return total + pyramid + decoder * positions(4)


BLOCKS = {"deeplabv3plus_resnet50": (3, 4, 6, 3), "deeplabv3plus_resnet101": (3, 4, 23, 3)}


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("height, width, classes", [(65, 65, 21), (96, 130, 11)])
def test_macs_equal_the_closed_form(name: str, height: int, width: int, classes: int) -> None:
    found = count_macs(backbones.create(name, classes, 3), torch.zeros(1, 3, height, width))
    assert found == closed_form(height, width, classes, BLOCKS[name])


@pytest.mark.parametrize("name", [*BLOCKS, "deeplabv3plus_thin"])
def test_the_summary_names_the_size(name: str) -> None:
    network = backbones.create(name, 21 if name in BLOCKS else 8, 3)
    params = sum(p.numel() for p in network.parameters())
    if name in BLOCKS:
        sizes = f"{params / 1e6:.1f} M parameters, {closed_form(513, 513, 21, BLOCKS[name]) / 1e9:.1f} G MACs at 513 px"
    else:
        macs = count_macs(network, torch.zeros(1, 3, 64, 64))
        sizes = f"{params / 1e6:.2f} M parameters, {macs / 1e6:.0f} M MACs at 64 px"
    assert backbones.SUMMARIES[name].endswith(f": {sizes}.")


@pytest.mark.parametrize("height, width", [(64, 64), (33, 50), (129, 96)])
def test_logits_have_the_size_of_the_image_and_one_image_can_be_trained_on(height: int, width: int) -> None:
    network = backbones.create("deeplabv3plus_thin", 8, 3)
    logits = network(torch.randn(1, 3, height, width))
    assert logits.shape == (1, 8, height, width)
    logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def bottleneck_deeplab() -> nn.Module:
    """The form of the large backbones, small."""
    sizes = {"layers": [1, 2, 1, 1], "channels": (8, 8, 12, 16)}
    return deeplab("resnet50", 5, 3, width=24, low_width=6, **sizes)


@pytest.mark.slow
@pytest.mark.parametrize("build", [bottleneck_deeplab, lambda: backbones.create("deeplabv3plus_thin", 8, 3)])
def test_everything_but_the_classifier_grows_and_sub_networks_are_exact(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    network = build().double()
    example = torch.randn(3, 3, 64, 64, dtype=torch.double)
    randomise(network)
    settle(network, example)
    space = discover(network, example[:1])
    assert space.fixed == {"classifier": "its channels are the model's output"}
    grown = {name for name, dim in space.owners if dim == 0 and name.endswith(".weight")}
    weights = {name for name, parameter in network.named_parameters() if parameter.ndim > 1}
    assert weights - grown == {"classifier.weight"}
    groups = [group.name for group in space.groups]
    for part in ("encoder.layer4", "pyramid.branches.0", "pyramid.branches.3", "pyramid.branches.4", "pyramid.project"):
        assert any(name.startswith(part) for name in groups), part
    assert any(name.startswith("project") for name in groups) and any(name.startswith("refine.1") for name in groups)
    for seed, share in ((0, 0.0), (1, 0.4), (2, 0.8)):
        present = structure(space, seed, share)
        check(space, copy.deepcopy(network).train(), present, example)
        check(space, copy.deepcopy(network).eval(), present, example)
