"""Which model stands for each family of timm: its smallest.

A family is a module of ``timm.models`` that registers models. Building the hundreds of names of all families without
weights still takes minutes, so the choice is kept in a file, for one version of timm.
"""

from __future__ import annotations

import json
import multiprocessing
import warnings
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import timm
import torch

from nasbench_grow.base.errors import UserError
from nasbench_grow.dev.bench.record import bar, write_json

CLASSES = 10


def families() -> list[str]:
    """The modules of ``timm.models`` that register models, sorted."""
    return sorted(name for name in timm.list_modules() if hasattr(timm.models, name))


def entries(names: Iterable[str], path: Path, processes: int) -> dict[str, dict[str, Any]]:
    """The smallest model of each family, ``{"model": name, "of": how many were compared}``.

    Args:
        names: the families.
        path: the file of earlier choices, which is used where it is of this timm, and brought up to date.
        processes: how many families are searched at once.
    """
    names = list(names)
    known = _read(path)
    missing = [name for name in names if name not in known]
    context = multiprocessing.get_context("spawn")  # a forked child may inherit a locked thread pool of PyTorch
    with ProcessPoolExecutor(processes, context) as pool, bar("smallest of each family", len(missing)) as progress:
        pending = {pool.submit(smallest, name): name for name in missing}
        for done in as_completed(pending):
            known[pending[done]] = done.result()
            write_json(path, {"timm": timm.__version__, "entries": dict(sorted(known.items()))})
            progress.update()
    return {name: known[name] for name in names}


def smallest(family: str) -> dict[str, Any]:
    """The model of a family with the fewest parameters (the first by name of several), without timm's ``test_`` models.

    Raises:
        UserError: no model of the family can be built without weights.
    """
    sizes = {}
    for name in timm.list_models(module=family):
        if not name.startswith("test_"):
            try:
                with torch.device("meta"), warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    model = timm.create_model(name, num_classes=CLASSES)
            except Exception:  # whatever one model does, the others of its family still stand for it
                continue
            sizes[name] = sum(parameter.numel() for parameter in model.parameters())
    if not sizes:
        raise UserError(f"no model of timm's family {family!r} can be built on the meta device; leave the family out")
    return {"model": min(sizes, key=lambda name: (sizes[name], name)), "of": len(sizes)}


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """The choices of an earlier run, if they were made among the models of this timm."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return dict(kept["entries"]) if kept["timm"] == timm.__version__ else {}
