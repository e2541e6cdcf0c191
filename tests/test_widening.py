"""Wider networks: the old filters as they were, new ones that fit in everywhere, the costs of the closed form."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from families import FAMILIES, network, space
from hypothesis import settings
from tiny_networks import Plain, Residual
from torch import Tensor, nn

from nasbench_grow.backbones import create
from nasbench_grow.backbones.lstm import LanguageModel
from nasbench_grow.base.errors import UserError
from nasbench_grow.cost.macs import count_macs
from nasbench_grow.structure.architecture import describe, load, rebuild, save
from nasbench_grow.structure.discovery import discover
from nasbench_grow.structure.space import ChannelGroup, Space
from nasbench_grow.structure.subnetwork import extract, zero_init
from nasbench_grow.structure.widening import NEW, resample, widen

few = settings(max_examples=2, deadline=None, derandomize=True, database=None)
EXAMPLE = torch.zeros(1, 1, 8, 8)
WORDS = torch.tensor([[0, 3, 1, 4, 1, 5]])


class Flattened(nn.Module):
    """A convolution of two filters whose 2 x 2 images are flattened: (B, 1, 2, 2) to (B, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(1, 2, 1), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.conv(x).flatten(1))


def language_model() -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(7, 4, layers=2, dropout=0.0, scale=0.5)


def random_widths(space: Space, seed: int) -> dict[str, int]:
    """For about two thirds of the groups a width between 2 and a half more than the full size (with one filter left, a
    grouped convolution or an attention layer is found to be of another kind)."""
    generator = torch.Generator().manual_seed(seed)
    widths = {}
    for group in space.groups:
        draw, share = torch.rand(2, generator=generator).tolist()
        if draw < 2 / 3:
            widths[group.name] = max(2, round(1.5 * share * group.size))
    return widths


def sizes(space: Space) -> dict[str, int]:
    return {group.name: group.size for group in space.groups}


def closed_form(space: Space, widths: dict[str, int]) -> int:
    counts = [float(widths.get(group.name, group.size)) for group in space.groups]
    return space.macs_of(counts, [True] * len(space.layers))


def assert_holds_the_old(space: Space, dense: nn.Module, wide: nn.Module, example: Tensor) -> None:
    """What is left of a widened network without its new filters is the dense network, entry by entry; with them, their
    outgoing weights at zero, it still computes the same."""
    wide = copy.deepcopy(wide)
    wide_space = discover(wide, example[:1])
    old = torch.ones(len(wide_space), dtype=torch.bool)
    for before, after in zip(space.groups, wide_space.groups, strict=True):
        old[after.start + before.size : after.start + after.size] = False
    cut = extract(wide_space, wide, old)
    assert cut.state_dict().keys() == dense.state_dict().keys()
    assert all(torch.equal(tensor, dense.state_dict()[name]) for name, tensor in cut.state_dict().items())
    zero_init(wide_space, wide, old, wide_space.full())
    for training in (False, True):
        wide.train(training)
        output, wanted = wide(example), copy.deepcopy(dense).train(training)(example)
        assert (output - wanted).abs().max() <= 1e-9 * wanted.abs().max()


@pytest.mark.parametrize(
    "family", ["cifar_resnet", "seresnet", "resnext", "mobilenetv1", "densenet", "efficientnet_gn", "convnext", "vit"]
)
def test_a_widened_network_runs_and_has_the_widths_and_the_cost_asked_for(family: str) -> None:
    configuration, example = space(family), FAMILIES[family].example(1)
    widths = random_widths(configuration, seed=len(configuration))
    wide = widen(configuration, network(family), widths)
    assert torch.isfinite(wide.eval()(example)).all()
    found = discover(wide, example)
    assert sizes(found) == sizes(configuration) | widths
    assert count_macs(wide, example) == found.macs(found.full()) == closed_form(configuration, widths)


@pytest.mark.parametrize("family", ["cifar_resnet", "vgg_bn", "mobilenetv2", "resnext", "vit"])
def test_without_its_new_filters_a_widened_network_is_the_dense_one(family: str) -> None:
    configuration, dense = space(family), copy.deepcopy(network(family))
    widths = {
        group.name: group.size + 1 + index % 3
        for index, group in enumerate(configuration.groups)
        if group.name != "patch_embed.proj"  # a layer norm sees new filters by its statistics
    }
    assert_holds_the_old(configuration, dense, widen(configuration, dense, widths), FAMILIES[family].example(4))


