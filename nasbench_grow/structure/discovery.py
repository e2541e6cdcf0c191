"""Finds the configuration space of any model: which channels are coupled, which layers can be removed, what they cost.

The dependency graph says which entries of which tensors must leave together
(:mod:`nasbench_grow.structure.couplings`). What the model does not survive (shown by running it) is fixed, with the
reason. Where something but the output is, the operations of a forward pass are asked
(:mod:`nasbench_grow.structure.following`), and the space that can grow more of the network is taken.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

from nasbench_grow.base import randomness
from nasbench_grow.base.devices import DEVICE_ERRORS
from nasbench_grow.base.errors import UserError, one_line
from nasbench_grow.base.given import check_example, check_model
from nasbench_grow.base.trees import device_of
from nasbench_grow.structure.couplings import SLICEABLE, Couplings
from nasbench_grow.structure.exactness import OUTPUT
from nasbench_grow.structure.following import followed
from nasbench_grow.structure.rates import attention_rates, weight_rates
from nasbench_grow.structure.space import Space
from nasbench_grow.structure.subnetwork import detach_kept
from nasbench_grow.structure.tied import has_tied_weights
from nasbench_grow.structure.trial import MOST_ROUNDS, UNSETTLED, Trial, everything

_Found = TypeVar("_Found")


def discover(model: nn.Module, example: Any) -> Space:
    """The configuration space of ``model``, which is left as it is, as are all random generators.

    Args:
        model: any module.
        example: one input with a batch axis, as the model takes it (its values do not matter): a tensor, a tuple of
            what ``forward`` takes, or a dict of it by keyword, in any nesting.

    Raises:
        UserError: the model cannot be traced.

    Warns:
        UserWarning: the model is random even in evaluation mode.
    """
    check_model(model)
    check_example(example)
    device = device_of(example)
    states = randomness.states(device)
    try:
        return find_space(model, example)
    finally:
        randomness.put_back(states, device)


def find_space(model: nn.Module, example: Any) -> Space:
    """What :func:`discover` gives. What it draws, for layers that stand in for others, stays drawn: a training run goes
    on from there."""
    if isinstance(model, SLICEABLE):
        raise UserError(
            f"nothing in this model can be grown: a {type(model).__name__} alone gives what the model gives; give a "
            "network of several layers"
        )
    detach_kept(model)
    trial = Trial(model, example)
    graph = _attempted(lambda: _Graph(trial), model)
    if isinstance(graph, _Graph) and graph.passed is not None and _is_whole(graph.passed, model):
        return graph.passed
    flow: Space | None = None
    try:
        flow = followed(trial)
    except DEVICE_ERRORS:
        raise
    except Exception:  # the graph's error, if there is one, says more
        flow = None
    if flow is not None and (isinstance(graph, UserError) or _is_whole(flow, model)):
        return flow
    found = _attempted(graph.space, model) if isinstance(graph, _Graph) else graph
    if isinstance(found, UserError):
        if flow is None:
            raise found
        return flow
    return found if flow is None or _rank(found) <= _rank(flow) else flow


def _attempted(find: Callable[[], _Found], model: nn.Module) -> _Found | UserError:
    """What ``find`` gives, or why it does not."""
    try:
        return find()
    except DEVICE_ERRORS:
        raise
    except UserError as error:
        return error
    except Exception as error:  # a kind of layer that the graph does not know
        reason = one_line(error)
        return UserError(f"cannot find what is coupled in {type(model).__name__}: {reason}; give a simpler model")


def _is_whole(space: Space, model: nn.Module) -> bool:
    """Whether there is nothing more to find: no module but those of the output is fixed, and every weight shrinks."""
    fixed = {name for name, reason in space.fixed.items() if reason != OUTPUT and not name.startswith("layer ")}
    shrinking = {name for name, _ in space.owners}
    weights = [name for name, parameter in model.named_parameters() if parameter.ndim > 1]
    return not fixed and all(name in shrinking or name.rpartition(".")[0] in space.fixed for name in weights)


def _rank(space: Space) -> tuple[int, int]:
    """The lower, the more of a network can grow: by MACs, then by filters."""
    return space.macs(space.seed()), -space.filters


class _Graph:
    """What the dependency graph says of a model.

    Attributes:
        passed: the space that it gives, None where anything is wrong with it.
    """

    def __init__(self, trial: Trial) -> None:
        if has_tied_weights(trial.model):
            raise UserError("two of its modules have one weight")
        module, inputs = trial.probe.module, trial.probe.inputs
        self.trial, self.couplings = trial, Couplings(module)
        for _ in trial.probe.views():
            self.couplings.trace(inputs)
        self.rates = weight_rates(module, inputs) | attention_rates(module, inputs)
        self.passed = trial.passed(self.couplings.space(trial, self.rates, {}))

    def space(self) -> Space:
        """The space without what the network does not survive."""
        if self.passed is not None:
            return self.passed
        rejected: dict[str, str] = {}
        for _ in range(MOST_ROUNDS):
            space = self.couplings.space(self.trial, self.rates, rejected)
            found = self.trial.judge(space)
            if isinstance(found, Space):
                return found
            rejected |= {name.partition("#")[0]: reason for name, reason in found.items()}
        return self.couplings.space(self.trial, self.rates, everything(space, UNSETTLED) | rejected)
