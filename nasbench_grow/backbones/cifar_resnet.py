"""The residual networks for 32 x 32 images of He et al., "Deep Residual Learning", section 4.2 (CVPR 2016).

One difference to the paper: where a block changes the width, its shortcut is a 1 x 1 convolution with batch norm
(option B), not zero padding (option A). Padding ties the filters of one stage to those of the next one by position, so
that no stage could change its width alone; the projections add 2752 parameters.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from nasbench_grow.backbones.initialise import initialise
from nasbench_grow.backbones.registering import backbone


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut: (B, C_in, H, W) to (B, C_out, H / stride, W / stride)."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            projection = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        """ReLU after the sum, so that the output is never negative."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.downsample(x))


class CifarResNet(nn.Module):
    """Three stages of 16, 32 and 64 channels with ``blocks`` blocks each: 6 x blocks + 2 layers.

    Input (B, in_chans, H, W), output (B, num_classes) logits.
    """

    def __init__(self, blocks: int, num_classes: int, in_chans: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks, stride=1)
        self.layer2 = _stage(16, 32, blocks, stride=2)
        self.layer3 = _stage(32, 64, blocks, stride=2)
        self.fc = nn.Linear(64, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def _stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, channels, stride)
    return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(blocks - 1)))


@backbone
def cifar_resnet20(num_classes: int, in_chans: int) -> nn.Module:
    """ResNet-20 for 32 px images (He et al. 2016): 0.27 M parameters, 41 M MACs."""
    return CifarResNet(3, num_classes, in_chans)


@backbone
def cifar_resnet56(num_classes: int, in_chans: int) -> nn.Module:
    """ResNet-56 for 32 px images (He et al. 2016): 0.86 M parameters, 126 M MACs."""
    return CifarResNet(9, num_classes, in_chans)
