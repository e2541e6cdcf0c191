"""Cells that may be compared: a block holds the cells that one comparison key allows to stand side by side."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import pandas as pd

from nasbench_grow.contract.settings import split
from nasbench_grow.harness.cell import DEFAULT_EPOCHS
from nasbench_grow.report.wording import floats, listed

PROTOCOL = ["task", "backbone", "setup", "epochs", "train_samples"]
"""What a reader tells blocks apart by; cells of one block agree in these and in their comparison key."""

FAMILIES = ("control", "pruning", "growing", "search")
"""The order of methods in tables; those of no known family come last."""

_TIME = re.compile(r"latency_|(wall|cpu|search|total)_s$")
"""Columns of cells that other work on the machine disturbs."""
_MACHINE = {
    **{"cpu": "", "vectors": "", "cores": " cores", "threads": " threads"},
    **{"memory_gib": " GiB", "gpu": "", "platform": ""},
}
"""What is said of the machine, with units."""

Split = Literal["val", "test"]

DRAWN = re.compile(r"random\[draw=\d+\]")
"""The names of random architectures that are numbered."""
FEWEST = 10
"""So many of them show how much there is to win; fewer are methods like any other."""


def base(method: str) -> str:
    """The method without its changed settings: ``grow`` for ``grow[growth=0.3]``."""
    return method.partition("[")[0]


_NO_CHOICE = {"start", "of"}
"""Settings that nobody chooses by results: they name another protocol or another method."""


def _chosen(method: str) -> str:
    """The settings of a method that are a choice: those of the method that it names too."""
    _, given = split(method)
    nested = [_chosen(text) for setting, text in given.items() if setting == "of"]
    return ",".join(sorted([*(f"{name}={text}" for name, text in given.items() if name not in _NO_CHOICE), *nested]))


@dataclass(frozen=True)
class Block:
    """Comparable cells, at most one for each method, budget and seed."""

    task: str
    backbone: str
    setup: str
    epochs: int
    train_samples: int | None
    comparison_key: str | None
    cells: pd.DataFrame
    left_out: pd.DataFrame
    """Cells of a method and budget whose settings or version are no longer those of its newest cell."""
    split: Split
    """Which split's metric is shown."""
    older: bool = False
    """Whether newer cells stand under the same task, backbone, set-up, epochs and samples, but another key."""

    @cached_property
    def finished(self) -> pd.DataFrame:
        """The cells that ended well: the only ones that figures and means are computed from."""
        return self.cells[self.cells["status"] == "ok"]

    @cached_property
    def families(self) -> dict[str, str]:
        """The family of every method with a cell here, in the order of tables and legends; empty where unknown."""
        known = self.cells.dropna(subset="family").drop_duplicates("method").set_index("method")["family"].to_dict()
        families = {method: known.get(method, "") for method in set(self.cells["method"])}
        ranks = {family: rank for rank, family in enumerate(FAMILIES)}
        order = sorted(
            families, key=lambda name: (ranks.get(families[name], len(ranks)), not name.startswith("dense"), name)
        )
        return {method: families[method] for method in order}

    @property
    def methods(self) -> list[str]:
        """Every method with a cell here, in order."""
        return list(self.families)

    @cached_property
    def budgets(self) -> list[float]:
        """The budgets below that of the dense network, largest first."""
        return sorted((float(budget) for budget in set(self.cells["budget"]) if budget < 1), reverse=True)

    @cached_property
    def rows(self) -> list[tuple[str, float]]:
        """Every method and budget with a cell, the largest budget first."""
        pairs = set(zip(self.cells["method"], self.cells["budget"].astype(float), strict=True))
        return sorted(pairs, key=lambda pair: (-pair[1], self.methods.index(pair[0])))

    def of(self, method: str, budget: float | None = None) -> pd.DataFrame:
        """The finished cells of a method (at a budget, or at all)."""
        chosen = self.finished["method"] == method
        return self.finished[chosen if budget is None else chosen & (self.finished["budget"] == budget)]

    def draws(self, budget: float) -> pd.DataFrame:
        """The finished cells of numbered random architectures at a budget; none where they are fewer than FEWEST."""
        cells = self.finished[self.finished["budget"] == budget]
        cells = cells[cells["method"].str.fullmatch(DRAWN)]
        return cells if cells["method"].nunique() >= FEWEST else cells.iloc[:0]

    def without_draws(self) -> Block:
        """The block without the draws that the table of headroom sums up; itself where there is nothing else."""
        drawn = [number for budget in self.budgets for number in self.draws(budget).index]
        others = self.cells.drop(index=drawn)
        return self if others.empty else replace(self, cells=others)

    def at(self, method: str, budget: float) -> pd.DataFrame:
        """The finished cells of a method at a budget; of one that only has budget 1, these."""
        own = self.of(method)
        return own if set(own["budget"]) == {1.0} else own[own["budget"] == budget]

    def ratios(self, method: str, budget: float, column: str) -> pd.Series[float]:
        """A measurement of each run over that of the dense run of its seed, by seed.

        Without a seed in common it is the ratio of the means, alone; empty unless all of these runs, and all dense
        ones, are known to have run on one machine with equal threads.
        """
        mine, dense = self.of(method, budget), self.of("dense")
        machines = pd.concat([mine, dense]).filter(regex="^hardware_")
        if mine.empty or dense.empty or machines.isna().all(axis=1).any() or len(machines.drop_duplicates()) != 1:
            return pd.Series(dtype=float)
        values, whole = (cells.set_index("seed")[column].astype(float).dropna() for cells in (mine, dense))
        shared = (values / whole[whole > 0]).dropna()
        means = pd.Series([values.mean() / whole.mean()]).dropna() if whole.any() else shared
        return shared if len(shared) else means

    def missed(self, method: str, budget: float) -> int:
        """How many returned networks of a method miss the budget."""
        return int((~self.of(method, budget)["meets_budget"].astype("boolean").fillna(True)).sum())

    @property
    def column(self) -> str:
        """The column of the metric that is shown."""
        return f"{self.split}_metric"

    @cached_property
    def metric(self) -> str:
        """What the task measures, e.g. ``accuracy``."""
        return str(self._first("metric", "metric"))

    @cached_property
    def scale(self) -> float:
        """What a recorded metric is multiplied with to be shown."""
        return float(self._first("metric_scale", 1.0))

    @cached_property
    def unit(self) -> str:
        """Of the metric as it is shown, e.g. ``%``; empty where it has none."""
        return str(self._first("metric_unit", ""))

    @cached_property
    def direction(self) -> int:
        """1 where a higher metric is better, else -1."""
        return 1 if self._first("higher_is_better", True) else -1

    def label(self, split: str | None = None) -> str:
        """The metric with its split and unit, for axes and column heads."""
        return f"{split or self.split} {self.metric}" + (f" ({self.unit})" if self.unit else "")

    @property
    def step_label(self) -> str:
        """The same for differences: of percentages these are points."""
        unit = "points" if self.unit == "%" else self.unit
        return f"{self.split} {self.metric}" + (f" ({unit})" if unit else "")

    @property
    def name(self) -> str:
        """A name for files, e.g. ``cifar10-cifar_resnet20-cpu-10-epochs-5000-samples``."""
        samples = "all" if self.train_samples is None else self.train_samples
        text = f"{self.task}-{self.backbone}-{self.setup}-{self.epochs}-epochs-{samples}-samples"
        return re.sub(r"[^A-Za-z0-9_.-]+", "_", text) + (f"-{self._key}" if self.older else "")

    @property
    def title(self) -> str:
        """A heading, e.g. ``cifar10, cifar_resnet20, set-up cpu, 10 epochs of 5,000 training samples``."""
        samples = "all training samples" if self.train_samples is None else f"{self.train_samples:,} training samples"
        older = f" (older cells, comparison {self._key})" if self.older else ""
        return f"{self.task}, {self.backbone}, set-up {self.setup}, {self._length} of {samples}{older}"

    @property
    def _length(self) -> str:
        return "1 epoch" if self.epochs == 1 else f"{self.epochs} epochs"

    @property
    def caption(self) -> str:
        """The whole protocol, with commits, machine and versions, in a few sentences."""
        cut = [
            *([f"{self._length} (default: {DEFAULT_EPOCHS})"] if self.epochs < DEFAULT_EPOCHS else []),
            *(["part of the training samples"] if self.train_samples else []),
        ]
        shortened = f" Shortened: {', '.join(cut)}." if cut else ""
        seeds = listed(sorted(set(self.cells["seed"])))
        return f"{self.title}; seeds {seeds}.{shortened} {provenance(self.cells)}"

    @property
    def _key(self) -> str:
        """The comparison key in short; old records have none."""
        return self.comparison_key[:8] if self.comparison_key else "schema-1"

    def _first(self, column: str, default: Any) -> Any:
        """The value that the cells share in a column."""
        return next(iter(self.cells[column].dropna()), default)


