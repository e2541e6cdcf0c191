"""The suite's own backbones, one file a family. Importing this package registers them with timm.

>>> import timm, nasbench_grow.backbones
>>> network = timm.create_model("cifar_resnet20", num_classes=10, in_chans=3)
"""

import pkgutil
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import timm
from torch import nn

from nasbench_grow.backbones.own_function import own_function
from nasbench_grow.backbones.registering import SUMMARIES
from nasbench_grow.base.errors import UserError, unknown

for _family in pkgutil.iter_modules(__path__, prefix=f"{__name__}."):
    import_module(_family.name)  # registers what it defines

__all__ = ["SUMMARIES", "create", "options_for"]


def create(name: str, num_classes: int | None, in_chans: int = 3, **options: Any) -> nn.Module:
    """A fresh network with random weights: one of ours, any model that timm knows by ``name``, or what a function
    ``module:function`` gives.

    It maps images (B, in_chans, H, W) to (B, num_classes) logits; those for other tasks say what they map. ``options``
    are timm's.

    Raises:
        UserError: timm has no such model; the line names the nearest one.
    """
    if ":" in name:
        return own_function(name, num_classes, in_chans)
    if not timm.is_model(name):
        nearest = str(unknown("backbone", name, timm.list_models())).partition(" (known:")[0]
        raise UserError(f"{nearest} (known: {', '.join(sorted(SUMMARIES))}, or any name of timm.list_models())")
    return timm.create_model(name, pretrained=False, num_classes=num_classes, in_chans=in_chans, **options)


def options_for(name: str, input_shape: Sequence[int]) -> dict[str, Any]:
    """The options that :func:`create` needs for inputs of a shape (channels, height, width): the size of the images,
    for models that are built for one."""
    config = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if config is None or not config.fixed_input_size or len(input_shape) != 3:
        return {}
    size = tuple(input_shape[1:])
    return {} if tuple(config.input_size[1:]) == size else {"img_size": size}
