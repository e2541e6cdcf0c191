"""What is known of a run after each of its epochs."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


class DivergedError(Exception):
    """The training loss is no longer a finite number."""


@dataclass(frozen=True)
class Restructuring:
    """A change of structure within an epoch."""

    at: float
    """Share of the epoch's steps that were done by then, in [0, 1)."""
    macs: int
    """Forward MACs of the network that trained from then on, for one input."""
    widths: dict[str, int]
    """Output channels of its layers, by module name."""


@dataclass(frozen=True)
class Stage:
    """Where a run stands after an epoch: what a method yields."""

    network: nn.Module
    """The network as it stands, to be judged: an ordinary module."""
    loss: float
    """Mean training loss of the epoch."""
    learning_rate: float
    """Of the epoch's last step."""
    log: dict[str, float]
    """Figures of the method's own."""
    purpose: str
    """``training``, or ``search`` where the network trains only to be judged."""
    restructurings: list[Restructuring]
    """What changed within the epoch, in order."""
