"""The models of torchvision in the table: for classification, for segmentation, and the backbones of detectors."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import detection, segmentation
from torchvision.models.detection.backbone_utils import mobilenet_backbone, resnet_fpn_backbone

CLASSES = 10
SIZE = 64
LARGER = {"alexnet": 96, "vit_b_32": 224, "ssd300_vgg16": 300}
"""Pixels of the images for the models that take none of :data:`SIZE`."""
CLASSIFICATION = (
    "alexnet",
    "vgg11_bn",
    "resnet18",
    "resnet50",
    "resnext50_32x4d",
    "wide_resnet50_2",
    "squeezenet1_1",
    "densenet121",
    "googlenet",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "mobilenet_v3_large",
    "mnasnet1_0",
    "shufflenet_v2_x1_0",
    "efficientnet_b0",
    "regnet_x_400mf",
    "regnet_y_400mf",
    "convnext_tiny",
    "swin_t",
    "swin_v2_t",
    "vit_b_32",
)
SEGMENTATION = ("fcn_resnet50", "deeplabv3_resnet50", "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large")
"""They give a dict of maps."""
BACKBONES: dict[str, Callable[[], nn.Module]] = {
    "resnet18_fpn": lambda: resnet_fpn_backbone(backbone_name="resnet18", weights=None, trainable_layers=5),
    "resnet50_fpn": lambda: resnet_fpn_backbone(backbone_name="resnet50", weights=None, trainable_layers=5),
    "mobilenet_v2_fpn": lambda: _mobilenet("mobilenet_v2"),
    "mobilenet_v3_large_fpn": lambda: _mobilenet("mobilenet_v3_large"),
    "retinanet_resnet50_fpn": lambda: _of_detector(detection.retinanet_resnet50_fpn),
    "ssd300_vgg16": lambda: _of_detector(detection.ssd300_vgg16),
    "ssdlite320_mobilenet_v3_large": lambda: _of_detector(detection.ssdlite320_mobilenet_v3_large),
}
"""What gives a detector its maps, a dict of several scales."""
FAMILIES = (
    dict.fromkeys(CLASSIFICATION, "classification")
    | dict.fromkeys(SEGMENTATION, "segmentation")
    | dict.fromkeys(BACKBONES, "detection backbone")
)
"""Every model with what it is for."""


def build(name: str) -> tuple[nn.Module, Tensor]:
    """A model with random weights and :data:`CLASSES` classes, and a random image that it takes, shape (1, 3, S, S)."""
    size = LARGER.get(name, SIZE)
    if name in BACKBONES:
        model = BACKBONES[name]()
    elif name in SEGMENTATION:
        model = getattr(segmentation, name)(weights=None, weights_backbone=None, num_classes=CLASSES)
    else:
        options = {"init_weights": True} if name == "googlenet" else {}
        model = torchvision.models.get_model(name, weights=None, num_classes=CLASSES, **options)
    return model.eval(), torch.randn(1, 3, size, size)


def _mobilenet(name: str) -> nn.Module:
    return mobilenet_backbone(backbone_name=name, weights=None, fpn=True, trainable_layers=6)


def _of_detector(make: Callable[..., nn.Module]) -> nn.Module:
    return make(weights=None, weights_backbone=None).get_submodule("backbone")
