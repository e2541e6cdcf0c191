"""A model under examination, and the last word on every space that was found for it."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from torch import nn

from nasbench_grow.cost.macs import count_macs
from nasbench_grow.structure.conditions import probe_of
from nasbench_grow.structure.faults import Faults
from nasbench_grow.structure.layers import removable_layers
from nasbench_grow.structure.pricing import priced
from nasbench_grow.structure.space import Space

MOST_ROUNDS = 10
"""How often what the model does not survive is fixed and the rest tried again."""
UNSETTLED = "its removal changes what it should not, whatever else is fixed"
"""Why the rest is fixed, too, after so many rounds."""


class Trial:
    """A model to be examined: a copy of it on which wrong couplings show, and the last word on every space of it.

    Attributes:
        probe: the copy, with inputs for it.
        blocks, plain: its removable layers.
        dense_macs: what it costs.
    """

    def __init__(self, model: nn.Module, example: Any) -> None:
        self.model, self.example = model, example
        self.dense_macs = count_macs(model, example)
        self.probe = probe_of(model, example)
        self.blocks, self.plain = removable_layers(self.probe.module, self.probe.inputs)
        self._faults: dict[int, Faults] = defaultdict(
            lambda: Faults(self.probe.module, self.probe.inputs, self.probe.tolerance)
        )  # of each view

    def judge(self, space: Space) -> Space | dict[str, str]:
        """The space with all that it costs; or the groups and layers that the network does not survive without, or
        whose MACs are not understood, each with the reason."""
        reasons: dict[str, str] = {}
        for number, _ in enumerate(self.probe.views()):
            reasons |= self._faults[number].of(space)
        return reasons or priced(space, self.model, self.example)

    def passed(self, space: Space) -> Space | None:
        """The space with all that it costs, None where anything is wrong with it: :meth:`judge` without asking what."""
        if any(self._faults[number].any(space) is not None for number, _ in enumerate(self.probe.views())):
            return None
        found = priced(space, self.model, self.example)
        return found if isinstance(found, Space) else None


def everything(space: Space, reason: str) -> dict[str, str]:
    """All groups and layers of a space, each with the reason why it is fixed."""
    return dict.fromkeys(
        [*(group.name.partition("#")[0] for group in space.groups), *(layer.name for layer in space.layers)], reason
    )
