"""What layers cost by the entry of each of their axes, from the one counter."""

from __future__ import annotations

from torch import Tensor, nn

from nasbench_grow.cost.macs import macs_by_module
from nasbench_grow.structure.attention import features_axis, is_attention
from nasbench_grow.structure.layers import CONVS
from nasbench_grow.structure.recurrent import RECURRENT
from nasbench_grow.structure.space import Axis


def weight_rates(model: nn.Module, example: Tensor) -> dict[tuple[Axis, ...], float]:
    """MACs, from the one counter, per pair of output and input entry of every weight that multiplies; by the axes along
    which those run."""
    rates: dict[tuple[Axis, ...], float] = {}
    modules = dict(model.named_modules())
    for name, macs in macs_by_module(model, example).items():
        module = modules.get(name)
        if isinstance(module, (CONVS, nn.Linear, RECURRENT)):
            weights = {key: weight.shape[:2].numel() for key, weight in module.named_parameters() if weight.ndim > 1}
            pairs = {key: ((f"{name}.{key}", 0), (f"{name}.{key}", 1)) for key in weights}
            rates |= {pairs[key]: macs / sum(weights.values()) for key in weights}
    return rates


def attention_rates(model: nn.Module, example: Tensor) -> dict[tuple[Axis, ...], float]:
    """MACs per feature of every attention layer's heads."""
    layers = {name: module for name, module in model.named_modules() if is_attention(module)}
    if not layers:
        return {}  # most models have none: there is nothing to trace again
    return {
        (features_axis(name),): macs / layers[name].proj.weight.shape[1]
        for name, macs in macs_by_module(model, example).items()
        if name in layers
    }
