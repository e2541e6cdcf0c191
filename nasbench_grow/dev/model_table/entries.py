"""Which models the table has: ``SOURCE:MODEL`` names that a reader knows, such as ``timm:resnet18``.

Of timm the smallest model of every family, and well-known ones; models of torchvision; layouts written by hand.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from nasbench_grow.dev.model_table import handwritten, timm_models, torchvision_models

Entry = dict[str, Any]
"""A model's ``family`` (a module of timm, or what it is for) and, of the smallest of a family, ``of`` how many."""
_SOURCES = {"timm": timm_models, "torchvision": torchvision_models, "handwritten": handwritten}


def entries(path: Path, processes: int) -> dict[str, Entry]:
    """All models of the table by their names.

    Args:
        path: the file that says which models of timm are the smallest (:func:`timm_models.chosen`).
        processes: how many families are searched at once where it does not.
    """
    smallest = timm_models.chosen(timm_models.families(), path, processes)
    found: dict[str, Entry] = {
        f"timm:{choice['model']}": {"family": family, "of": choice["of"]} for family, choice in smallest.items()
    }
    for name in timm_models.WELL_KNOWN:
        found.setdefault(f"timm:{name}", {"family": timm_models.family(name)})
    for source, module in (("torchvision", torchvision_models), ("handwritten", handwritten)):
        found |= {f"{source}:{name}": {"family": family} for name, family in module.FAMILIES.items()}
    return found


def build(name: str) -> tuple[nn.Module, Any]:
    """A model of the table with random weights, in evaluation mode, and one input for it.

    Raises:
        UserError: it runs on none.
    """
    source, _, model = name.partition(":")
    return _SOURCES[source].build(model)
