"""The models of timm in the table: the smallest of each family, and well-known ones of the families with most models.

A family is a module of ``timm.models`` that registers models. Building the hundreds of names of all families without
weights takes minutes, so the choice of the smallest is kept in a file, for one version of timm.
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
from torch import Tensor, nn

from nasbench_grow.base.errors import UserError
from nasbench_grow.dev.bench.record import bar, write_json

CLASSES = 10
SIZES = (64, 96, 128)
"""Pixels that are tried before a model's own input size."""
WELL_KNOWN = (
    "botnet26t_256",
    "lambda_resnet26t",
    "gernet_s",
    "repvgg_a0",
    "resnet18",
    "resnet50",
    "resnext50_32x4d",
    "seresnet50",
    "resnetv2_50",
    "regnety_002",
    "res2net50_26w_4s",
    "efficientnet_b0",
    "fbnetc_100",
    "mixnet_s",
    "mnasnet_100",
    "mobilenetv1_100",
    "mobilenetv2_100",
    "tf_efficientnetv2_b0",
    "mobilenetv3_small_100",
    "mobilenetv4_conv_small",
    "convnext_atto",
    "convnextv2_atto",
    "cspresnet50",
    "darknet53",
    "dla34",
    "dpn68",
    "ghostnetv2_100",
    "poolformer_s12",
    "vit_small_patch32_224",
    "resmlp_12_224",
)
"""Models that stand beside the smallest of their families."""


def families() -> list[str]:
    """The modules of ``timm.models`` that register models, sorted."""
    return sorted(name for name in timm.list_modules() if hasattr(timm.models, name))


def chosen(names: Iterable[str], path: Path, processes: int) -> dict[str, dict[str, Any]]:
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


def family(name: str) -> str:
    """The family of a model."""
    return timm.models.model_entrypoint(name).__module__.rpartition(".")[2]


def build(name: str) -> tuple[nn.Module, Tensor]:
    """A model with :data:`CLASSES` classes, and a random image of the smallest size that it takes, shape (1, 3, S, S).

    Raises:
        UserError: it takes none.
    """
    own = max((timm.get_pretrained_cfg(name) or timm.models.PretrainedCfg()).input_size)
    for size in (*SIZES, own):
        builds: tuple[dict[str, Any], ...] = (
            {},
            {"img_size": size},
        )  # some take any image, some what they are built for
        for options in builds:
            try:
                model = timm.create_model(name, num_classes=CLASSES, **options).eval()
                example = torch.randn(1, 3, size, size)
                with torch.no_grad():
                    if model(example).shape == (1, CLASSES):
                        return model, example
            except Exception as error:
                reason = (str(error) or type(error).__name__).splitlines()[0]
            else:
                reason = "its output is not one row of logits"
    raise UserError(f"{name} gives no logits for images of {', '.join(map(str, SIZES))} or {own} pixels: {reason}")


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """The choices of an earlier run, if they were made among the models of this timm."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return dict(kept["entries"]) if kept["timm"] == timm.__version__ else {}
