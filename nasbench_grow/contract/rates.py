"""Learning rates while training: one schedule for all parameter groups of an optimizer, each in its own proportion."""

from __future__ import annotations

from torch.optim import Optimizer


def set_learning_rate(optimizer: Optimizer, rate: float, reference: float) -> None:
    """Set the rate of every parameter group to the share ``rate / reference`` of the rate that the group began with.

    A group that began with the reference gets ``rate`` to the last bit. What a group began with is kept in the group as
    ``initial_lr``, as PyTorch's schedulers do it, and thus in the optimizer's state: a resumed run goes on the same.

    Args:
        optimizer: as it was made, or set by this function before.
        rate: of the schedule now, e.g. ``recipe.learning_rate_at(progress)``.
        reference: the schedule's own full rate, e.g. ``recipe.learning_rate``.
    """
    for group in optimizer.param_groups:
        initial = group.setdefault("initial_lr", group["lr"])
        group["lr"] = rate if initial == reference else initial * (rate / reference)
