"""One NNI trial of ``reproduce.yml``: runs the cell that it is given, as ``nasbench-grow reproduce`` would."""

from __future__ import annotations

import sys
from typing import Any

import nni

from nasbench_grow.harness.cell import Cell, make_cell
from nasbench_grow.harness.record import Record, is_settled
from nasbench_grow.harness.reproduce import run_one
from nasbench_grow.harness.runner import Progress
from nasbench_grow.harness.store import Store


def main() -> int:
    """Run the cell, report its validation metric after every epoch and at the end; returns the exit code."""
    parameters = nni.get_next_parameter()
    record = run(make_cell(**parameters["cell"]), Store(parameters["results"]), parameters["profile"], report_epoch)
    if record["status"] != "ok":
        print(record["error"], file=sys.stderr)
        return 0 if is_settled(record) else 1
    nni.report_final_result({"default": record["val_metric"], "test": record["test_metric"], "macs": record["macs"]})
    return 0


def run(cell: Cell, store: Store, profile: str, progress: Progress | None = None) -> Record:
    """The cell's record: the finished one if another process was faster, else that of running it now."""
    return run_one(cell, store, profile=profile, progress=progress, record_user_errors=True)


def report_epoch(entry: dict[str, Any]) -> None:
    """Tell NNI the validation metric of an epoch."""
    nni.report_intermediate_result({"default": entry["val_metric"], "loss": entry["loss"], "macs": entry["macs"]})


if __name__ == "__main__":
    sys.exit(main())
