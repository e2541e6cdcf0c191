"""VGG-16 with batch norm for 32 px images, after Simonyan & Zisserman, "Very Deep Convolutional Networks" (ICLR 2015).

The form that the pruning literature uses on CIFAR: the 13 convolutions of configuration D, each with batch norm, then
global average pooling and a single linear layer in place of the three large ones.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from nasbench_grow.backbones.initialise import initialise
from nasbench_grow.backbones.registering import backbone

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Output channels of the convolutions; each stage ends with 2 x 2 max pooling."""


class CifarVGG(nn.Module):
    """Input (B, in_chans, H, W) of any size, output (B, num_classes) logits."""

    def __init__(self, num_classes: int, in_chans: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for stage in STAGES:
            for channels in stage:
                layers += [nn.Conv2d(in_chans, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
                in_chans = channels
            layers.append(nn.MaxPool2d(2, ceil_mode=True))  # rounding up lets inputs below 32 px pass all five
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(in_chans, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.classifier(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1))


@backbone
def cifar_vgg16_bn(num_classes: int, in_chans: int) -> nn.Module:
    """VGG-16 with batch norm for 32 px images (Simonyan & Zisserman 2015): 14.7 M parameters, 313 M MACs."""
    return CifarVGG(num_classes, in_chans)
