"""MobileNetV2 for 32 x 32 images, after Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks".

Table 2 of the paper (CVPR 2018, arXiv 1801.04381) at width 1, in the form that is usual on CIFAR: the first convolution
and the first stage of stride 2 keep the resolution, as 32 px images are too small to be halved five times.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from nasbench_grow.backbones.initialise import initialise
from nasbench_grow.backbones.registering import backbone

STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion, output channels, blocks, and stride of the first block (t, c, n, s in the paper)."""


class InvertedResidual(nn.Module):
    """1 x 1 expansion, 3 x 3 depthwise convolution, linear 1 x 1 projection: (B, C_in, H, W) to
    (B, C_out, H / stride, W / stride).

    Its input is added where it has the shape of the output. At expansion 1 the first convolution is left out.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = expansion * in_channels
        self.expand: nn.Module = nn.Identity()
        if expansion > 1:
            self.expand = _conv_bn_relu6(in_channels, inner, 1)
        self.depthwise = _conv_bn_relu6(inner, inner, 3, stride, groups=inner)
        self.project = nn.Sequential(nn.Conv2d(inner, channels, 1, bias=False), nn.BatchNorm2d(channels))
        self.has_shortcut = stride == 1 and in_channels == channels

    def forward(self, x: Tensor) -> Tensor:
        """No activation after the sum: the bottleneck is linear."""
        out = self.project(self.depthwise(self.expand(x)))
        return x + out if self.has_shortcut else out


class CifarMobileNetV2(nn.Module):
    """Input (B, in_chans, H, W) of any size, output (B, num_classes) logits."""

    def __init__(self, num_classes: int, in_chans: int) -> None:
        super().__init__()
        self.stem = _conv_bn_relu6(in_chans, 32, 3)
        blocks: list[nn.Module] = []
        width = 32
        for expansion, channels, count, stride in STAGES:
            for index in range(count):
                blocks.append(InvertedResidual(width, channels, stride if index == 0 else 1, expansion))
                width = channels
        self.blocks = nn.Sequential(*blocks)
        self.head = _conv_bn_relu6(width, 1280, 1)
        self.classifier = nn.Linear(1280, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = self.head(self.blocks(self.stem(x)))
        return self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))


def _conv_bn_relu6(in_channels: int, channels: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU6())


@backbone
def cifar_mobilenetv2(num_classes: int, in_chans: int) -> nn.Module:
    """MobileNetV2 for 32 px images (Sandler et al. 2018): 2.2 M parameters, 88 M MACs."""
    return CifarMobileNetV2(num_classes, in_chans)
