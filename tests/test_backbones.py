"""The suite's own backbones: sizes against hand-written sums, timm's interface, and what pruning relies on."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from nasbench_grow import backbones
from nasbench_grow.backbones.cifar_mobilenet import CifarMobileNetV2, InvertedResidual
from nasbench_grow.base.errors import UserError
from nasbench_grow.cost.macs import count_macs
from nasbench_grow.structure.discovery import discover
from nasbench_grow.structure.subnetwork import extract

SMALL = ["cifar_mobilenetv2", "cifar_resnet20", "cifar_resnet56", "cifar_vgg16_bn"]
ALL = [*SMALL, "cifar_wrn28_10"]


def conv_bn(c_in: int, c_out: int, kernel: int, side: int) -> tuple[int, int]:
    """(parameters, MACs) of a bias-free convolution with a ``side`` x ``side`` output, and the batch norm after it."""
    weights = c_in * c_out * kernel * kernel
    return weights + 2 * c_out, weights * side * side


def resnet(blocks: int, classes: int, channels: int) -> tuple[int, int]:
    layers = [conv_bn(channels, 16, 3, 32)]
    for c_in, c_out, side in ((16, 16, 32), (16, 32, 16), (32, 64, 8)):
        layers += [conv_bn(c_in, c_out, 3, side)] + [conv_bn(c_out, c_out, 3, side)] * (2 * blocks - 1)
        layers += [conv_bn(c_in, c_out, 1, side)] * (c_in != c_out)
    return sum(p for p, _ in layers) + 65 * classes, sum(m for _, m in layers) + 64 * classes


def vgg16(classes: int, channels: int) -> tuple[int, int]:
    widths = [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    sides = [32, 32, 16, 16, 8, 8, 8, 4, 4, 4, 2, 2, 2]
    layers = [conv_bn(a, b, 3, s) for a, b, s in zip([channels, *widths], widths, sides, strict=False)]
    return sum(p for p, _ in layers) + 513 * classes, sum(m for _, m in layers) + 512 * classes


def wrn28_10(classes: int, channels: int) -> tuple[int, int]:
    params = macs = 0
    for c_in, c_out, side in ((16, 160, 32), (160, 320, 16), (320, 640, 8)):
        weights = c_in * c_out * 9 + 7 * c_out * c_out * 9 + c_in * c_out
        norms = 2 * c_in + 7 * 2 * c_out
        params += weights + norms
        macs += weights * side * side
    stem = channels * 16 * 9
    return params + stem + 2 * 640 + 641 * classes, macs + stem * 32 * 32 + 640 * classes


def mobilenetv2(classes: int, channels: int) -> tuple[int, int]:
    layers = [conv_bn(channels, 32, 3, 32)]
    c_in = 32
    # table 2 of the paper: expansion, output channels, blocks, and here the side of the stage's input and output
    table = [(1, 16, 1, 32, 32), (6, 24, 2, 32, 32), (6, 32, 3, 32, 16), (6, 64, 4, 16, 8), (6, 96, 3, 8, 8)]
    for t, c_out, blocks, before, after in [*table, (6, 160, 3, 8, 4), (6, 320, 1, 4, 4)]:
        for block in range(blocks):
            inner = t * c_in
            layers += [conv_bn(c_in, inner, 1, before if block == 0 else after)] * (t > 1)
            layers += [conv_bn(1, inner, 3, after), conv_bn(inner, c_out, 1, after)]
            c_in = c_out
    layers += [conv_bn(320, 1280, 1, 4)]
    return sum(p for p, _ in layers) + 1281 * classes, sum(m for _, m in layers) + 1280 * classes


EXPECTED = {
    "cifar_mobilenetv2": mobilenetv2,
    "cifar_resnet20": lambda classes, channels: resnet(3, classes, channels),
    "cifar_resnet56": lambda classes, channels: resnet(9, classes, channels),
    "cifar_vgg16_bn": vgg16,
    "cifar_wrn28_10": wrn28_10,
}


@pytest.mark.parametrize("classes, channels", [(10, 3), (7, 1)])
@pytest.mark.parametrize("name", ALL)
def test_parameters_and_macs_equal_the_hand_written_sum(name: str, classes: int, channels: int) -> None:
    network = backbones.create(name, classes, channels)
    params, macs = EXPECTED[name](classes, channels)
    assert sum(p.numel() for p in network.parameters()) == params
    assert count_macs(network, torch.zeros(1, channels, 32, 32)) == macs


@pytest.mark.parametrize(
    "name, params, macs",
    [
        ("cifar_resnet20", 0.27e6, 40.8e6),
        ("cifar_vgg16_bn", 14.7e6, 313e6),
        ("cifar_wrn28_10", 36.5e6, 5.24e9),
        ("cifar_mobilenetv2", 2.24e6, 88.0e6),  # as many parameters as torchvision's with 10 classes
    ],
)
def test_the_sums_agree_with_the_published_sizes(name: str, params: float, macs: float) -> None:
    assert EXPECTED[name](10, 3) == (pytest.approx(params, rel=0.01), pytest.approx(macs, rel=0.01))


@pytest.mark.parametrize("name", SMALL)
def test_timm_creates_ours_and_they_train(name: str) -> None:
    network = timm.create_model(name, num_classes=5, in_chans=1)
    logits = network(torch.randn(4, 1, 32, 32))
    assert logits.shape == (4, 5)
    nn.functional.cross_entropy(logits, torch.arange(4)).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters() if p.ndim > 1)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("size", [8, 28, 33])
def test_other_input_sizes_work(name: str, size: int) -> None:
    assert backbones.create(name, 10, 1).eval()(torch.randn(2, 1, size, size)).shape == (2, 10)


def test_every_backbone_has_a_summary_with_its_size() -> None:
    classifiers = {name: text for name, text in backbones.SUMMARIES.items() if not name.startswith(("deeplab", "lstm"))}
    assert sorted(classifiers) == sorted(ALL)
    for name, summary in classifiers.items():
        params, macs = EXPECTED[name](10, 3)
        assert f"{params / 1e6:.{2 if params < 1e6 else 1}f} M parameters" in summary
        assert (f"{macs / 1e9:.1f} G MACs" if macs > 1e9 else f"{macs / 1e6:.0f} M MACs") in summary


def test_names_are_those_of_torchvision() -> None:
    resnet_names = dict(backbones.create("cifar_resnet20", 10, 3).named_modules())
    assert {"conv1", "bn1", "layer1.0.conv1", "layer2.0.downsample.0", "layer3.2.bn2", "fc"} <= resnet_names.keys()
    vgg_names = dict(backbones.create("cifar_vgg16_bn", 10, 3).named_modules())
    assert isinstance(vgg_names["features.0"], nn.Conv2d)
    assert "classifier" in vgg_names


def _activations(network: nn.Module, block: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    seen: list[tuple[Tensor, Tensor]] = []
    handle = block.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    with torch.no_grad():
        network(x)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("name, block", [("cifar_resnet20", "layer2.1"), ("cifar_wrn28_10", "layer1.1")])
def test_a_block_whose_last_norm_is_zero_is_the_identity(name: str, block: str) -> None:
    network = backbones.create(name, 10, 3).eval()
    module = network.get_submodule(block)
    nn.init.zeros_(module.bn2.weight)
    nn.init.zeros_(module.bn2.bias)
    before, after = _activations(network, module, torch.randn(1, 3, 8, 8))
    assert torch.equal(before, after)


@pytest.mark.parametrize("size, channels", [(8, 1), (16, 3)])
def test_streams_expansions_and_inverted_residuals_of_mobilenetv2_can_be_grown(size: int, channels: int) -> None:
    torch.manual_seed(0)
    network, example = backbones.create("cifar_mobilenetv2", 10, channels), torch.zeros(1, channels, size, size)
    space = discover(network, example)
    widths = {group.name: group.size for group in space.groups}
    expansions = {name: width for name, width in widths.items() if ".expand." in name}
    streams = [width for name, width in widths.items() if ".project." in name]
    assert list(expansions.values()) == [96, 144, 144, *[192] * 3, *[384] * 4, *[576] * 3, *[960] * 3]
    assert streams == [16, 24, 32, 64, 96, 160, 320]
    assert widths.keys() - expansions.keys() == {"stem.0", "head.0"} | {n for n in widths if ".project." in n}
    assert space.fixed == {"classifier": "its channels are the model's output"}
    with_shortcut = [
        name for name, block in network.named_modules() if isinstance(block, InvertedResidual) and block.has_shortcut
    ]
    assert [layer.name for layer in space.layers] == with_shortcut
    assert len(with_shortcut) == 10
    for share in (0.0, 0.3, 0.7):
        present = torch.rand(len(space)) < share
        present[[group.start for group in space.groups]] = True
        small = extract(space, network, present).eval()
        assert count_macs(small, example) == space.macs(present)
        assert small(example.expand(2, -1, -1, -1)).shape == (2, 10)


def test_mobilenetv2_is_the_published_one_but_for_two_strides() -> None:
    theirs = torchvision.models.mobilenet_v2(num_classes=10)
    ours = CifarMobileNetV2(10, 3)

    def convolutions(network: nn.Module) -> list[tuple[object, ...]]:
        found = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
        return [(m.in_channels, m.out_channels, m.kernel_size, m.groups, m.padding, m.stride) for m in found]

    pairs = list(zip(convolutions(theirs), convolutions(ours), strict=True))
    assert all(one[:-1] == other[:-1] for one, other in pairs)
    assert [(one[-1], other[-1]) for one, other in pairs if one != other] == [((2, 2), (1, 1))] * 2


def test_a_timm_model_can_be_created_by_name() -> None:
    with torch.device("meta"):
        network = backbones.create("resnet18", 4, 1)
    assert network.conv1.in_channels == 1
    assert network.fc.out_features == 4


def test_an_unknown_name_gets_one_short_line_with_the_nearest() -> None:
    with pytest.raises(UserError, match="'cifar_resnet21'; did you mean 'cifar_resnet20'") as caught:
        backbones.create("cifar_resnet21", 10, 3)
    assert "timm.list_models" in str(caught.value)
    assert len(str(caught.value)) < 300


def test_what_does_not_exist_is_refused() -> None:
    with pytest.raises(UserError, match="no pretrained weights"):
        timm.create_model("cifar_resnet20", pretrained=True)
    with pytest.raises(TypeError, match="drop_rate"):
        timm.create_model("cifar_resnet20", drop_rate=0.1)