def blocks_of(frame: pd.DataFrame) -> list[Block]:
    """The blocks of a frame of cells (as :func:`nasbench_grow.report.frames.load` gives it).

    A frame that holds a method with two choices of its settings is one of choices: all of its blocks show the
    validation metric.
    """
    by_method = frame.assign(chosen=frame["method"].map(_chosen)).groupby(frame["method"].map(base))
    shown: Split = "val" if (by_method["chosen"].nunique() > 1).any() else "test"
    found: list[Block] = []
    for _, protocol in frame.groupby(PROTOCOL, dropna=False, sort=True):
        same = [_block(cells, shown) for _, cells in protocol.groupby("comparison_key", dropna=False)]
        same.sort(key=lambda block: (block.cells["started_at"].max(), block.comparison_key or ""), reverse=True)
        found += [replace(block, older=place > 0) for place, block in enumerate(same)]
    return found


def _block(cells: pd.DataFrame, split: Split) -> Block:
    """A block of cells that share protocol and comparison key.

    Of a method and budget the cells of the newest key stand; of one seed the newest: two would look like two seeds.
    """
    first = cells.iloc[0]
    by_age = cells.sort_values("started_at", kind="stable", na_position="first")
    newest_key = by_age["method_key"].fillna("").groupby([by_age["method"], by_age["budget"]]).transform("last")
    kept = by_age[by_age["method_key"].fillna("") == newest_key]
    return Block(
        **{name: first[name] for name in ("task", "backbone", "setup")},
        epochs=0 if pd.isna(first["epochs"]) else int(first["epochs"]),
        train_samples=None if pd.isna(first["train_samples"]) else int(first["train_samples"]),
        comparison_key=None if pd.isna(first["comparison_key"]) else first["comparison_key"],
        cells=_timed_alone(kept.drop_duplicates(["method", "budget", "seed"], keep="last").sort_index()),
        left_out=by_age.drop(kept.index),
        split=split,
    )


