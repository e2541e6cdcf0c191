"""DeepLabv3+ for segmentation (Chen et al., "Encoder-Decoder with Atrous Separable Convolution", ECCV 2018).

Section 3.1 of the paper (arXiv 1802.02611) on residual networks of timm, with plain convolutions throughout, where the
paper's Xception has separable ones. One difference: the image pooling of the spatial pyramid is normalised after it was
spread over the map, not before. The statistics are the same, but a batch of one image can be trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasbench_grow.backbones.initialise import initialise
from nasbench_grow.backbones.registering import backbone


class ImagePooling(nn.Module):
    """The mean over the map, projected, at every position: (B, C_in, H, W) to (B, channels, H, W)."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Never negative."""
        pooled = self.conv(F.adaptive_avg_pool2d(x, 1))
        return F.relu(self.bn(pooled.expand(-1, -1, *x.shape[2:])))


class SpatialPyramid(nn.Module):
    """Atrous spatial pyramid pooling: (B, C_in, H, W) to (B, channels, H, W).

    A 1 x 1 convolution, a 3 x 3 one at each rate and image pooling, side by side; a 1 x 1 convolution joins them.
    """

    def __init__(self, in_channels: int, channels: int, rates: Sequence[int]) -> None:
        super().__init__()
        atrous = [_conv_bn_relu(in_channels, channels, 3, rate) for rate in rates]
        point = _conv_bn_relu(in_channels, channels, 1)
        self.branches = nn.ModuleList([point, *atrous, ImagePooling(in_channels, channels)])
        self.project = _conv_bn_relu(len(self.branches) * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Never negative."""
        return self.project(torch.cat([branch(x) for branch in self.branches], dim=1))


class PixelClassifier(nn.Conv2d):
    """A 1 x 1 convolution whose output is enlarged: (B, C_in, h, w) to (B, classes, *size).

    Both in one module, so that its output is the network's: these are the channels that cannot be removed.
    """

    def __init__(self, in_channels: int, classes: int) -> None:
        super().__init__(in_channels, classes, 1)

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:  # type: ignore[override]
        """Logits of height and width ``size``."""
        return _resize(super().forward(x), size)


class DeepLabV3Plus(nn.Module):
    """Input (B, in_chans, H, W) of any size, output (B, num_classes, H, W) logits.

    Args:
        encoder: maps an image to its features at stride 4 and at the output stride.
        channels: of those two.
        width: channels of the pyramid and of the decoder (256 in the paper).
        low_width: channels that the stride-4 features are projected to (48 in the paper).
        rates: of the pyramid's atrous convolutions.
        num_classes: number of classes.
    """

    def __init__(
        self,
        encoder: nn.Module,
        channels: Sequence[int],
        width: int,
        low_width: int,
        rates: Sequence[int],
        num_classes: int,
    ) -> None:
        super().__init__()
        low, high = channels
        self.encoder = encoder
        self.pyramid = SpatialPyramid(high, width, rates)
        self.project = _conv_bn_relu(low, low_width, 1)
        self.refine = nn.Sequential(_conv_bn_relu(width + low_width, width, 3), _conv_bn_relu(width, width, 3))
        self.classifier = PixelClassifier(width, num_classes)
        for part in (self.pyramid, self.project, self.refine):
            initialise(part)

    def forward(self, x: Tensor) -> Tensor:
        """Logits at the size of the input."""
        low, high = self.encoder(x)
        low = self.project(low)
        high = _resize(self.pyramid(high), low.shape[2:])
        return self.classifier(self.refine(torch.cat([high, low], dim=1)), x.shape[2:])


def _conv_bn_relu(in_channels: int, channels: int, kernel: int, rate: int = 1) -> nn.Sequential:
    padding = rate * (kernel // 2)
    conv = nn.Conv2d(in_channels, channels, kernel, padding=padding, dilation=rate, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU())


def _resize(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=False)


def deeplab(
    name: str,
    num_classes: int,
    in_chans: int,
    stride: int = 16,
    width: int = 256,
    low_width: int = 48,
    rates: Sequence[int] = (6, 12, 18),
    **options: Any,
) -> DeepLabV3Plus:
    """DeepLabv3+ on timm's network ``name``, built with ``options``, at output stride ``stride``; as in the paper."""
    encoder: Any = timm.create_model(
        name, features_only=True, output_stride=stride, out_indices=(1, 4), in_chans=in_chans, **options
    )
    return DeepLabV3Plus(encoder, encoder.feature_info.channels(), width, low_width, rates, num_classes)


@backbone
def deeplabv3plus_resnet101(num_classes: int, in_chans: int) -> nn.Module:
    """DeepLabv3+ on ResNet-101 (Chen et al. 2018): 59.3 M parameters, 92.8 G MACs at 513 px."""
    return deeplab("resnet101", num_classes, in_chans)


@backbone
def deeplabv3plus_resnet50(num_classes: int, in_chans: int) -> nn.Module:
    """DeepLabv3+ on ResNet-50 (Chen et al. 2018): 40.4 M parameters, 72.2 G MACs at 513 px."""
    return deeplab("resnet50", num_classes, in_chans)


@backbone
def deeplabv3plus_thin(num_classes: int, in_chans: int) -> nn.Module:
    """DeepLabv3+ on a thin ResNet-18, for 64 px images on a CPU: 0.44 M parameters, 56 M MACs at 64 px."""
    # At output stride 8 the map of a 64 px image has a quarter of the sides that the paper's has: so have the rates.
    sizes: dict[str, Any] = {"stride": 8, "width": 64, "low_width": 16, "rates": (2, 3, 4)}
    return deeplab("resnet18", num_classes, in_chans, **sizes, channels=(16, 24, 32, 64))
