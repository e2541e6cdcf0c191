"""One NNI trial of ``growing.yml``: runs the cell of ``grow`` with the settings that it is given.

Without NNI, ``python sweeps/growing_trial.py`` does the same with the default settings.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import Any

import nni

from nasbench_grow.base.errors import UserError
from nasbench_grow.harness.cell import make_cell
from nasbench_grow.harness.record import Record
from nasbench_grow.harness.reproduce import run_one
from nasbench_grow.harness.store import Store


def main() -> int:
    """Run the cell, report its validation metric after every epoch and of the network that is left; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="digits")
    parser.add_argument("--backbone", default="cifar_resnet20")
    parser.add_argument("--budget", type=float, default=0.5)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--train-samples", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--setup", default="cpu")
    parser.add_argument("--results", default="reproduced/growing", help="folder of the records")
    arguments = vars(parser.parse_args())
    try:
        record = run(nni.get_next_parameter() or {}, Store(arguments.pop("results")), **arguments)
    except UserError as error:
        print(f"growing_trial: error: {error}", file=sys.stderr)
        return 2
    if record["status"] != "ok":
        print(record["error"], file=sys.stderr)
        return 1
    nni.report_final_result(record["val_metric"])
    return 0


def run(settings: Mapping[str, Any], store: Store, **arguments: Any) -> Record:
    """The record of ``grow`` with these settings (those left out are the default's); the finished one if there is one.

    Args:
        settings: of ``grow``, by name.
        store: where the record is kept.
        arguments: the rest of the cell, as for :func:`nasbench_grow.harness.cell.make_cell`.
    """
    given = ",".join(f"{name}={value}" for name, value in settings.items())
    cell = make_cell(method=f"grow[{given}]" if given else "grow", **arguments)
    return run_one(cell, store, progress=report_epoch, record_user_errors=True)


def report_epoch(entry: dict[str, Any]) -> None:
    """Tell NNI the validation metric of an epoch."""
    nni.report_intermediate_result(entry["val_metric"])


if __name__ == "__main__":
    sys.exit(main())
