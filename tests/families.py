"""Small members of many network families with their configuration spaces, and random structures of a space."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import timm
import torch
from hypothesis import strategies as st
from once import once
from timm.models.byobnet import ByoBlockCfg
from timm.models.vgg import VGG
from torch import Tensor, nn

from nasbench_grow.backbones.cifar_wrn import CifarWRN
from nasbench_grow.structure.discovery import discover
from nasbench_grow.structure.space import Space

CLASSES = 5


@dataclass(frozen=True)
class Family:
    """How to build a small network, and what must at least be found in it."""

    build: Callable[[], nn.Module]
    groups: int
    layers: int
    classifier: str
    size: int = 64
    fixed: tuple[str, ...] = ()
    """What else than the classifier cannot be grown."""

    def example(self, batch: int = 3) -> Tensor:
        """Random images in double precision."""
        generator = torch.Generator().manual_seed(1)
        return torch.randn(batch, 3, self.size, self.size, generator=generator, dtype=torch.double)


def _timm(name: str, **options: object) -> Callable[[], nn.Module]:
    return functools.partial(timm.create_model, name, num_classes=CLASSES, **options)


def _vgg() -> nn.Module:
    """VGG with batch normalisation; timm's named variants are all over 100 M parameters."""
    return VGG([8, "M", 16, "M", 24, 24], CLASSES, mlp_ratio=1 / 64, norm_layer=nn.BatchNorm2d)


_REPVGG = tuple(ByoBlockCfg(type="rep", d=d, c=c, s=2, gs=0, br=1.0) for d, c in ((2, 24), (2, 48)))
_SHORT = [2, 1, 1, 1]
_NARROW = (32, 48, 64, 96)
FAMILIES = {
    "resnet": Family(_timm("resnet50", layers=_SHORT, channels=_NARROW), 15, 1, "fc"),
    "seresnet": Family(_timm("seresnet18", layers=_SHORT, channels=_NARROW), 15, 1, "fc"),
    "resnetv2": Family(_timm("resnetv2_50", layers=_SHORT, channels=(64, 128, 192, 256)), 15, 1, "head.fc"),
    "resnext": Family(_timm("resnext50_32x4d", layers=_SHORT, channels=_NARROW), 10, 1, "fc"),
    "wide_resnet": Family(_timm("wide_resnet50_2", layers=_SHORT, channels=_NARROW), 15, 1, "fc"),
    "cifar_resnet": Family(_timm("cifar_resnet20", in_chans=3), 12, 7, "fc", 32),
    "cifar_wrn": Family(lambda: CifarWRN(2, 2, CLASSES, 3), 10, 3, "fc", 32),
    "vgg_bn": Family(_vgg, 6, 1, "head.fc"),
    "densenet": Family(_timm("densenet121", block_config=(2, 2, 2, 2)), 20, 0, "classifier"),
    "mobilenetv1": Family(_timm("mobilenetv1_100"), 14, 8, "classifier"),
    "mobilenetv2": Family(_timm("mobilenetv2_035"), 25, 10, "classifier"),
    "mobilenetv3": Family(_timm("mobilenetv3_small_050"), 26, 7, "classifier"),
    "mnasnet": Family(_timm("mnasnet_small"), 31, 10, "classifier"),
    "efficientnet": Family(_timm("test_efficientnet"), 13, 0, "classifier"),
    "efficientnet_gn": Family(_timm("test_efficientnet_gn"), 13, 0, "classifier"),
    "efficientnet_ln": Family(_timm("test_efficientnet_ln"), 13, 0, "classifier"),
    "regnetx": Family(_timm("regnetx_002"), 18, 9, "head.fc"),
    "regnety": Family(_timm("regnety_002"), 31, 9, "head.fc"),
    "convnext": Family(_timm("convnext_atto", depths=(1, 1, 1, 1)), 8, 4, "head.fc"),
    "dla": Family(_timm("dla46_c"), 36, 6, "fc"),
    "dpn": Family(_timm("dpn48b", k_sec=(1, 1, 1, 1)), 5, 0, "classifier"),
    "inception": Family(_timm("inception_v3"), 94, 31, "fc", 75),
    "repvgg": Family(_timm("repvgg_a0", blocks=_REPVGG, stem_chs=16), 3, 0, "head.fc"),
    "darknet": Family(_timm("darknet17"), 11, 5, "head.fc"),
    "vovnet": Family(_timm("ese_vovnet19b_slim"), 19, 0, "head.fc"),
    "hardcorenas": Family(_timm("hardcorenas_a"), 27, 5, "classifier"),
    "vit": Family(_timm("vit_tiny_patch16_224", depth=2, img_size=64), 5, 0, "head"),
}


@functools.cache
def network(family: str) -> nn.Module:
    """The family's network in double precision, with random affine parameters and running statistics that fit it."""
    torch.manual_seed(0)
    model = FAMILIES[family].build().double().requires_grad_(True)
    randomise(model)
    settle(model, FAMILIES[family].example())
    return model


@functools.cache
def space(family: str) -> Space:
    """The family's configuration space."""
    return once(f"family-{family}", lambda: discover(network(family), FAMILIES[family].example(1)))


def randomise(model: nn.Module) -> None:
    """Gives every vector random values, so that no branch is hidden by a scale of zero or a bias of zero."""
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data = 0.5 + torch.rand_like(parameter)


def settle(model: nn.Module, example: Tensor) -> None:
    """Sets the running statistics of batch normalisations to those of a batch."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(example)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def structure(space: Space, seed: int, share: float) -> Tensor:
    """A random structure with about ``share`` of everything and at least one filter in every group.

    At a share of 0 one random filter in every group and no layer are left, at 1 all is there.
    """
    generator = torch.Generator().manual_seed(seed)
    present = torch.rand(len(space), generator=generator, dtype=torch.double) < share
    for group in space.groups:
        present[group.start + int(torch.randint(group.size, (), generator=generator))] = True
    return present


seeds = st.integers(0, 2**31)
shares = st.floats(0, 1)
