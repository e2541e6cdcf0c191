"""One of the processes that share the batches of a cell: what ``torchrun`` starts (:mod:`nasbench_grow.harness.ranks`).

Each runs the cell as a single one would; only the first writes to the results folder and tells of epochs.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from typing import Any

import torch
from torch import distributed as dist

from nasbench_grow.base import parallel
from nasbench_grow.base.errors import UserError
from nasbench_grow.harness import registry
from nasbench_grow.harness.cell import Cell
from nasbench_grow.harness.runner import run_cell
from nasbench_grow.harness.store import ReadOnlyStore, Store


def main() -> int:
    """One rank: runs the cell that the first argument describes; returns the exit code."""
    work = json.loads(sys.argv[1])
    cell = Cell(**work["cell"])
    on_gpu = registry.usable_setup(cell.setup).device == "cuda"
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if on_gpu else "gloo")
    first = parallel.rank() == 0
    store = Store(work["results"]) if first else ReadOnlyStore(work["results"])
    try:
        with parallel.sharing_batches():
            run_cell(cell, store, profile=work["profile"], progress=_tell_epoch if first else None)
    except UserError as error:
        _tell(refused=str(error))
        return 1
    except torch.OutOfMemoryError as error:
        _tell(full=f"{str(error).partition('.')[0]} (in process {parallel.rank()} of {parallel.processes()})")
        return 1
    except Exception as error:
        traceback.print_exc()
        _tell(error=f"{type(error).__name__}: {error} (in process {parallel.rank()} of {parallel.processes()})")
        return 1
    dist.destroy_process_group()
    return 0


def _tell_epoch(entry: dict[str, Any]) -> None:
    _tell(epoch=entry)


def _tell(**message: Any) -> None:
    sys.stdout.write(json.dumps(message) + "\n")  # at once, or the lines of two processes might mix
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
