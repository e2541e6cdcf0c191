"""The last word on a run: what it returns is held against the definition, with its weights, on data."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from nasbench_grow.base.calling import call, first_samples
from nasbench_grow.base.errors import UserError, one_line
from nasbench_grow.base.precision import cast, cast_model
from nasbench_grow.base.trees import map_tensors, tensors
from nasbench_grow.structure.exactness import masked
from nasbench_grow.structure.space import Space
from nasbench_grow.structure.subnetwork import absorb, carry_state, detach_kept

SAMPLES = 8
"""Of the batch that networks are compared on, at most."""
ACCEPTED = {torch.double: 1e-4, torch.float: 1e-2}
"""Largest difference, as a share of the largest output, by the precision that both compute in."""


def check_returned(space: Space, dense: nn.Module, present: Tensor, network: nn.Module, inputs: Any) -> None:
    """Raise UserError unless a trained network computes what the dense one does with its absent entries at zero.

    Both are compared in evaluation mode and, where they run in it, in double precision. What a network gives that is
    random is not compared.

    Args:
        space: the configuration space of ``dense``.
        dense: the dense network; not changed. Of what ``network`` has, its values do not matter.
        present: the structures of ``network``, shape (structures,), bool.
        network: the sub-network with its trained weights; not changed.
        inputs: a batch of data.

    Warns:
        UserWarning: the two could not be compared.
    """
    inputs, failure = first_samples(inputs, SAMPLES), None
    for precision, accepted in ACCEPTED.items():
        try:
            off = _difference(space, dense, present, network, inputs, precision)
        except Exception as error:  # that precision, or memory: what was trained is not to be lost
            failure = error
            continue
        if off > accepted:
            raise UserError(
                f"the {type(network).__name__} that was trained is no sub-network: it differs from the dense model "
                f"with its absent channels at zero by {off:.1g} of the largest output; give a model whose forward pass "
                "does the same whatever its widths, or fix what mixes its channels"
            )
        return
    assert failure is not None
    warnings.warn(
        f"the trained network was not compared with the dense model, which did not run ({one_line(failure)})",
        stacklevel=3,
    )


@torch.no_grad()
def _difference(
    space: Space, dense: nn.Module, present: Tensor, network: nn.Module, inputs: Any, precision: torch.dtype
) -> float:
    """The largest difference as a share of the largest output; infinite where the outputs are of other shapes."""
    detach_kept(dense)
    detach_kept(network)
    full, small = copy.deepcopy(dense), copy.deepcopy(network)
    absorb(space, full, present, small)
    carry_state(space, (present, small), (space.full(), full))
    full, small = cast_model(full, precision).eval(), cast_model(small, precision).eval()

    def given() -> Any:
        return map_tensors(lambda each: cast(each, precision).clone(), inputs)

    found, again = (_outputs(call(copy.deepcopy(small), given())) for _ in range(2))  # copies: some keep a state
    wanted = _outputs(masked(space, full, present, given()))
    if [output.shape for output in found] != [output.shape for output in wanted]:
        return float("inf")
    fixed = [number for number, output in enumerate(found) if torch.equal(output, again[number])]
    return max((_off(found[number], wanted[number]) for number in fixed), default=0.0)


def _outputs(output: Any) -> list[Tensor]:
    """The real numbers in what a network gives: choices between them may turn over by rounding."""
    return [each for each in tensors(output) if each.is_floating_point()]


def _off(found: Tensor, wanted: Tensor) -> float:
    finite = wanted[wanted.isfinite()]
    same = (found == wanted) | (found.isnan() & wanted.isnan())  # a network that has diverged is another matter
    difference = torch.where(same, 0.0, (found - wanted).abs().nan_to_num(torch.inf))
    return float(difference.max() / (finite.abs().max() + 1e-12)) if len(finite) else float(not bool(same.all()))
