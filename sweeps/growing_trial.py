"""One NNI trial of ``growing.yml``: runs a cell of ``grow`` with the settings that it is given.

Without NNI, ``python sweeps/growing_trial.py`` does the same with the default settings.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import nni

from nasbench_grow.contract.settings import spell
from nasbench_grow.growing.scaling import ScalingSettings
from nasbench_grow.harness.cell import make_cell
from nasbench_grow.harness.record import Record
from nasbench_grow.harness.reproduce import run_one
from nasbench_grow.harness.store import Store


def main() -> int:
    """Grow, and report the validation metric after every epoch and of the network that is left."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="digits")
    parser.add_argument("--backbone", default="cifar_resnet20")
    parser.add_argument("--budget", type=float, default=0.5)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--train-samples", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", default="reproduced/growing")
    arguments = vars(parser.parse_args())
    record = grow(nni.get_next_parameter() or {}, **arguments)
    if record["status"] != "ok":
        print(record["error"], file=sys.stderr)
        return 1
    nni.report_final_result(record["val_metric"])
    return 0


def grow(settings: dict[str, Any], *, results: str, **cell: Any) -> Record:
    """The record of growing with these settings; tells NNI of every epoch.

    Args:
        settings: of ``grow``; those left out are at their defaults.
        results: the results folder.
        cell: task, backbone, budget, epochs, training samples and seed.
    """
    made = make_cell(method=spell("grow", ScalingSettings(**settings)), **cell)
    return run_one(made, Store(results), progress=report_epoch, record_user_errors=True)


def report_epoch(entry: dict[str, Any]) -> None:
    """Tell NNI the validation metric of an epoch."""
    nni.report_intermediate_result(entry["val_metric"])


if __name__ == "__main__":
    sys.exit(main())
