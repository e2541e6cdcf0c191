"""What users hand over where a model or an example is asked for: checked, in one line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from nasbench_grow.base.errors import UserError
from nasbench_grow.base.trees import tensors

_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def unwrapped(model: Any) -> Any:
    """The model inside of what runs it on several devices or compiles it."""
    while isinstance(model, nn.Module):
        inside = model.module if isinstance(model, _WRAPPERS) else getattr(model, "_orig_mod", None)
        if inside is None:
            break
        model = inside
    return model


def check_model(model: Any) -> None:
    """Raise UserError unless ``model`` is a module that can be taken apart."""
    if not isinstance(model, nn.Module):
        instead = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
        raise UserError(f"the model is {instead}; give an instance of nn.Module")
    for name, module in model.named_modules():
        where = name or "the model"
        if unwrapped(module) is not module:
            raise UserError(
                f"{where} is wrapped in {type(module).__name__}; give what is inside ({_inside(module)}), and wrap the "
                "network that comes out"
            )
        if isinstance(module, torch.jit.ScriptModule):
            raise UserError(f"{where} is compiled by TorchScript and cannot be cut; give the module it was made from")
        if type(module).__module__.startswith("torch.ao."):
            raise UserError(
                f"{where} is a {type(module).__name__}, of a model prepared for quantisation; give it in floating "
                "point, and prepare the network that comes out"
            )
        for parameter in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if parameter.is_meta:
                raise UserError(f"{where} has parameters on the device 'meta', without values; build it on cpu or cuda")
            if isinstance(parameter, UninitializedParameter | UninitializedBuffer):
                raise UserError(f"{where} is a {type(module).__name__} without sizes yet; run the model once before")


def _inside(module: nn.Module) -> str:
    return ".module" if isinstance(module, _WRAPPERS) else "._orig_mod"


def check_example(example: Any) -> None:
    """Raise UserError unless ``example`` holds tensors, each of them with something in it."""
    found = tensors(example)
    if not found:
        raise UserError(
            f"the example is a {type(example).__name__} without tensors; give one input of the model with a batch "
            "axis, e.g. torch.zeros(1, 3, 32, 32), or a tuple or dict of tensors"
        )
    for tensor in found:
        if tensor.is_meta:
            raise UserError("the example is on the device 'meta', without values; give torch.zeros of its shape on cpu")
        if not tensor.numel():
            raise UserError(f"the example has a tensor of shape {tuple(tensor.shape)}; give a batch of at least one")


def path_of(path: Any) -> Path:
    """The path that was given as text or as one; UserError for anything else."""
    if not isinstance(path, (str, os.PathLike)):
        raise UserError(f"the path is a {type(path).__name__}; give the name of a file")
    return Path(path)
