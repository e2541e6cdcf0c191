"""A network's architecture as text, and back: no pickle, and no class instance is needed where timm made the original.

The text is JSON: which timm model it was made from and how (:mod:`nasbench_grow.structure.origin`), which layers are
gone, the shape of every tensor that changed and, of those that became longer, the shape that they had.
A saved network is one safetensors file with this text in its header, and with what tells whether the network that is
loaded is the one that was saved (:mod:`nasbench_grow.structure.answers`).
"""

from __future__ import annotations

import copy
import json
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nasbench_grow.base.errors import UserError, one_line
from nasbench_grow.base.files import write_whole
from nasbench_grow.base.given import check_model, path_of
from nasbench_grow.structure import origin
from nasbench_grow.structure.answers import answers, difference
from nasbench_grow.structure.subnetwork import fit
from nasbench_grow.structure.widening import NEW, resample

FORMAT = "nasbench-grow 1"
FORMAT_CHANGED = "nasbench-grow 2"
"""Of networks that timm's call alone does not make: versions that do not know ``changes`` must refuse them."""


def describe(network: nn.Module, full: nn.Module) -> str:
    """The architecture of ``network`` as text.

    Args:
        network: a sub-network of ``full``, or what :func:`nasbench_grow.structure.widening.widen` made of it.
        full: the dense network. If timm made it, the text names it and is enough to rebuild the network anywhere.

    Raises:
        UserError: ``network`` has modules or tensors that ``full`` does not have.
    """
    check_model(network)
    check_model(full)
    whole = _shapes(full)
    original = dict(full.named_modules())
    strange = [
        *(path for path, _ in network.named_modules() if path not in original),
        *(name for name in _shapes(network) if name not in whole),
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
    lasting = network.state_dict().keys()
    changed = {
        name: shape
        for name, shape in _shapes(network).items()
        if shape != whole[name] and (name in lasting or not _is_longer(shape, whole[name]))  # a state grows by itself
    }
    made_by = origin.origin_of(full)
    known_as = FORMAT_CHANGED if "changes" in made_by else FORMAT
    plan = {"format": known_as, **made_by, "removed": removed, "shapes": changed}
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
        if plan["format"] not in (FORMAT, FORMAT_CHANGED):
            raise ValueError(plan["format"])
        wider, changes = plan.get("wider", {}), plan.get("changes", {})
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{str(text)[:40]!r}... is not an architecture of format {FORMAT!r}; give what describe() gave"
        ) from error
    if full is None:
        if backbone is None:
            raise UserError(
                "this network's backbone, as it was made or changed, is not a timm model; give a dense instance of it: "
                "load(path, model=...)"
            )
        try:
            full = origin.make(backbone, options, changes)
        except (AttributeError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(
                f"this version of timm does not make {backbone!r} as it was made ({one_line(error)}); give a dense "
                "instance of it: load(path, model=...)"
            ) from error
    check_model(full)
    network = copy.deepcopy(full)
    tied: dict[int, Tensor] = {}
    kept: list[Tensor] = []  # so that no new tensor gets the id of an old one
    try:
        for path in removed:
            network.get_submodule(path)
            network.set_submodule(path, nn.Identity())
        for name, shape in shapes.items():
            prefix, _, key = name.rpartition(".")
            module = network.get_submodule(prefix)
            old = getattr(module, key)
            if id(old) not in tied:
                has = list(old.shape)
                if has != wider[name] if name in wider else _is_longer(shape, has):
                    raise ValueError(f"{name} has the shape {has}, from which {shape} was not made")
                new = _resized(old.detach(), shape)
                if key in module._parameters:
                    new = nn.Parameter(new, requires_grad=old.requires_grad)
                tied[id(old)] = tied[id(new)] = new  # a module under two names comes again with its new tensor
                kept.append(old)
            setattr(module, key, tied[id(old)])
    except (AttributeError, ValueError) as error:
        raise UserError(
            f"the architecture does not fit {type(full).__name__}: {error}; give the model it came from"
        ) from error
    fit(network, full)
    return network


def save(
    network: nn.Module,
    architecture: str,
    path: str | os.PathLike[str],
    *,
    example: Any = None,
    class_names: Sequence[str] = (),
) -> Path:
    """Writes weights and architecture to one safetensors file, atomically; returns its path.

    Args:
        network: what to save; it may be on any device and of any type of numbers.
        architecture: what :func:`describe` said of it.
        path: the file to write.
        example: an input with a batch axis (a tensor, or lists, tuples and dicts of them). With it the file keeps a
            few numbers that the network answers, and :func:`load` refuses to give a network that answers otherwise.
        class_names: of the classes in the order of the outputs; the loaded network has them as ``class_names``.

    Raises:
        UserError: the folder does not exist or cannot be written, or the network keeps a state that is no tensor.
    """
    from safetensors.torch import save as to_bytes

    check_model(network)
    path = path_of(path)
    if not path.parent.is_dir():
        raise UserError(f"no folder {str(path.parent)!r} to save {path.name!r} in; make it first")
    state = network.state_dict()
    other = next((name for name, value in state.items() if not isinstance(value, Tensor)), None)
    if other is not None:
        raise UserError(
            f"the network's state {other!r} is a {type(state[other]).__name__}, and a file holds tensors only; give "
            "its module no get_extra_state()"
        )
    inside = {name: buffer for name, buffer in network.named_buffers() if name not in state}
    tensors: dict[str, Tensor] = {}
    names: dict[tuple[Any, ...], str] = {}
    aliases: dict[str, str] = {}
    for name, tensor in {**state, **inside}.items():
        memory = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        first = names.setdefault(memory, name) if tensor.numel() else name
        if first == name:
            tensors[name] = tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        else:
            aliases[name] = first
    details = {
        "versions": getattr(state, "_metadata", {}),
        "aliases": aliases,
        "not_persistent": list(inside),
        "answers": None if example is None else answers(network, example),
        "class_names": list(class_names),
    }
    try:
        write_whole(path, to_bytes(tensors, metadata={"architecture": architecture, "details": json.dumps(details)}))
    except OSError as error:
        raise UserError(f"cannot write {str(path)!r}: {error.strerror}; free space or give another path") from error
    return path


def load(path: str | os.PathLike[str], model: nn.Module | None = None) -> nn.Module:
    """The network that :func:`save` wrote, in evaluation mode; its ``class_names`` are those that were saved.

    Args:
        path: a file of :func:`save`.
        model: a dense instance of the original class, for networks that timm cannot make.

    Raises:
        UserError: no such file, not one of ours, ``model`` is not of the original class and size, or the network
            answers otherwise than the one that was saved.
    """
    from safetensors import SafetensorError, safe_open

    if not path_of(path).is_file():
        raise UserError(f"no file {str(path)!r}; give a file that save() wrote")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"{str(path)!r} is damaged or no safetensors file ({error}); save the network again") from error
    if "architecture" not in header:
        raise UserError(f"{str(path)!r} holds no architecture; give a file that nasbench_grow saved")
    details = json.loads(header.get("details", "{}"))
    network = rebuild(header["architecture"], model)
    tensors |= {name: tensors[first] for name, first in details.get("aliases", {}).items()}
    inside = {name: tensors.pop(name) for name in details.get("not_persistent", ())}
    state = OrderedDict(tensors)
    versions = details.get("versions", getattr(network.state_dict(), "_metadata", {}))
    state._metadata = OrderedDict(versions)  # type: ignore[attr-defined]  # by which modules know old states
    origin_given = "the model it came from" if model is not None else "a dense instance of it: load(path, model=...)"
    try:
        for name, tensor in _tensors(network):
            if name in state and tensor.dtype != state[name].dtype:
                tensor.data = tensor.data.to(state[name].dtype)
        network.load_state_dict(state)
        for name, buffer in inside.items():
            prefix, _, key = name.rpartition(".")
            holder = network.get_submodule(prefix)
            holder._buffers[key] = buffer.to(holder.get_buffer(key).device)
    except (AttributeError, RuntimeError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(
            f"{str(path)!r} does not fit {type(network).__name__}: {reason}; give {origin_given}"
        ) from error
    network.eval()
    wrong = difference(network, details["answers"]) if details.get("answers") else None
    if wrong is not None:
        raise UserError(
            f"{str(path)!r} loads into a {type(network).__name__} that answers otherwise than the network that was "
            f"saved: {wrong}; give {origin_given}, made with the options of then"
        )
    if details.get("class_names"):
        network.class_names = details["class_names"]
    return network


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


def _tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and buffer by each of its names, those that no state holds as well."""
    yield from network.named_parameters(remove_duplicate=False)
    yield from network.named_buffers(remove_duplicate=False)


def _shapes(network: nn.Module) -> dict[str, list[int]]:
    state = {name: value for name, value in network.state_dict().items() if isinstance(value, Tensor)}
    return {name: list(tensor.shape) for name, tensor in {**state, **dict(_tensors(network))}.items()}


def _pretty(value: Any) -> str:
    """JSON with one entry of the outermost level a line."""
    if isinstance(value, dict) and value:
        return "{\n" + ",\n".join(f" {json.dumps(key)}: {json.dumps(inner)}" for key, inner in value.items()) + "\n}"
    return json.dumps(value)
