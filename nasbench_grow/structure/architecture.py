"""A network's architecture as text, and back: no pickle, and no class instance is needed where timm made the original.

The text is JSON: which timm model it was made from, which layers are gone, the shape of every tensor that changed, of
those that became longer the shape that they had, and attributes that count what has shrunk.
A saved network is one safetensors file with this text in its header.
"""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nasbench_grow.base.errors import UserError
from nasbench_grow.structure import attributes
from nasbench_grow.structure.subnetwork import detach_kept, fit
from nasbench_grow.structure.widening import NEW, resample

FORMAT = "nasbench-grow 1"


def describe(network: nn.Module, full: nn.Module) -> str:
    """The architecture of ``network`` as text.

    Args:
        network: a sub-network of ``full``, or what :func:`nasbench_grow.structure.widening.widen` made of it.
        full: the dense network. If timm made it, the text names it and is enough to rebuild the network anywhere.

    Raises:
        UserError: ``network`` has modules or tensors that ``full`` does not have.
    """
    whole = _shapes(full)
    original = dict(full.named_modules())
    strange = [
        *(path for path, _ in network.named_modules() if path not in original),
        *(name for name in network.state_dict() if name not in whole),
    ]
    if strange:
        raise UserError(
            f"the network was not made from the {type(full).__name__} given, which has no {strange[0]!r}; "
            "give the model it came from"
        )
    removed = [
        path
        for path, module in network.named_modules()
        if isinstance(module, nn.Identity) and not isinstance(original[path], nn.Identity)
    ]
    changed = {name: shape for name, shape in _shapes(network).items() if shape != whole[name]}
    plan = {"format": FORMAT, **_origin(full), "removed": removed, "shapes": changed}
    sizes = attributes.changed(network, full)
    if sizes:
        plan["attributes"] = sizes
    wider = {name: whole[name] for name, shape in changed.items() if _is_longer(shape, whole[name])}
    if wider:
        plan["wider"] = wider
    lines = [f"{json.dumps(key)}: {_pretty(value)}" for key, value in plan.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def rebuild(text: str, full: nn.Module | None = None) -> nn.Module:
    """A fresh network of the described architecture: a cut through a freshly initialised dense network and, where it is
    wider than that, weights drawn from the dense ones, the same at each call.

    Args:
        text: what :func:`describe` gave.
        full: a dense instance, needed where timm did not make the original; it is not changed.

    Raises:
        UserError: the text is no architecture, or its origin is unknown and ``full`` is not given or does not fit.
    """
    try:
        plan = json.loads(text)
        backbone, options, removed, shapes = (plan[key] for key in ("backbone", "options", "removed", "shapes"))
        if plan["format"] != FORMAT:
            raise ValueError(plan["format"])
        wider, sizes = plan.get("wider", {}), plan.get("attributes", {})
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{text[:40]!r}... is not an architecture of format {FORMAT!r}; give what describe() gave"
        ) from error
    if full is None:
        if backbone is None:
            raise UserError(
                "this network's backbone is not a timm model; give a dense instance of it: load(path, model=...)"
            )
        full = _create(backbone, options)
    detach_kept(full)
    network = copy.deepcopy(full)
    try:
        for path in removed:
            network.get_submodule(path)
            network.set_submodule(path, nn.Identity())
        for name, shape in shapes.items():
            prefix, _, key = name.rpartition(".")
            module = network.get_submodule(prefix)
            tensor = getattr(module, key).detach()
            has = list(tensor.shape)
            if has != wider[name] if name in wider else _is_longer(shape, has):
                raise ValueError(f"{name} has the shape {has}, from which {shape} was not made")
            tensor = _resized(tensor, shape)
            setattr(module, key, nn.Parameter(tensor) if key in module._parameters else tensor)
    except (AttributeError, ValueError) as error:
        raise UserError(
            f"the architecture does not fit {type(full).__name__}: {error}; give the model it came from"
        ) from error
    fit(network, full)
    try:
        attributes.put(network, sizes)
    except (AttributeError, TypeError) as error:
        raise UserError(
            f"the architecture does not fit {type(full).__name__}: {error}; give the model it came from"
        ) from error
    return network


def save(network: nn.Module, architecture: str, path: str | os.PathLike[str]) -> Path:
    """Writes weights and architecture to one safetensors file, atomically; returns its path.

    Raises:
        UserError: the folder does not exist.
    """
    from safetensors.torch import save_file

    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    if not path.parent.is_dir():
        raise UserError(f"no folder {str(path.parent)!r} to save {path.name!r} in; make it first")
    try:
        save_file(tensors, part, metadata={"architecture": architecture})
        with part.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


def load(path: str | os.PathLike[str], model: nn.Module | None = None) -> nn.Module:
    """The network that :func:`save` wrote, in evaluation mode.

    Args:
        path: a file of :func:`save`.
        model: a dense instance of the original class, for networks that timm cannot make.

    Raises:
        UserError: no such file, not one of ours, or ``model`` is not of the original class and size.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise UserError(f"no file {str(path)!r}; give a file that save() wrote")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("architecture")
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"{str(path)!r} is damaged or no safetensors file ({error}); save the network again") from error
    if text is None:
        raise UserError(f"{str(path)!r} holds no architecture; give a file that nasbench_grow saved")
    network = rebuild(text, model)
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(
            f"{str(path)!r} does not fit {type(network).__name__}: {reason}; give the model it came from"
        ) from error
    return network.eval()


def _origin(full: nn.Module) -> dict[str, Any]:
    """Name and options by which timm makes a network of the same shapes; None and {} if it does not."""
    config: Any = getattr(full, "pretrained_cfg", None) or {}
    name = config.get("architecture")
    first = next((tensor for tensor in full.parameters() if tensor.ndim == 4), None)
    if name is not None:
        options = {"num_classes": getattr(full, "num_classes", None)}
        if first is not None:  # a network of words has no input channels
            options["in_chans"] = first.shape[1]
        with torch.device("meta"):
            if _shapes(_create(name, options)) == _shapes(full):
                return {"backbone": name, "options": options}
    return {"backbone": None, "options": {}}


def _create(backbone: str, options: dict[str, Any]) -> nn.Module:
    from nasbench_grow.backbones import create

    return create(backbone, **options)


def _is_longer(shape: list[int], other: list[int]) -> bool:
    """Whether a tensor has more entries than another of its kind along some dimension, or other dimensions."""
    return len(shape) != len(other) or any(map(int.__gt__, shape, other))


def _resized(tensor: Tensor, shape: list[int]) -> Tensor:
    """The first entries of a tensor along each dimension, and new ones behind them where the shape is longer."""
    sources = []
    for old, length in zip(tensor.shape, shape, strict=True):
        places = torch.arange(length)
        sources.append(places.where(places < old, NEW))
    return resample(tensor, sources, torch.Generator().manual_seed(0))


def _shapes(network: nn.Module) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in network.state_dict().items()}


def _pretty(value: Any) -> str:
    """JSON with one entry of the outermost level a line."""
    if isinstance(value, dict) and value:
        return "{\n" + ",\n".join(f" {json.dumps(key)}: {json.dumps(inner)}" for key, inner in value.items()) + "\n}"
    return json.dumps(value)
