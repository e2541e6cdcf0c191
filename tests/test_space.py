"""What can be present or absent in a network, what it costs, and what is coupled to what."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from families import FAMILIES, network, randomise, seeds, shares, space, structure
from hypothesis import given, settings
from torch import Tensor, nn

from nasbench_grow.base.errors import UserError
from nasbench_grow.cost.macs import count_macs
from nasbench_grow.structure.discovery import discover
from nasbench_grow.structure.exactness import masked
from nasbench_grow.structure.space import Space
from nasbench_grow.structure.subnetwork import extract

few = settings(max_examples=5, deadline=None, derandomize=True, database=None)
SOME = ["cifar_resnet", "resnext", "mobilenetv2", "regnety", "densenet", "vgg_bn", "dpn", "vit", "efficientnet_gn"]


@pytest.mark.parametrize("family", SOME)
def test_the_cost_and_the_shapes_are_those_of_the_extracted_network(family: str) -> None:
    configuration, model, example = space(family), network(family), FAMILIES[family].example(1)

    @few
    @given(seed=seeds, share=shares)
    def for_every_structure(seed: int, share: float) -> None:
        present = structure(configuration, seed, share)
        small = extract(configuration, model, present)
        assert configuration.macs(present) == count_macs(small, example)
        assert dict(configuration.sizes(present)) == {name: tuple(t.shape) for name, t in small.state_dict().items()}

    for_every_structure()
    assert configuration.macs(configuration.full()) == count_macs(model, example)


@pytest.mark.parametrize("family", ["cifar_resnet", "mobilenetv2", "densenet"])
@few
@given(seed=seeds, share=shares)
def test_a_marginal_cost_is_the_difference_that_one_structure_makes(family: str, seed: int, share: float) -> None:
    configuration = space(family)
    present = structure(configuration, seed, share)
    marginal = configuration.marginal_macs(present)
    for group in configuration.groups:
        without = present.clone()
        if group.layer is not None:
            without[configuration.filters + group.layer] = True
        absent = torch.nonzero(~present[group.structures]).flatten()
        if len(absent):
            more = without.clone()
            more[group.start + absent[0]] = True
            assert marginal[group.start + absent[0]] == configuration.macs(more) - configuration.macs(without)
        assert marginal[group.structures].unique().numel() == 1
    for number in range(configuration.filters, len(configuration)):
        one, other = present.clone(), present.clone()
        one[number], other[number] = True, False
        assert marginal[number] == configuration.macs(one) - configuration.macs(other)


@pytest.mark.parametrize("family", SOME)
def test_structures_are_numbered_without_gaps_and_owned(family: str) -> None:
    configuration = space(family)
    starts = [group.start for group in configuration.groups]
    ends = [group.start + group.size for group in configuration.groups]
    assert [0, *ends[:-1]] == starts
    assert len(configuration) == ends[-1] + len(configuration.layers)
    assert len({group.name for group in configuration.groups}) == len(configuration.groups)
    owned = torch.cat(list(configuration.owners.values())).unique()
    assert owned[owned >= 0].tolist() == list(range(configuration.filters))


@pytest.mark.parametrize("family", ["cifar_resnet", "mobilenetv2", "densenet", "vit"])
def test_the_seed_has_one_filter_in_every_group_and_no_removable_layer(family: str) -> None:
    configuration = space(family)
    seed = configuration.seed()
    assert [int(seed[group.structures].sum()) for group in configuration.groups] == [1] * len(configuration.groups)
    assert not seed[configuration.filters :].any()
    widths = configuration.widths(seed)
    assert {widths[group.name] for group in configuration.groups if group.layer is not None} <= {0}
    assert {widths[group.name] for group in configuration.groups if group.layer is None} == {1}


def test_the_removable_layers_of_resnet_20_are_the_blocks_that_keep_the_shape() -> None:
    names = [layer.name for layer in space("cifar_resnet").layers]
    assert names == ["layer1.0", "layer1.1", "layer1.2", "layer2.1", "layer2.2", "layer3.1", "layer3.2"]
    for layer in space("cifar_resnet").layers:
        assert layer.terminal == (f"{layer.name}.bn2.weight", f"{layer.name}.bn2.bias")


def test_the_removable_layers_of_mobilenetv2_are_its_residual_blocks() -> None:
    model = network("mobilenetv2")
    residual = [name for name, module in model.named_modules() if getattr(module, "has_skip", False)]
    assert [layer.name for layer in space("mobilenetv2").layers] == residual


def test_a_removed_layer_is_the_identity_and_its_filters_do_not_exist() -> None:
    configuration = space("cifar_resnet")
    present = configuration.full()
    present[configuration.filters + 1] = False
    small = extract(configuration, network("cifar_resnet"), present)
    assert isinstance(small.get_submodule("layer1.1"), nn.Identity)
    assert configuration.widths(present)["layer1.1.conv1"] == 0
    assert not any(name.startswith("layer1.1.") for name, _ in configuration.sizes(present))


class Residual(nn.Module):
    """A stem, one residual branch and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.branch = nn.Sequential(nn.Conv2d(6, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 1))
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head((x + self.branch(x)).mean((2, 3)))


