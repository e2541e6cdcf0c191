"""One NNI trial of ``reproduce.yml``: runs the cell that it is given, as ``nasbench-grow reproduce`` would."""

from __future__ import annotations

import sys
from typing import Any

import nni

from nasbench_grow.errors import UserError
from nasbench_grow.harness.cell import Cell, make_cell
from nasbench_grow.harness.reproduce import unfinished
from nasbench_grow.harness.runner import DeviceError, Progress, record_failure, run_cell
from nasbench_grow.harness.store import Record, Store


def main() -> int:
    """Run the cell, report its validation metric after every epoch and at the end; returns the exit code."""
    parameters = nni.get_next_parameter()
    record = run(make_cell(**parameters["cell"]), Store(parameters["results"]), parameters["profile"], report_epoch)
    if record["status"] != "ok":
        print(record["error"], file=sys.stderr)
        return 1
    nni.report_final_result({"default": record["val_metric"], "test": record["test_metric"], "macs": record["macs"]})
    return 0


def run(cell: Cell, store: Store, profile: str, progress: Progress | None = None) -> Record:
    """The cell's record: the finished one if another process was faster, else that of running it now, after the one
    that it takes its architecture from."""
    giver = cell.giver()
    if giver is not None:
        run(giver, store, profile)
    key = cell.run_key()
    with store.lock(key, wait=True):
        finished = store.record(key)
        if finished is not None and not unfinished([cell], store):
            return finished
        try:
            return run_cell(cell, store, profile=profile, progress=progress)
        except DeviceError:
            raise  # the cell can go on elsewhere
        except UserError as error:
            return record_failure(cell, store, error, profile=profile)


def report_epoch(entry: dict[str, Any]) -> None:
    """Tell NNI the validation metric of an epoch."""
    nni.report_intermediate_result({"default": entry["val_metric"], "loss": entry["loss"], "macs": entry["macs"]})


if __name__ == "__main__":
    sys.exit(main())
