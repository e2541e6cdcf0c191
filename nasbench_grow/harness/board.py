"""The epochs of a run as TensorBoard shows them, written while it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nasbench_grow.base.errors import UserError
from nasbench_grow.harness.runner import Progress


@contextmanager
def board(folder: str | Path) -> Iterator[Progress]:
    """A writer into a folder for TensorBoard; gives the function to call with each history entry.

    Of each epoch: training loss, validation metric, learning rate, forward MACs, training MACs so far, what the method
    logs of its own, and the output channels of every layer. Epochs that are told again, as of a run that was taken up
    again, stand once.

    Raises:
        UserError: TensorBoard is not installed, or the folder cannot be written.
    """
    if find_spec("tensorboard") is None:
        raise UserError(
            "--tensorboard needs the package tensorboard; install it with: pip install 'nasbench-grow[tensorboard]'"
        )
    from torch.utils.tensorboard import SummaryWriter

    try:
        # events of an earlier process at or after this step are hidden
        writer = SummaryWriter(str(folder), purge_step=1)
    except OSError as error:
        raise UserError(f"cannot write to {str(folder)!r}: {error.strerror}; give another folder") from error

    def tell(entry: dict[str, Any]) -> None:
        scalars = {name: entry[name] for name in ("loss", "val_metric", "learning_rate", "macs", "train_macs")}
        scalars |= {f"log/{name}": value for name, value in (entry["log"] or {}).items()}
        scalars |= {f"width/{layer}": width for layer, width in entry["widths"].items()}
        for name, value in scalars.items():
            if value is not None:
                writer.add_scalar(name, value, entry["epoch"])
        writer.flush()

    try:
        yield tell
    finally:
        writer.close()
