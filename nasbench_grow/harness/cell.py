"""A cell: the smallest thing that the harness runs, skips, resumes and keeps a record of."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from nasbench_grow.base.errors import UserError
from nasbench_grow.contract import Method
from nasbench_grow.harness import registry
from nasbench_grow.harness.dense import fingerprint

PROTOCOL = 2
"""Raise this when the harness changes so that finished records no longer compare; a method has its own ``version``."""

DEFAULT_EPOCHS = 160
"""Epochs of the full recipe on the CIFAR-sized tasks."""

DEFAULT_SETUP = "cpu"


@dataclass(frozen=True)
class Cell:
    """Method x task x backbone x set-up x budget x seed, and how long to train on how much."""

    method: str
    """In its one spelling (:meth:`nasbench_grow.contract.Method.__str__`)."""
    task: str
    backbone: str
    budget: float
    seed: int
    epochs: int = DEFAULT_EPOCHS
    train_samples: int | None = None
    setup: str = DEFAULT_SETUP

    def __str__(self) -> str:
        return f"{self.method} {self.task} {self.backbone} budget {self.budget:g} seed {self.seed}"

    def source(self) -> Cell | None:
        """The cell that this one begins with; None for most methods, which begin with none."""
        name = registry.method(self.method).source
        return make_cell(**{**asdict(self), "method": name}) if name else None

    def run_key(self) -> str:
        """16 hex digits that stand for everything that determines the result."""
        cell = {"budget": self.budget, "seed": self.seed}
        return _digest({"cell": cell, "compared": self.comparison_key(), "method": self.method_key()})

    def comparison_key(self) -> str:
        """What must be the same of all cells that share a table: protocol, task, backbone, recipe, set-up, length."""
        task = registry.task(self.task)()
        return _digest(
            {
                "protocol": PROTOCOL,
                "task": task.definition(),
                "recipe": asdict(task.recipe.for_samples(self.train_samples)),
                "backbone": [self.backbone, fingerprint(self.backbone, self.task)],
                "setup": registry.setup(self.setup).definition(),
                "epochs": self.epochs,
                "train_samples": self.train_samples,
            }
        )

    def method_key(self) -> str:
        """What must be the same of all cells that are seeds of one row: the method, its resolved settings, and the
        same of the cell that it begins with."""
        method = registry.method(self.method)
        source = self.source()
        return _digest(
            {
                "name": method.name,
                "version": method.version,
                "settings": asdict(method.settings),
                "source": None if source is None else source.method_key(),
            }
        )


def _digest(value: Any) -> str:
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"))
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
    """A checked cell. The budget of a method that ignores it becomes 1, so that it runs once; a method gets its one
    spelling. The name of the backbone is not checked before the cell runs, because that takes the import of timm.

    Raises:
        UserError: an unknown name, or a number out of its range.
    """
    if not 0 < budget <= 1:
        raise UserError(f"budget {budget} is out of range: it is a share of the dense network's MACs, 0 < budget <= 1")
    if not 0 <= seed < 2**32:
        raise UserError(f"seed {seed} is out of range: use a whole number from 0 to {2**32 - 1}")
    if epochs < 1:
        raise UserError(f"epochs {epochs} is out of range: train for 1 epoch or more")
    if train_samples is not None and train_samples < 1:
        raise UserError(f"train samples {train_samples} is out of range: keep 1 or more, or leave it out to keep all")
    registry.task(task)
    granularity = registry.setup(setup).granularity
    found = registry.method(method).in_cell(granularity, epochs)
    _check_sources(found)
    share = float(budget) if found.uses_budget else 1.0
    return Cell(str(found), task, backbone, share, seed, epochs, train_samples, setup)


def _check_sources(method: Method) -> None:
    """Raises UserError where a method would begin, after others or at once, with itself."""
    chain = [str(method)]
    while (source := registry.method(chain[-1]).source) is not None:
        chain.append(str(registry.method(source)))
        if chain[-1] in chain[:-1]:
            raise UserError(
                f"method {chain[0]!r} cannot be run: {chain[-1]!r} begins with itself ({' <- '.join(chain)}); name "
                "another method in its `source`"
            )