@pytest.mark.parametrize(
    "widths", [{"embedding": 6}, {"layers.0": 5, "layers.1": 9}, {"embedding": 5, "layers.0": 6, "layers.1": 7}]
)
def test_a_widened_lstm_grows_in_every_gate(widths: dict[str, int]) -> None:
    dense = language_model().double()
    configuration = discover(dense, WORDS)
    wide = widen(configuration, dense, widths)
    assert count_macs(wide, WORDS) == closed_form(configuration, widths)
    assert_holds_the_old(configuration, dense, wide, WORDS)


def test_new_units_stand_behind_the_old_ones_of_each_gate() -> None:
    dense = language_model()
    wide = widen(discover(dense, WORDS), dense, {"layers.1": 5})
    gates = wide.layers[1].weight_hh_l0.view(4, 5, 5)
    assert torch.equal(gates[:, :4, :4], dense.layers[1].weight_hh_l0.view(4, 4, 4))
    assert wide.layers[1].hidden_size == 5 and wide.decoder.in_features == 5


def test_new_filters_stand_behind_the_old_ones_and_their_flattened_images_too() -> None:
    dense = Flattened()
    dense.out.weight.data = torch.arange(8.0)[None]
    wide = widen(discover(dense, torch.zeros(1, 1, 2, 2)), dense, {"conv": 3})
    assert wide.conv.weight.shape == (3, 1, 1, 1) and torch.equal(wide.conv.weight[:2], dense.conv.weight)
    assert wide.out.weight.shape == (1, 12) and torch.equal(wide.out.weight[0, :8], torch.arange(8.0))
    assert set(wide.out.weight[0, 8:].tolist()) <= set(range(8))


def test_new_entries_are_drawn_from_the_tensors_own() -> None:
    torch.manual_seed(0)
    dense = Plain(32)
    configuration = discover(dense, EXAMPLE)
    wide = widen(configuration, dense, {"conv1": 96, "conv2": 96})
    old, new = dense.conv2.weight.detach(), wide.conv2.weight.detach()
    assert torch.isin(new, old).all()
    assert abs(new[32:].std() / old.std() - 1) < 0.02
    assert len(torch.unique(new[32:].flatten(1), dim=0)) == 64, "two new filters are alike"
    assert (wide.bn1.weight == 1).all() and (wide.bn1.bias == 0).all() and (wide.bn1.running_var == 1).all()


def test_a_seed_determines_the_new_entries() -> None:
    dense = Plain()
    configuration = discover(dense, EXAMPLE)
    one, same, other = (widen(configuration, dense, {"conv1": 20}, seed).conv1.weight for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_narrower_groups_keep_their_first_filters_and_the_dense_network_stays() -> None:
    dense = Plain()
    before = copy.deepcopy(dense.state_dict())
    wide = widen(discover(dense, EXAMPLE), dense, {"conv1": 3, "conv2": 20})
    assert torch.equal(wide.conv1.weight, dense.conv1.weight[:3])
    assert torch.equal(wide.conv2.weight[:16], dense.conv2.weight[:, :3])
    assert torch.equal(wide.conv3.weight[:, :16], dense.conv3.weight)
    with torch.no_grad():
        for parameter in wide.parameters():
            parameter.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in dense.state_dict().items())


def test_channels_last_stays_so() -> None:
    dense = Plain().to(memory_format=torch.channels_last)
    wide = widen(discover(dense, EXAMPLE), dense, {"conv1": 20})
    assert wide.conv2.weight.is_contiguous(memory_format=torch.channels_last)


def test_resampling_by_hand() -> None:
    tensor = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    result = resample(tensor, [torch.tensor([1, NEW]), torch.tensor([NEW, 0, 1])], torch.Generator().manual_seed(0))
    assert torch.equal(result[0, 1:], torch.tensor([3.0, 4.0]))
    assert torch.isin(result, tensor).all()
    same = resample(tensor, [None, None], torch.Generator())
    assert torch.equal(same, tensor) and same is not tensor


