"""Cells that may be compared: a block holds every cell run under one protocol."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from nasbench_grow.contract import settings as variants
from nasbench_grow.harness.cell import DEFAULT_EPOCHS

PROTOCOL = ["task", "backbone", "setup", "epochs", "train_samples"]
"""Cells that agree in these were run under the same rules; only they share a table or a figure."""

_ORDER = ("dense", "uniform", "random", "l1", "grow", "grow-paper", "retrain")
_MACHINE = {"cpu": "", "cores": " cores", "threads": " threads", "memory_gib": " GiB", "gpu": "", "platform": ""}
"""What is said of the machine, with units."""


def method_order(methods: set[str]) -> list[str]:
    """References first, then pruning, then growing, then whatever else there is."""
    return [name for name in _ORDER if name in methods] + sorted(methods.difference(_ORDER))


def is_growing(method: str) -> bool:
    """Whether a method is the growing one or a variant of it (``grow-…``, ``grow[…]``)."""
    return method == "grow" or method.startswith(("grow-", "grow["))


@dataclass(frozen=True)
class Block:
    """The cells of one protocol, at most one for each method, budget and seed."""

    task: str
    backbone: str
    setup: str
    epochs: int
    train_samples: int | None
    cells: pd.DataFrame

    @cached_property
    def finished(self) -> pd.DataFrame:
        """The cells that ended well: the only ones that figures and means are computed from."""
        return self.cells[self.cells["status"] == "ok"]

    @cached_property
    def methods(self) -> list[str]:
        """Every method with a cell here, in the order of tables and legends."""
        return method_order(set(self.cells["method"]))

    @cached_property
    def budgets(self) -> list[float]:
        """The budgets below that of the dense network, largest first."""
        return sorted((float(budget) for budget in set(self.cells["budget"]) if budget < 1), reverse=True)

    def of(self, method: str, budget: float | None = None) -> pd.DataFrame:
        """The finished cells of a method (at a budget, or at all)."""
        chosen = self.finished["method"] == method
        return self.finished[chosen if budget is None else chosen & (self.finished["budget"] == budget)]

    @property
    def name(self) -> str:
        """A name for files, e.g. ``cifar10-cifar_resnet20-cpu-10-epochs-5000-samples``."""
        samples = "all" if self.train_samples is None else self.train_samples
        text = f"{self.task}-{self.backbone}-{self.setup}-{self.epochs}-epochs-{samples}-samples"
        return re.sub(r"[^A-Za-z0-9_.-]+", "_", text)

    @property
    def title(self) -> str:
        """A heading, e.g. ``cifar10, cifar_resnet20, set-up cpu, 10 epochs of 5,000 samples``."""
        samples = "all training samples" if self.train_samples is None else f"{self.train_samples:,} training samples"
        epochs = "1 epoch" if self.epochs == 1 else f"{self.epochs} epochs"
        return f"{self.task}, {self.backbone}, set-up {self.setup}, {epochs} of {samples}"

    @property
    def caption(self) -> str:
        """The whole protocol, with the machine and the versions, in a few sentences."""
        seeds = ", ".join(str(seed) for seed in sorted(set(self.cells["seed"].dropna())))
        return (
            f"{self.title}; seeds {seeds}.{self._shortened} Test {self.metric} is that of the network returned after "
            "the last epoch: no epoch is chosen, and whatever is chosen at all is chosen on the validation split. "
            f"{provenance(self.cells)}"
        )

    @property
    def _shortened(self) -> str:
        """What was left out to make the runs short."""
        cut = [
            *([f"{self.epochs} epochs (default: {DEFAULT_EPOCHS})"] if self.epochs < DEFAULT_EPOCHS else []),
            *(["part of the training samples"] if self.train_samples else []),
        ]
        return f" Shortened: {', '.join(cut)}." if cut else ""

    @cached_property
    def metric(self) -> str:
        """What the task measures, e.g. ``accuracy``."""
        return _one_or_list(self.cells, "metric") or "metric"

    @property
    def in_percent(self) -> bool:
        """Whether the metric is a fraction to be shown in percent (a perplexity or a loss is not)."""
        return not re.search("perplexity|loss", self.metric)

    @property
    def metric_label(self) -> str:
        """The metric with its unit, for axes and column heads."""
        return f"{self.metric} (%)" if self.in_percent else self.metric

    @property
    def scale(self) -> float:
        """What a recorded metric is multiplied with to be shown."""
        return 100.0 if self.in_percent else 1.0


def blocks(frame: pd.DataFrame) -> list[Block]:
    """One block for each protocol found in a frame of cells (as :func:`nasbench_grow.report.frames.load` gives it).

    Where a method, budget and seed was run more than once under a protocol (say, by two versions of the code), the
    newest cell stands for it: counting both would make one seed look like two.
    """
    found = []
    for _, cells in frame.groupby(PROTOCOL, dropna=False, sort=True):
        first = cells.iloc[0]
        newest = cells.sort_values("started_at", kind="stable", na_position="first")
        newest = newest.drop_duplicates(["method", "budget", "seed"], keep="last").sort_index()
        found.append(
            Block(
                task=first["task"],
                backbone=first["backbone"],
                setup=first["setup"],
                epochs=0 if pd.isna(first["epochs"]) else int(first["epochs"]),
                train_samples=None if pd.isna(first["train_samples"]) else int(first["train_samples"]),
                cells=newest,
            )
        )
    return found


def cost_by_epoch(cell: pd.Series[Any], histories: pd.DataFrame) -> pd.Series[float]:
    """The cost of a run at the end of each epoch, as a share of the dense MACs, indexed by epoch.

    This is what the method logs as ``cost``, or else what the network of that epoch counts.
    """
    run = histories[histories["run_key"] == cell["run_key"]].sort_values("epoch").set_index("epoch")
    dense = math.nan if pd.isna(cell["dense_macs"]) else float(cell["dense_macs"])
    share = run["macs"].astype(float) / dense
    return run["log_cost"].astype(float).fillna(share) if "log_cost" in run else share


def paid(cell: pd.Series[Any], histories: pd.DataFrame) -> float:
    """What the returned network costs, as a share of the dense one, in what the budget is a share of.

    These are MACs, or, of a method with the setting ``cost=time``, the step time that it logs; NaN where unknown.
    """
    _, settings = variants.split(cell["method"])
    if (settings or {}).get("cost") != "time":
        return float(cell["macs_share"])
    run = histories[histories["run_key"] == cell["run_key"]].sort_values("epoch")
    return float(run["log_cost"].iloc[-1]) if len(run) and "log_cost" in run else math.nan


def largest_step(cell: pd.Series[Any], histories: pd.DataFrame) -> float:
    """The largest change of a run's cost by one restructuring, as a share of the dense MACs; NaN where unknown.

    This is what the method logs as ``largest_step``. A method that does not log it is judged by the net change over
    whole epochs, the first one from nothing, as a seed costs next to nothing.
    """
    run = histories[histories["run_key"] == cell["run_key"]]
    if "log_largest_step" in run and run["log_largest_step"].notna().any():
        return float(run["log_largest_step"].astype(float).max())
    costs = cost_by_epoch(cell, histories)
    return float(costs.diff().fillna(costs).abs().max())


def provenance(cells: pd.DataFrame) -> str:
    """Machine, versions and code of the cells, in a sentence each."""
    machine = []
    for part, unit in _MACHINE.items():
        value = _one_or_list(cells, f"hardware_{part}")
        if value:
            machine.append(value + (unit.removesuffix("s") if value == "1" else unit))
    versions = [
        f"{column.removeprefix('versions_')} {_one_or_list(cells, column)}"
        for column in cells.columns
        if column.startswith("versions_") and _one_or_list(cells, column)
    ]
    parts = {
        "Hardware": ", ".join(machine),
        "Versions": ", ".join(versions),
        "Code": _one_or_list(cells, "code_version"),
    }
    return " ".join(f"{head}: {text}." for head, text in parts.items() if text)


def _one_or_list(cells: pd.DataFrame, column: str) -> str:
    """The distinct values of a column as text; empty where there is none."""
    if column not in cells:
        return ""
    values = pd.unique(cells[column].dropna())
    return " / ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)
