"""A cell: the smallest thing that the harness runs, skips, resumes and keeps a record of."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from nasbench_grow.base.errors import UserError
from nasbench_grow.harness import registry

PROTOCOL = 1
"""Raise this when the harness changes so that finished records no longer compare; a method has its own ``version``."""

DEFAULT_EPOCHS = 160
"""Epochs of the full recipe on the CIFAR-sized tasks."""

DEFAULT_SETUP = "cpu"


@dataclass(frozen=True)
class Cell:
    """Method x task x backbone x set-up x budget x seed, and how long to train on how much."""

    method: str
    task: str
    backbone: str
    budget: float
    seed: int
    epochs: int = DEFAULT_EPOCHS
    train_samples: int | None = None
    setup: str = DEFAULT_SETUP

    def __str__(self) -> str:
        return f"{self.method} {self.task} {self.backbone} budget {self.budget:g} seed {self.seed}"

    def giver(self) -> Cell | None:
        """The cell whose architecture this one trains; None for most methods, which take that of no other."""
        name = registry.method(self.method).architecture_from
        return make_cell(**{**asdict(self), "method": name}) if name else None

    def run_key(self) -> str:
        """16 hex digits that stand for everything that determines the result."""
        setup = registry.setup(self.setup)
        version = registry.method(self.method).version
        giver = self.giver()
        determining: dict[str, Any] = {
            "protocol": PROTOCOL,
            "cell": asdict(self),
            "recipe": asdict(registry.task(self.task).recipe.for_samples(self.train_samples)),
            "device": setup.device,
            "channels_last": setup.channels_last,
            "granularity": setup.granularity,
        }
        if setup.precision != "fp32":
            determining["precision"] = setup.precision
        determining |= {option: True for option in ("adaptive", "compiled") if getattr(setup, option)}
        if version > 1:  # a first version is left out, as it was before methods had versions: old records stay valid
            determining["method_version"] = version
        if giver is not None:
            determining["architecture_from"] = giver.run_key()
        canonical = json.dumps(determining, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def make_cell(
    *,
    method: str,
    task: str,
    backbone: str,
    budget: float,
    seed: int,
    epochs: int = DEFAULT_EPOCHS,
    train_samples: int | None = None,
    setup: str = DEFAULT_SETUP,
) -> Cell:
    """A checked cell. The budget of a method that ignores it becomes 1, so that it runs once; a variant gets its one
    name. The name of the backbone is not checked before the cell runs, because that takes the import of timm.

    Raises:
        UserError: an unknown name, or a number out of its range.
    """
    if not 0 < budget <= 1:
        raise UserError(
            f"budget {budget:g} is out of range: it is a share of the dense network's MACs, 0 < budget <= 1"
        )
    if not 0 <= seed < 2**32:
        raise UserError(f"seed {seed} is out of range: use a whole number from 0 to {2**32 - 1}")
    if epochs < 1:
        raise UserError(f"epochs {epochs} is out of range: train for 1 epoch or more")
    if train_samples is not None and train_samples < 1:
        raise UserError(f"train samples {train_samples} is out of range: keep 1 or more, or leave it out to keep all")
    registry.task(task)
    registry.setup(setup)
    cls = registry.method(method)
    share = float(budget) if cls.uses_budget else 1.0
    return Cell(cls.name, task, backbone, share, seed, epochs, train_samples, setup)
