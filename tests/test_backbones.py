"""The suite's own backbones: sizes against hand-written sums, timm's interface, and what pruning relies on."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

from nasbench_grow import backbones
from nasbench_grow.cost import count_macs
from nasbench_grow.errors import UserError

SMALL = ["cifar_resnet20", "cifar_resnet56", "cifar_vgg16_bn"]
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


EXPECTED = {
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
    [("cifar_resnet20", 0.27e6, 40.8e6), ("cifar_vgg16_bn", 14.7e6, 313e6), ("cifar_wrn28_10", 36.5e6, 5.24e9)],
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
    assert sorted(backbones.SUMMARIES) == sorted(ALL)
    for name, summary in backbones.SUMMARIES.items():
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


def test_a_timm_model_can_be_created_by_name() -> None:
    with torch.device("meta"):
        network = backbones.create("resnet18", 4, 1)
    assert network.conv1.in_channels == 1
    assert network.fc.out_features == 4


def test_an_unknown_name_gets_one_short_line_with_the_nearest() -> None:
    with pytest.raises(UserError, match="'cifar_resnet21'; did you mean 'cifar_resnet20'") as caught:
        backbones.create("cifar_resnet21", 10, 3)
    assert "timm.list_models" in str(caught.value)
    assert len(str(caught.value)) < 250


def test_what_does_not_exist_is_refused() -> None:
    with pytest.raises(UserError, match="no pretrained weights"):
        timm.create_model("cifar_resnet20", pretrained=True)
    with pytest.raises(TypeError, match="drop_rate"):
        timm.create_model("cifar_resnet20", drop_rate=0.1)
