"""Records of measurements and the tables made from them.

A record holds raw measurements and says where they come from; every number of a table is computed from the record.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tabulate import tabulate
from tqdm import tqdm

from nasbench_grow.base.errors import UserError
from nasbench_grow.base.files import write_whole
from nasbench_grow.dev.bench.settings import Settings
from nasbench_grow.harness import measure
from nasbench_grow.harness.cell import DEFAULT_SETUP
from nasbench_grow.harness.setups import SETUPS

Record = dict[str, Any]


def provenance(part: str, settings: Settings) -> Record:
    """What every record begins with: part, settings, machine and its load, versions, date."""
    return {
        "part": part,
        "settings": asdict(settings),
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": measure.hardware(),
        "load_average": os.getloadavg()[0],
        "versions": measure.versions(),
        "code_version": measure.code_version(),
    }


def origin(record: Record) -> str:
    """The line under a table that says where its numbers come from."""
    machine = record["hardware"]
    setup = record["settings"]["setup_name"]
    on_gpu = SETUPS[setup].device == "cuda"
    how = "" if setup == DEFAULT_SETUP else f", set-up {setup}"
    processor = f"{machine['threads']} threads on {machine['cores']} cores of {machine['cpu']}"
    return (
        f"Measured on {record['started_at'][:10]} with {machine['gpu'] if on_gpu else processor}, "
        f"{machine['memory_gib']} GiB, PyTorch {record['versions']['torch']}, code {record['code_version']}{how}; "
        f"load average at the start {record['load_average']:.1f}."
    )


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of repeated measurements."""

    median: float
    low: float
    high: float

    def text(self) -> str:
        """The median with the quartiles in brackets."""
        return f"{self.median:.2f} ({self.low:.2f}\N{EN DASH}{self.high:.2f})"


def spread(values: Sequence[float]) -> Spread:
    """Summary of at least one measurement."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(statistics.median(values), low, high)


def ratios(times: Sequence[float], base: Sequence[float]) -> Spread:
    """Times relative to those of another network in the same rounds, pair by pair."""
    return spread([time / other for time, other in zip(times, base, strict=True)])


def verdict(value: float, limit: float) -> str:
    """Whether a measurement is within its target."""
    return "met" if value <= limit else "**not met**"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A pipe table; the first column to the left, all others to the right."""
    align = ["left", *["right"] * (len(header) - 1)]
    return tabulate(list(rows), headers=header, tablefmt="pipe", colalign=align, disable_numparse=True)


def bar(label: str, total: int) -> Any:
    """A progress bar with the time left, on terminals only."""
    return tqdm(total=total, desc=label, leave=False, disable=None)


def write(path: Path, data: str) -> None:
    """Writes a text file atomically.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        write_whole(path, data.encode())
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"cannot write {path}: {reason}; give a folder that you may write with --out") from error


def write_json(path: Path, record: Record) -> None:
    """Writes a record atomically."""
    write(path, json.dumps(record, indent=1) + "\n")


def place(record: Record) -> str:
    """Where a record belongs, in the folder and on the page: its part, after another set-up than the default its
    name."""
    setup = record["settings"]["setup_name"]
    return record["part"] if setup == DEFAULT_SETUP else f"{setup}/{record['part']}"


def block(place: str) -> str:
    """The name of a place's block on a page."""
    return f"bench:{place}"
