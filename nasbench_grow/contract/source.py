"""The cell that another one begins with: a trained network, an architecture, a figure of its record."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from nasbench_grow.cost.meter import TrainingMeter


class Source:
    """What a finished cell arrived at. Whoever takes its network or its architecture is billed all of its training.

    Args:
        record: the finished cell's record.
        architecture: its network's architecture as text, for :func:`nasbench_grow.rebuild`.
        load: gives the trained network.
        meter: of the cell that begins with it.
        bill_seconds: told once of the (wall, CPU) seconds that its training took.
    """

    def __init__(
        self,
        record: dict[str, Any],
        architecture: str,
        load: Callable[[], nn.Module],
        meter: TrainingMeter,
        bill_seconds: Callable[[float, float], None] = lambda wall, cpu: None,
    ) -> None:
        self.record = record
        self._architecture, self._load, self._meter, self._bill_seconds = architecture, load, meter, bill_seconds

    @property
    def architecture(self) -> str:
        """The architecture that the cell arrived at, as text."""
        self._bill()
        return self._architecture

    def network(self) -> nn.Module:
        """The trained network that the cell returned, on the device of the run; a new copy at each call."""
        self._bill()
        return self._load()

    def _bill(self) -> None:
        if not self._meter.spent["source"]:  # the meter also remembers it where the run was taken up again
            with self._meter.spending_on("source"):
                self._meter.add(self.record["train_macs"])
            self._bill_seconds(self.record["wall_s"] or 0.0, self.record["cpu_s"] or 0.0)
