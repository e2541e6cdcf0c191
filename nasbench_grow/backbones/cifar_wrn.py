"""The wide residual network WRN-28-10 of Zagoruyko & Komodakis, "Wide Residual Networks" (BMVC 2016), no dropout."""

import torch.nn.functional as F
from torch import Tensor, nn

from nasbench_grow.backbones.initialise import initialise
from nasbench_grow.backbones.registering import backbone


class PreActivationBlock(nn.Module):
    """Batch norm and ReLU before each of two 3 x 3 convolutions, beside a shortcut.

    (B, C_in, H, W) to (B, C_out, H / stride, W / stride). Where the width changes, the shortcut is a 1 x 1 convolution
    of the activated input; elsewhere it is the input as it is.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.downsample: nn.Conv2d | None = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Conv2d(in_channels, channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """The sum, not activated."""
        active = F.relu(self.bn1(x))
        shortcut = x if self.downsample is None else self.downsample(active)
        out = F.relu(self.bn2(self.conv1(active)))
        return shortcut + self.conv2(out)


class CifarWRN(nn.Module):
    """Three stages of 16, 32 and 64 times ``width`` channels with ``blocks`` blocks each: 6 x blocks + 4 layers.

    Input (B, in_chans, H, W), output (B, num_classes) logits.
    """

    def __init__(self, blocks: int, width: int, num_classes: int, in_chans: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, 16, 3, padding=1, bias=False)
        self.layer1 = _stage(16, 16 * width, blocks, stride=1)
        self.layer2 = _stage(16 * width, 32 * width, blocks, stride=2)
        self.layer3 = _stage(32 * width, 64 * width, blocks, stride=2)
        self.norm = nn.BatchNorm2d(64 * width)
        self.fc = nn.Linear(64 * width, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        x = F.relu(self.norm(x))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def _stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = PreActivationBlock(in_channels, channels, stride)
    return nn.Sequential(first, *(PreActivationBlock(channels, channels, 1) for _ in range(blocks - 1)))


@backbone
def cifar_wrn28_10(num_classes: int, in_chans: int) -> nn.Module:
    """Wide ResNet 28-10 for 32 px images (Zagoruyko & Komodakis 2016): 36.5 M parameters, 5.2 G MACs."""
    return CifarWRN(4, 10, num_classes, in_chans)