class Concatenation(nn.Module):
    """Two convolutions side by side, read together."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 6, 3, padding=1)
        self.both = nn.Conv2d(10, 5, 1)
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.left(x), self.right(x)], dim=1)
        return self.head(F.relu(self.both(F.relu(x))).mean((2, 3)))


class Grouped(nn.Module):
    """A depthwise convolution, one with four groups of two channels, and a group normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.depthwise = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.point, self.grouped = nn.Conv2d(6, 8, 1), nn.Conv2d(8, 16, 3, padding=1, groups=4)
        self.norm = nn.GroupNorm(4, 16)
        self.head = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.grouped(self.point(F.relu(self.depthwise(self.expand(x)))))
        return self.head(F.relu(self.norm(x)).mean((2, 3)))


class Flattened(nn.Module):
    """A linear layer that reads every position of every channel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, stride=2, padding=1)
        self.hidden, self.head = nn.Linear(5 * 16, 7), nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.hidden(F.relu(self.conv(x)).flatten(1))))


class Reshaped(nn.Module):
    """A convolution whose eight channels are reshaped into two by four; a free one before it."""

    def __init__(self) -> None:
        super().__init__()
        self.free, self.stuck = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 8, 1)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stuck(F.relu(self.free(x)))
        return self.head(x.reshape(len(x), 2, 4, *x.shape[2:]).mean((1, 3, 4)))


def found(model: nn.Module) -> Space:
    return discover(model, torch.zeros(1, 3, 8, 8))


def sizes(space: Space) -> dict[str, int]:
    return {group.name: group.size for group in space.groups}


def axes(space: Space, name: str) -> dict[tuple[str, int], list[int]]:
    """What leaves with the second filter of a group: entries along each axis."""
    (group,) = (group for group in space.groups if group.name == name)
    entries = {axis: torch.nonzero(owner == group.start + 1).flatten().tolist() for axis, owner in space.owners.items()}
    return {axis: numbers for axis, numbers in entries.items() if numbers}


def test_a_residual_stream_is_one_group_and_leaves_from_every_tensor_on_it() -> None:
    configuration = found(Residual())
    assert sizes(configuration) == {"stem": 6, "branch.0": 4}
    stream = [
        ("stem.weight", 0),
        ("stem.bias", 0),
        ("branch.0.weight", 1),
        ("branch.3.weight", 0),
        ("branch.3.bias", 0),
    ]
    assert axes(configuration, "stem") == {axis: [1] for axis in [*stream, ("head.weight", 1)]}
    norm = [(f"branch.1.{key}", 0) for key in ("weight", "bias", "running_mean", "running_var")]
    inside = [("branch.0.weight", 0), *norm, ("branch.3.weight", 1)]
    assert axes(configuration, "branch.0") == {axis: [1] for axis in inside}
    assert configuration.fixed == {"head": "its channels are the model's output"}


def test_concatenated_channels_are_found_at_their_offset() -> None:
    configuration = found(Concatenation())
    assert sizes(configuration) == {"left": 4, "right": 6, "both": 5}
    assert axes(configuration, "left")["both.weight", 1] == [1]
    assert axes(configuration, "right")["both.weight", 1] == [4 + 1]


def test_the_channels_of_one_group_of_a_convolution_are_one_filter() -> None:
    configuration = found(Grouped())
    assert sizes(configuration) == {"expand": 6, "point": 4}
    assert axes(configuration, "expand")["depthwise.weight", 0] == [1]
    four = axes(configuration, "point")
    assert four["point.weight", 0] == [2, 3]
    assert four["grouped.weight", 0] == four["norm.weight", 0] == four["head.weight", 1] == [4, 5, 6, 7]
    assert ("grouped.weight", 1) not in four


def test_a_channel_takes_all_its_positions_along_through_a_flattening() -> None:
    configuration = found(Flattened())
    assert sizes(configuration) == {"conv": 5, "hidden": 7}
    assert axes(configuration, "conv")["hidden.weight", 1] == list(range(16, 32))


def test_what_a_fixed_reshape_needs_is_reported_and_the_rest_can_grow() -> None:
    configuration = found(Reshaped())
    assert sizes(configuration) == {"free": 6}
    assert configuration.fixed.keys() == {"stuck", "head"}
    assert "the network does not run without some of them" in configuration.fixed["stuck"]


@pytest.mark.parametrize("build", [Residual, Concatenation, Grouped, Flattened, Reshaped])
def test_plain_models_shrink_to_what_the_masked_network_computes(build: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = build().eval()
    configuration = found(model)
    randomise(model.double())
    example = torch.randn(2, 3, 8, 8, dtype=torch.double)

    @few
    @given(seed=seeds, share=shares)
    def for_every_structure(seed: int, share: float) -> None:
        present = structure(configuration, seed, share)
        small, wanted = extract(configuration, model, present), masked(configuration, model, present, example)
        torch.testing.assert_close(small(example), wanted, rtol=1e-10, atol=1e-10)
        assert configuration.macs(present) == count_macs(small, example[:1])

    for_every_structure()


def test_discovery_leaves_the_model_as_it_is() -> None:
    model = Residual().train()
    model.stem.bias.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found(model)
    assert model.training and not model.stem.bias.requires_grad
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


class OnValues(nn.Module):
    """Fails on an input that is not what it wants."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != 1:
            raise ValueError("images must be grey\nand small")
        return self.conv(x)


def test_a_model_that_cannot_be_traced_is_refused_in_one_line() -> None:
    for model in (OnValues(), nn.Sequential(nn.Conv2d(1, 4, 1), nn.Linear(9, 2))):
        with pytest.raises(UserError) as caught:
            found(model)
        message = str(caught.value)
        assert "\n" not in message
        assert type(model).__name__ in message and "(1, 3, 8, 8)" in message
