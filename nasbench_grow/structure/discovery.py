"""Finds the configuration space of any model: which channels are coupled, which layers can be removed, what they cost.

Torch-Pruning's dependency graph says which entries of which tensors must leave together; from its answer every entry
gets an owner. Grouped convolutions and group normalisations tie the channels of one of their groups into one filter.
What the model does not survive (shown by running it) is fixed, with the reason. Where something but the output is, the
operations of a forward pass are asked (:mod:`nasbench_grow.structure.following`), and the space that can grow more of
the network is taken.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from nasbench_grow.base.devices import DEVICE_ERRORS
from nasbench_grow.base.errors import UserError
from nasbench_grow.cost.macs import count_macs
from nasbench_grow.structure.couplings import OUTPUT, Couplings
from nasbench_grow.structure.layers import removable_layers
from nasbench_grow.structure.rates import attention_rates, weight_rates
from nasbench_grow.structure.space import Layer, Space
from nasbench_grow.structure.subnetwork import detach_kept
from nasbench_grow.structure.tied import has_tied_weights


def discover(model: nn.Module, example: Tensor) -> Space:
    """The configuration space of ``model``, which is left as it is.

    Args:
        model: any module with one tensor input.
        example: one input with a batch axis, as the model takes it (its values do not matter).

    Raises:
        UserError: the model cannot be traced.
    """
    from nasbench_grow.structure.following import followed

    detach_kept(model)
    dense_macs = count_macs(model, example)
    probe, example = _probe(model, example)
    blocks, plain = removable_layers(probe, example)
    graph: Space | UserError
    try:
        if has_tied_weights(probe):
            raise UserError("two of its modules have one weight")
        graph = _by_graph(probe, example, blocks, plain, dense_macs)
    except DEVICE_ERRORS:
        raise
    except UserError as error:
        graph = error
    except Exception as error:  # a kind of layer that the graph does not know
        reason = (str(error) or type(error).__name__).splitlines()[0]
        graph = UserError(f"cannot find what is coupled in {type(model).__name__}: {reason}; give a simpler model")
    else:
        if _is_whole(graph, probe):
            return graph
    try:
        flow = followed(probe, example, blocks, plain, dense_macs)
    except DEVICE_ERRORS:
        raise
    except Exception:
        if isinstance(graph, UserError):
            raise graph from None
        return graph
    if isinstance(graph, Space) and _rank(graph) <= _rank(flow):
        return graph
    return flow


def _is_whole(space: Space, model: nn.Module) -> bool:
    """Whether there is nothing more to find: no module but those of the output is fixed, and every weight shrinks."""
    fixed = {name for name, reason in space.fixed.items() if reason != OUTPUT and not name.startswith("layer ")}
    shrinking = {name for name, _ in space.owners}
    weights = [name for name, parameter in model.named_parameters() if parameter.ndim > 1]
    return not fixed and all(name in shrinking or name.rpartition(".")[0] in space.fixed for name in weights)


def _rank(space: Space) -> tuple[int, int]:
    """The lower, the more of a network can grow: by MACs, then by filters."""
    return space.macs(space.seed()), -space.filters


def _by_graph(probe: nn.Module, example: Tensor, blocks: list[Layer], plain: list[Layer], dense_macs: int) -> Space:
    """The space that the dependency graph gives, without what the network does not survive."""
    from nasbench_grow.structure.exactness import unfaithful

    couplings = Couplings(probe)
    couplings.trace(example)
    rates = weight_rates(probe, example) | attention_rates(probe, example)
    rejected: dict[str, str] = {}
    while True:
        space = couplings.space(blocks, plain, rates, dense_macs, rejected)
        reasons = unfaithful(space, probe, example)
        if not reasons:
            return space
        rejected |= {name.partition("#")[0]: reason for name, reason in reasons.items()}


def _probe(model: nn.Module, example: Tensor) -> tuple[nn.Module, Tensor]:
    """A copy of the model and a batch on which a wrong coupling shows.

    Random affine parameters (fresh networks often start branches at zero), batch statistics (signals neither vanish nor
    explode), no dropout, double precision.
    """
    generator = torch.Generator().manual_seed(0)
    probe = copy.deepcopy(model).double().eval().requires_grad_(True)
    for module in probe.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
    for parameter in probe.parameters():
        if parameter.ndim == 1:
            parameter.data = (0.5 + torch.rand(parameter.shape, generator=generator, dtype=torch.double)).to(parameter)
    if example.is_floating_point():
        batch = torch.randn(4, *example.shape[1:], generator=generator, dtype=torch.double)
        return probe, batch.to(example.device)
    return probe, example