@pytest.mark.parametrize(
    "widths, message",
    [
        ({"conv9": 20}, r"unknown channel group 'conv9'; did you mean 'conv\d'\? \(known: conv1, conv2, conv3\)"),
        ({"conv1": 0}, "0 filters in 'conv1'; give at least 1"),
        ({"fc": 20}, "channels of 'fc' cannot be widened: its channels are the model's output"),
    ],
)
def test_what_cannot_be_widened_is_refused_in_one_line(widths: dict[str, int], message: str) -> None:
    dense = Plain()
    with pytest.raises(UserError, match=message) as caught:
        widen(discover(dense, EXAMPLE), dense, widths)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("owner", [[0, 2, 1], [0, 1, 1, 2], [0, -1, 1, 2], [0, 1], [0, 1, 2, 2, 1, 0]])
def test_filters_in_an_unknown_order_are_refused(owner: list[int]) -> None:
    group = ChannelGroup("conv", 0, 3, None)
    odd = Space([group], [], {("conv.weight", 0): torch.tensor(owner)}, [], [], {}, {"conv.weight": (len(owner),)})
    with pytest.raises(UserError, match=r"their order in conv\.weight is unknown; give at most 3"):
        widen(odd, nn.Identity(), {"conv": 4})


def test_a_single_unit_whose_gates_cannot_be_told_from_a_flattened_image_is_refused() -> None:
    dense = LanguageModel(7, 1, layers=1, dropout=0.0, scale=0.5)
    with pytest.raises(UserError, match=r"their order in layers.0.weight_\w+_l0 is unknown"):
        widen(discover(dense, WORDS), dense, {"layers.0": 2})


# --- as text and in files ---


def test_a_widened_network_is_saved_and_loaded(tmp_path) -> None:
    dense = Residual().eval()
    wide = widen(discover(dense, EXAMPLE), dense, {"stem": 20, "blocks.0.conv1": 5, "blocks.1.conv1": 30}).eval()
    text = describe(wide, dense)
    assert json.loads(text)["shapes"]["stem.weight"] == [20, 1, 3, 3]
    assert json.loads(text)["wider"]["stem.weight"] == [12, 1, 3, 3]
    path = save(wide, text, tmp_path / "wide.safetensors")
    images = torch.randn(2, 1, 8, 8)
    assert torch.equal(load(path, model=Residual())(images), wide(images))
    with pytest.raises(UserError, match=r"does not fit Residual: \S+ has the shape .*; give the model it came from"):
        load(path, model=Residual(24))


def test_only_a_network_that_is_wider_says_so() -> None:
    dense = Plain()
    narrow = widen(discover(dense, EXAMPLE), dense, {"conv1": 3})
    assert "wider" not in json.loads(describe(narrow, dense))


def test_a_widened_network_of_words_that_the_package_makes_needs_no_instance(tmp_path) -> None:
    dense = create("lstm_200", 7, 1)
    wide = widen(discover(dense, WORDS), dense, {"layers.0": 210, "layers.1": 190}).eval()
    loaded = load(save(wide, describe(wide, dense), tmp_path / "wide.safetensors"))
    assert torch.equal(loaded(WORDS), wide(WORDS))


def test_a_widened_network_that_lost_a_layer_is_rebuilt_with_the_same_fresh_weights() -> None:
    dense = Residual()
    wide = widen(discover(dense, EXAMPLE), dense, {"stem": 20})
    wide_space = discover(wide, EXAMPLE)
    without = wide_space.full()
    without[wide_space.filters + 1] = False
    text = describe(extract(wide_space, wide, without), dense)
    one, other = rebuild(text, dense), rebuild(text, dense)
    assert isinstance(one.blocks[1], nn.Identity) and one.norm.num_features == 20
    assert torch.isfinite(one.eval()(torch.randn(2, 1, 8, 8))).all()
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())
    assert torch.equal(one.stem.weight[:12], dense.stem.weight)


def test_a_stranger_is_not_described_and_other_dimensions_are_not_rebuilt() -> None:
    with pytest.raises(UserError, match="was not made from the Plain given, which has no 'stem'"):
        describe(Residual(), Plain())
    text = json.dumps(json.loads(describe(Plain(), Plain())) | {"shapes": {"fc.weight": [10]}})
    with pytest.raises(
        UserError, match=r"fit Plain: fc.weight has the shape \[10, 16\], from which \[10\] was not made"
    ):
        rebuild(text, Plain())
