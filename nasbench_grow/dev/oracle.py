"""Trains the oracle's networks and writes its table: ``python -m nasbench_grow.dev.oracle --jobs 2``.

Every network of the grid once; those that are then on the Pareto front with two more seeds; and twenty of the grid with
all training samples, which shows whether fewer rank networks alike. It may be stopped at any time: the same command
goes on, and ``--write`` writes the table of what is there.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pandas as pd

from nasbench_grow.harness import jobs
from nasbench_grow.harness.cell import Cell
from nasbench_grow.harness.record import Record
from nasbench_grow.harness.store import Store
from nasbench_grow.oracle.grid import GRID, Architecture
from nasbench_grow.oracle.table import COLUMNS, FILE, WHOLE, Table

SEEDS = (0, 1, 2)
"""Of the networks on the front; all others are trained with the first."""
CHECKED = 20
"""Networks that are also trained on all samples."""
ORIGIN = FILE.with_suffix(".json")
"""Beside the table: how, where and by which code its networks were trained."""


def shuffled() -> list[Architecture]:
    """The grid in a random order, always the same, so that part of it is a random part."""
    return random.Random(0).sample(GRID, len(GRID))


def checked() -> list[Cell]:
    """The cells that are trained on all samples."""
    return [replace(each.cell(SEEDS[0]), train_samples=None) for each in shuffled()[:CHECKED]]


def rows(store: Store, cells: Iterable[tuple[Architecture, Cell]]) -> pd.DataFrame:
    """A row for each epoch of each of the cells that is finished."""
    found = []
    for each, cell in cells:
        record = store.record(cell.run_key())
        if record is None or record["status"] != "ok":
            continue
        for epoch in store.history(cell.run_key()):
            last = epoch["epoch"] == cell.epochs
            test = round(record["test_metric"], 5) if last else None
            spent = (epoch["train_macs"], round(epoch["wall_s"], 1))
            quality = (cell.seed, epoch["epoch"], round(epoch["val_metric"], 5), test)
            found.append((*each.widths, *each.depths, *quality, record["macs"], record["params"], *spent))
    return pd.DataFrame(found, columns=COLUMNS)


def write(store: Store) -> Table:
    """Writes the table, the one on all samples and their origin, of all that is trained; returns the first."""
    pairs = [(each, each.cell(seed)) for each in GRID for seed in SEEDS]
    whole = list(zip(shuffled()[:CHECKED], checked(), strict=True))
    FILE.parent.mkdir(parents=True, exist_ok=True)
    table = rows(store, pairs)
    table.to_csv(FILE, index=False)
    rows(store, whole).to_csv(WHOLE, index=False)
    records = [record for _, cell in (*pairs, *whole) if (record := store.record(cell.run_key())) is not None]
    ORIGIN.write_text(json.dumps(origin(records), indent=1) + "\n", encoding="utf-8")
    return Table(table)


def origin(records: list[Record]) -> dict[str, object]:
    """What the records share, and how many of them there are of what they do not."""

    def counted(name: str) -> dict[str, int]:
        return dict(Counter(json.dumps(record[name], sort_keys=True) for record in records).most_common())

    shared = ("task", "backbone", "setup", "epochs", "train_samples", "comparison_key")
    return {name: counted(name) for name in (*shared, "status", "code_version", "hardware", "versions")}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("reproduced/oracle"), help="folder of the cells")
    parser.add_argument("--jobs", type=int, default=1, help="networks that are trained at once")
    parser.add_argument("--write", action="store_true", help="train nothing, write the table of what is there")
    arguments = parser.parse_args()
    store = Store(arguments.results)
    if not arguments.write:
        jobs.reproduce([*checked(), *(each.cell(SEEDS[0]) for each in shuffled())], store, arguments.jobs)
        front = Table(rows(store, [(each, each.cell(SEEDS[0])) for each in GRID])).front()
        jobs.reproduce([each.cell(seed) for each in front for seed in SEEDS], store, arguments.jobs)
    print(f"{FILE}: {len(write(store).architectures)} of {len(GRID)} networks")


if __name__ == "__main__":
    main()
