"""By what call timm makes a dense network again, and what of it was made otherwise than that call makes it.

timm keeps part of the options of that call (activation, pooling, stride, epsilon, rates of dropout), and a user may
change what it made. So the network is compared, module by module, with the one that the options known give. What
differs in plain values or in layers without weights is written down; where anything else differs, nothing but the
model itself will do.
"""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Iterator
from enum import Enum
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

_OWN = frozenset(vars(nn.Module()))
_NO_PART = {"pretrained_cfg", "default_cfg", "pretrained_cfg_overlay", "pretrained_model_args", "_model_args"}
"""Attributes of timm's that no output depends on."""
_FETCHING = {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"}
"""Options of timm's that no file may set: they name other files and addresses."""
_LIBRARIES = ("torch.nn.", "timm.layers.", "timm.models.")
"""Whose classes a file may name."""
_DEEPEST = 6

Changes = dict[str, dict[str, Any]]
"""For the path of a module the attributes that it has otherwise, and under ``"class"`` a class in the place of its."""


def origin_of(full: nn.Module) -> dict[str, Any]:
    """``backbone``, ``options`` and, where something remains, ``changes`` by which :func:`make` makes a network of the
    same function and shapes; ``backbone`` is None where timm cannot."""
    config: Any = getattr(full, "pretrained_cfg", None) or {}
    name: str | None = config.get("architecture")
    for options in () if name is None else _options(full, name):
        assert name is not None
        default = _shaped(name, options)
        changes = None if default is None else _differences(default, full)
        if changes is not None:
            return {"backbone": name, "options": options, **({"changes": changes} if changes else {})}
    return {"backbone": None, "options": {}}


def make(backbone: str, options: dict[str, Any], changes: Changes) -> nn.Module:
    """A fresh network of what :func:`origin_of` gave.

    Raises:
        AttributeError, TypeError, ValueError: the installed timm does not make such a network.
    """
    if fetching := _FETCHING & options.keys():
        raise ValueError(f"the option {min(fetching)!r} would fetch other weights")
    network = _create(backbone, _decoded(options))
    for path, attributes in changes.items():
        attributes = dict(attributes)
        module = network.get_submodule(path)
        if "class" in attributes:
            module = _bare(attributes.pop("class"))
            network.set_submodule(path, module)
        for key, value in attributes.items():
            setattr(module, key, _decoded(value))
    return network


def _options(full: nn.Module, name: str) -> Iterator[dict[str, Any]]:
    """Options worth a try, as JSON holds them: those that timm kept, what shapes the ends of the network, and whatever
    else its class takes and keeps."""
    given = {key: _encoded(value) for key, value in getattr(full, "_model_args", {}).items() if _is_plain(value)}
    get_head: Any = getattr(full, "get_classifier", None)
    head = None if get_head is None else get_head()
    ends = {"num_classes": head.out_features if isinstance(head, nn.Linear) else getattr(full, "num_classes", None)}
    first = next((tensor for tensor in full.parameters() if tensor.ndim == 4), None)
    if first is not None:  # a network of words has no input channels
        ends["in_chans"] = first.shape[1]
    yield {**given, **ends}
    yield ends
    size = next((vars(module)["img_size"] for module in full.modules() if "img_size" in vars(module)), None)
    sized = ends if size is None else {**ends, "img_size": _encoded(size)}
    yield sized
    default = _shaped(name, sized)
    if default is not None and type(default) is type(full):
        kept = {
            key: _encoded(vars(full)[key])
            for key in inspect.signature(type(full).__init__).parameters
            if key in vars(full) and _is_plain(vars(full)[key]) and vars(full)[key] != vars(default).get(key)
        }
        yield {**kept, **sized}


def _create(backbone: str, options: dict[str, Any]) -> nn.Module:
    from nasbench_grow.backbones import create

    return create(backbone, **options)


def _shaped(name: str, options: dict[str, Any]) -> nn.Module | None:
    """What the call makes, without memory where it can be made so; None if the call fails."""
    for device in ("meta", "cpu"):
        try:
            with torch.device(device), torch.random.fork_rng(devices=[]):
                return _create(name, _decoded(options))
        except Exception:  # whatever timm raises for options that a model does not have
            continue
    return None


def _differences(default: nn.Module, full: nn.Module) -> Changes | None:
    """What must be changed of a default network so that it computes what ``full`` does; None: more than can be."""
    found: Changes = {}
    pairs: list[tuple[str, nn.Module | None, nn.Module]] = [("", default, full)]
    while pairs:
        path, was, module = pairs.pop()
        names = list(module._modules)
        if was is not None and type(was) is type(module) and list(was._modules) == names:
            attributes = _changed(was, module)
            if attributes is None or not _same_tensors(was, module):
                return None
            for name in names:
                other = module._modules[name]
                if other is not None:
                    pairs.append((f"{path}.{name}" if path else name, was._modules[name], other))
                elif was._modules[name] is not None:
                    return None
        else:
            attributes = _as_leaf(module) if path else None
            if attributes is None:
                return None
        if attributes:
            found[path] = attributes
    return found


def _changed(was: nn.Module, module: nn.Module) -> dict[str, Any] | None:
    """The attributes that a module of the same class has otherwise; None if one of them is no plain value."""
    before, after = _attributes(was), _attributes(module)
    if len(was._forward_hooks) != len(module._forward_hooks):
        return None
    if len(was._forward_pre_hooks) != len(module._forward_pre_hooks) or before.keys() - after.keys():
        return None
    changed = {}
    for key, value in after.items():
        if key not in before or _signature(before[key]) != _signature(value):
            if not _is_plain(value) or (key in before and not _is_plain(before[key])):
                return None
            changed[key] = _encoded(value)
    return changed


def _same_tensors(was: nn.Module, module: nn.Module) -> bool:
    """Whether two modules hold parameters and buffers of the same names and shapes. Buffers that no state holds may
    have any shape: they are saved as they are."""
    inside = module._non_persistent_buffers_set

    def shapes(holder: nn.Module) -> dict[str, Any]:
        held = {**holder._parameters, **holder._buffers}
        return {key: None if key in inside or tensor is None else tensor.shape for key, tensor in held.items()}

    return shapes(was) == shapes(module) and was._non_persistent_buffers_set == inside


def _as_leaf(module: nn.Module) -> dict[str, Any] | None:
    """Class and attributes of a library's layer without weights or layers inside; None if it is none."""
    name = f"{type(module).__module__}.{type(module).__qualname__}"
    holds = module._parameters or module._buffers or module._modules or module._forward_hooks
    values = _attributes(module)
    if holds or not name.startswith(_LIBRARIES) or not all(map(_is_plain, values.values())):
        return None
    return {"class": name, **{key: _encoded(value) for key, value in values.items()}}


def _bare(name: str) -> nn.Module:
    """An instance of a library's class of layers, with nothing set.

    Raises:
        ValueError: there is no such class, or it is not of those libraries.
    """
    module, _, cls = name.rpartition(".")
    found = getattr(importlib.import_module(module), cls, None) if name.startswith(_LIBRARIES) else None
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ValueError(f"there is no layer {name!r}")
    made: nn.Module = found.__new__(found)
    nn.Module.__init__(made)
    return made


def _attributes(module: nn.Module) -> dict[str, Any]:
    """What a module's class made it keep, its layers, tensors and hooks apart."""
    return {key: value for key, value in vars(module).items() if key not in _OWN and key not in _NO_PART}


def _signature(value: Any, depth: int = 0) -> Any:
    """What tells two values apart that may be of any kind, as far as outputs depend on them."""
    if _is_plain(value):
        return json.dumps(_encoded(value), sort_keys=True)
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    if depth == _DEEPEST:
        return name
    inner = partial(_signature, depth=depth + 1)
    if isinstance(value, (type, FunctionType, BuiltinFunctionType, MethodType)):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, partial):
        return name, inner(value.func), inner(value.args), inner(value.keywords)
    if isinstance(value, Tensor):
        return name, tuple(value.shape), value.dtype
    if isinstance(value, Enum | torch.dtype | torch.device):
        return name, str(value)
    if isinstance(value, dict):
        return name, {str(key): inner(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return name, [inner(each) for each in value]
    if isinstance(value, nn.Module):
        return name, value.extra_repr()
    return name, {key: inner(each) for key, each in getattr(value, "__dict__", {}).items()}


def _is_plain(value: Any) -> bool:
    """Whether JSON holds a value once its tuples are marked."""
    if isinstance(value, list | tuple):
        return type(value) in (list, tuple, torch.Size) and all(map(_is_plain, value))
    if isinstance(value, dict):
        return type(value) is dict and all(type(key) is str and _is_plain(each) for key, each in value.items())
    return value is None or type(value) in (bool, int, float, str)


def _encoded(value: Any) -> Any:
    """A plain value with each tuple as ``{"()": [...]}``."""
    if isinstance(value, tuple):
        return {"()": [_encoded(each) for each in value]}
    if isinstance(value, list):
        return [_encoded(each) for each in value]
    return {key: _encoded(each) for key, each in value.items()} if isinstance(value, dict) else value


def _decoded(value: Any) -> Any:
    """What :func:`_encoded` was given."""
    if isinstance(value, list):
        return [_decoded(each) for each in value]
    if isinstance(value, dict):
        if value.keys() == {"()"}:
            return tuple(map(_decoded, value["()"]))
        return {key: _decoded(each) for key, each in value.items()}
    return value
