"""What a training run has cost so far, in multiply-accumulates, by purpose."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

PURPOSES = ("training", "search", "source", "calibration")
"""``training``: of the network that is returned. ``search``: networks trained or judged only to find it. ``source``:
the training of another cell whose network or architecture this one begins with. ``calibration``: passes over training
data that gather statistics."""


class TrainingMeter:
    """Sums the multiply-accumulates of everything that a run does with data, its evaluation by the harness apart.

    An optimizer step costs 3 x forward MACs x batch size: the backward pass is taken as twice the forward pass, once
    for the gradients of the inputs and once for those of the weights. A forward pass alone costs its MACs.

    Args:
        processes: how many share each batch equally; a step of one of them counts for all.
    """

    def __init__(self, processes: int = 1) -> None:
        self._processes = processes
        self.purpose = "training"
        """What is being spent on now."""
        self.spent = dict.fromkeys(PURPOSES, 0)
        """MACs by purpose."""

    @property
    def total(self) -> int:
        """MACs of everything so far."""
        return sum(self.spent.values())

    @contextmanager
    def spending_on(self, purpose: str) -> Iterator[None]:
        """Everything counted inside is for this purpose."""
        before, self.purpose = self.purpose, purpose
        try:
            yield
        finally:
            self.purpose = before

    def step(self, macs: int, batch_size: int) -> None:
        """Add one optimizer step of a network with ``macs`` forward MACs a sample."""
        self.add(3 * macs * batch_size * self._processes)

    def forward(self, macs: int, samples: int) -> None:
        """Add a forward pass over that many samples."""
        self.add(macs * samples * self._processes)

    def add(self, macs: int) -> None:
        """Add MACs that were counted elsewhere."""
        self.spent[self.purpose] += macs

    def state_dict(self) -> dict[str, Any]:
        """The state to resume from."""
        return dict(self.spent)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state that :meth:`state_dict` gave."""
        self.spent = {purpose: int(state[purpose]) for purpose in PURPOSES}
