"""Sizes that a module's code writes down follow the channels that they count."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from cutting import cut_at_random
from torch import nn

import nasbench_grow
from nasbench_grow import count_macs, discover, extract
from tests.kinds.written_sizes import Generator, LeNet

KINDS = [
    pytest.param(LeNet, (3, 14, 14), {"conv1": 4, "conv2": 6, "fc1": 8}, id="flat"),
    pytest.param(Generator, (5,), {"first": 6, "up": 4}, id="images"),
]


@pytest.mark.parametrize(("kind", "shape", "groups"), KINDS)
def test_a_size_in_the_code_follows(kind: type[nn.Module], shape: tuple[int, ...], groups: dict[str, int]) -> None:
    torch.manual_seed(0)
    model, example = kind(), torch.zeros(1, *shape)
    space = discover(model, example)
    assert {group.name: group.size for group in space.groups} == groups
    inputs = torch.randn(6, *shape)
    for present, small, wanted in cut_at_random(space, model, inputs):
        for network in (small, copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
            torch.testing.assert_close(network(inputs), wanted)
        assert count_macs(small, example) == space.macs(present)


def test_a_network_with_sizes_in_its_code_is_saved_and_loaded(tmp_path) -> None:
    torch.manual_seed(0)
    data = [(torch.randn(4, 3, 14, 14), torch.arange(4) % 3)] * 4
    grown = nasbench_grow.grow(LeNet(), torch.zeros(1, 3, 14, 14), data, epochs=1, granularity=1, progress=False)
    loaded = nasbench_grow.load(grown.save(tmp_path / "small.safetensors"), model=LeNet())
    inputs = torch.randn(2, 3, 14, 14)
    torch.testing.assert_close(loaded(inputs), grown.network(inputs))


def test_what_needs_no_new_sizes_is_left_alone() -> None:
    class Flat(LeNet):
        def forward(self, x):
            return self.fc2(self.fc1(self.conv2(self.conv1(x).relu()).relu().mean((2, 3)).repeat(1, 4)).relu())

    model = Flat()
    space = discover(model, torch.zeros(1, 3, 14, 14))
    assert "forward" not in vars(extract(space, model, space.seed()))


def test_a_network_with_sizes_in_its_code_is_exported() -> None:
    model, inputs = LeNet(), torch.randn(2, 3, 14, 14)
    space = discover(model, inputs[:1])
    small = extract(space, model, space.seed()).eval()
    torch.testing.assert_close(torch.export.export(small, (inputs,)).module()(inputs), small(inputs))
