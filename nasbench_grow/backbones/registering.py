"""How a backbone of the suite becomes a timm model."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from timm.models import register_model
from torch import nn

from nasbench_grow.base.errors import UserError

SUMMARIES: dict[str, str] = {}
"""One line for each registered backbone, by name: the first line of its docstring."""


def backbone(build: Callable[[int, int], nn.Module]) -> Callable[..., nn.Module]:
    """Register ``build(num_classes, in_chans)`` with timm under its own name.

    The registered function takes what ``timm.create_model`` hands to every model; an option that would need weights or
    a variant that does not exist is refused rather than ignored.
    """

    @wraps(build)
    def entry_point(
        pretrained: bool = False,
        num_classes: int = 10,
        in_chans: int = 3,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: Any = None,
        cache_dir: Any = None,
    ) -> nn.Module:
        if pretrained:
            raise UserError(f"{build.__name__} has no pretrained weights: use pretrained=False")
        network = build(num_classes, in_chans)
        marks = {"pretrained_cfg": {"architecture": build.__name__}, "num_classes": num_classes}
        vars(network).update(marks)  # as timm marks its own: a network tells what it is
        return network

    SUMMARIES[build.__name__] = (build.__doc__ or "").partition("\n")[0]
    register_model(entry_point)
    return entry_point