def _timed_alone(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells without the times of those beside which others ran: with other work beside it a time is none."""
    disturbed = cells["beside"].astype(float).fillna(0) > 0
    return cells.assign(**{str(column): cells[column].mask(disturbed) for column in cells if _TIME.match(str(column))})


def commits(cells: pd.DataFrame) -> str:
    """The commits that cells come from; one with uncommitted changes ends in ``-dirty``."""
    return listed(sorted(set(cells["code_version"].dropna())))


def provenance(cells: pd.DataFrame) -> str:
    """Commits, machines and versions of the cells, in a sentence each."""
    if "hardware_vectors" in cells and cells["hardware_vectors"].notna().any():  # older records do not say
        cells = cells.assign(hardware_vectors=cells["hardware_vectors"].fillna("unknown vectors"))
    machine = [
        f"{value}{unit.removesuffix('s') if value == '1' else unit}"
        for part, unit in _MACHINE.items()
        if (value := _listed(cells, f"hardware_{part}"))
    ]
    versions = [
        f"{column.removeprefix('versions_')} {value}"
        for column in cells.columns
        if column.startswith("versions_") and (value := _listed(cells, column))
    ]
    marked = commits(cells).replace("-dirty", "-dirty (with uncommitted changes)")
    parts = {"Commits": marked, "Hardware": ", ".join(machine), "Versions": ", ".join(versions)}
    return " ".join(f"{head}: {text}." for head, text in parts.items() if text)


def _listed(cells: pd.DataFrame, column: str) -> str:
    return listed(cells[column]).replace(", ", " / ") if column in cells else ""


def values_by_seed(cells: pd.DataFrame, column: str) -> pd.Series[float]:
    """A column of cells as floats, by seed, without the missing ones."""
    return pd.Series(list(floats(cells[column])), index=cells["seed"], dtype=float).dropna()


def by_epoch(cells: pd.DataFrame, histories: pd.DataFrame) -> Iterator[tuple[pd.Series[Any], pd.DataFrame]]:
    """Each cell with its epochs, indexed by epoch, and their ``cost``: the MACs of the network at the epoch's end as a
    share of the dense ones, or what the method logs as its cost."""
    for _, cell in cells.iterrows():
        run = histories[histories["run_key"] == cell["run_key"]].sort_values("epoch").set_index("epoch")
        dense = float("nan") if pd.isna(cell["dense_macs"]) else float(cell["dense_macs"])
        cost = run["macs"].astype(float) / dense
        yield cell, run.assign(cost=run["log_cost"].astype(float).fillna(cost) if "log_cost" in run else cost)
