"""Finds the removable layers of a model (m_l in the paper, section 3.1).

A residual block, ``y = x + m * g(x)``, is found by its definition: with the last norm or convolution of its branch at
zero, it returns its input. A plain layer, ``y = m * g(x) + (1 - m) * x``, is a convolution that keeps the shape, with
the norm and the activation that follow it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from nasbench_grow.base.calling import call
from nasbench_grow.structure.space import Layer

CONVS = nn.modules.conv._ConvNd
NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm)


def removable_layers(model: nn.Module, example: Any) -> tuple[list[Layer], list[Layer]]:
    """The residual blocks of a model, and the plain layers outside of them, each in forward order.

    Whether a plain layer can really leave is for its channels to say; until then, its groups are unknown.
    """
    calls = _watch(model, example)
    blocks = _residual_blocks(model, calls)
    return blocks, _plain_layers(model, calls, blocks)


def _residual_blocks(model: nn.Module, calls: _Calls) -> list[Layer]:
    """The outermost modules that return their input once the end of their branch is zero."""
    layers: list[Layer] = []
    for path, module in model.named_modules():
        if path in calls.copies and calls.keeps_shape(path) and not _inside(path, layers):
            terminal = _branch_end(path, module, calls)
            if terminal:
                layers.append(Layer((path,), terminal))
    return layers


def _plain_layers(model: nn.Module, calls: _Calls, blocks: Iterable[Layer]) -> list[Layer]:
    """The convolutions outside of ``blocks`` that keep the shape, each with its norm and activation."""
    modules = dict(model.named_modules())
    layers = []
    for path in calls.order:
        module = modules[path]
        plain = isinstance(module, CONVS) and module.groups == 1 and not module.transposed
        if plain and calls.keeps_shape(path) and not _inside(path, blocks):
            norm = _taker(path, calls, modules, _is_norm)
            activation = _taker(norm or path, calls, modules, _is_activation)
            layers.append(Layer(tuple(name for name in (path, norm, activation) if name), ()))
    return layers


@dataclass
class _Calls:
    """What a forward pass was seen to do. All tensors are kept alive, or two might have the same identity."""

    order: list[str] = field(default_factory=list)
    """The modules in the order in which they returned."""
    counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    inputs: dict[str, Tensor] = field(default_factory=dict)
    """Of every module with one tensor input."""
    copies: dict[str, Tensor] = field(default_factory=dict)
    """The inputs of modules with children as they were given: what is inside may change them in place."""
    outputs: dict[str, Tensor] = field(default_factory=dict)

    def keeps_shape(self, path: str) -> bool:
        """Whether a module was called once, and its one input and output are tensors of one shape."""
        given, got = self.inputs.get(path), self.outputs.get(path)
        return self.counts[path] == 1 and given is not None and got is not None and given.shape == got.shape


def _watch(model: nn.Module, example: Any) -> _Calls:
    """Runs the model once and notes what goes through its modules."""
    calls = _Calls()

    def before(name: str, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        if len(arguments) == 1 and isinstance(arguments[0], Tensor):
            calls.inputs[name] = arguments[0]
            if name and any(True for _ in module.children()):
                calls.copies[name] = arguments[0].clone()

    def after(name: str, output: Any) -> None:
        calls.order.append(name)
        calls.counts[name] += 1
        if isinstance(output, Tensor):
            calls.outputs[name] = output

    hooks = []
    for name, module in model.named_modules():
        hooks.append(module.register_forward_pre_hook(lambda *call, name=name: before(name, *call)))
        hooks.append(module.register_forward_hook(lambda _, __, output, name=name: after(name, output)))
    with torch.no_grad():
        call(model, example)
    for hook in hooks:
        hook.remove()
    return calls


def _inside(path: str, layers: Iterable[Layer]) -> bool:
    return any(layer.holds(path) for layer in layers)


def _branch_end(path: str, block: nn.Module, calls: _Calls) -> tuple[str, ...]:
    """Weight and bias of the norm, convolution or linear that ends a block's branch: the block is the identity if they
    are zero. Looked for from the end, past what follows the branch's last norm (squeeze and excitation)."""
    candidates = []
    for name in reversed([name for name in calls.order if name.startswith(path + ".")]):
        module = block.get_submodule(name[len(path) + 1 :])
        if isinstance(module, (CONVS, nn.Linear, *NORMS)) and module.weight is not None:
            candidates.append(name)
    given = calls.copies[path]
    for name in candidates[:5]:
        module = block.get_submodule(name[len(path) + 1 :])
        keys = [key for key, _ in module.named_parameters(recurse=False)]
        zeros = {f"{name}.{key}"[len(path) + 1 :]: torch.zeros_like(module.get_parameter(key)) for key in keys}
        with torch.no_grad():
            if torch.equal(functional_call(block, zeros, (given,)), given):
                return tuple(f"{name}.{key}" for key in keys)
    return ()


def _taker(path: str, calls: _Calls, modules: dict[str, nn.Module], fits: Callable[[nn.Module], bool]) -> str | None:
    """The first module to do something with the output of ``path``, if it fits and keeps the shape."""
    given = calls.outputs[path]
    for name in calls.order[calls.order.index(path) + 1 :]:
        if calls.inputs.get(name) is given:
            if fits(modules[name]):
                return name if calls.keeps_shape(name) else None
            if not isinstance(modules[name], nn.Identity):
                return None
    return None


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, NORMS)


def _is_activation(module: nn.Module) -> bool:
    return "activation" in type(module).__module__  # torch's and timm's all live in modules so named
