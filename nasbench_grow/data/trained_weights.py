"""Files of trained weights from elsewhere, and how they are put into a network that was just built."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nasbench_grow.base.errors import UserError, one_line

_WRAPPERS = ("state_dict", "model", "model_state_dict", "state_dict_ema")
"""Under which training scripts keep a network's state among other things."""


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of one that ``torch.save`` wrote of a state dict; no pickled code runs.

    Raises:
        UserError: no such file, or it is of neither kind.
    """
    from safetensors.torch import load_file

    path = Path(path)
    if not path.is_file():
        raise UserError(f"no checkpoint {str(path)!r}; give a file with the weights of the model, .safetensors or .pth")
    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load has no one error for a file that is none of its own
        raise UserError(
            f"the checkpoint {str(path)!r} cannot be read ({one_line(error)}); save the model's state_dict(), by "
            "safetensors or torch.save"
        ) from error
    for name in _WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(name), Mapping):
            state = state[name]
    tensors = {}
    for name, tensor in state.items() if isinstance(state, Mapping) else ():
        if isinstance(tensor, Tensor):
            tensors[str(name).removeprefix("module.").removeprefix("_orig_mod.")] = tensor
    if not tensors:
        raise UserError(f"the checkpoint {str(path)!r} holds no weights; save the model's state_dict()")
    return tensors


def put_weights(network: nn.Module, weights: Mapping[str, Tensor], path: str | Path) -> list[str]:
    """Puts trained weights into a network, in place; returns the names of those that keep their initial values: the
    classifier's, where it has other classes.

    Raises:
        UserError: the weights are those of another network.
    """
    own = network.state_dict()
    fresh = [name for name in own if name not in weights or weights[name].shape != own[name].shape]
    head = _classifier(network)
    strange = [name for name in fresh if name.rpartition(".")[0] not in head and own[name].ndim]
    strange += [name for name in weights if name not in own]
    if strange:
        name = strange[0]
        has = f"of shape {list(weights[name].shape)}" if name in weights else "missing"
        wants = f"of shape {list(own[name].shape)}" if name in own else "unknown"
        raise UserError(
            f"the checkpoint {str(path)!r} does not fit the {type(network).__name__}: {name!r} is {has} there and "
            f"{wants} here; give weights of the same model (its last layer alone may have other classes)"
        )
    network.load_state_dict({name: tensor for name, tensor in weights.items() if name not in fresh}, strict=False)
    return fresh


def _classifier(network: nn.Module) -> set[str]:
    """Names of the layers that give the logits."""
    config: Any = getattr(network, "pretrained_cfg", None) or {}
    named = config.get("classifier") or ()
    linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    return {named} if isinstance(named, str) else set(named) or set(linear[-1:])
