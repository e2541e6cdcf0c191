"""The folder of a network that ships: weights, ONNX, how it was trained, and a card that says what it is."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import matplotlib

from nasbench_grow.base.errors import UserError
from nasbench_grow.harness import registry
from nasbench_grow.harness.cell import Cell
from nasbench_grow.harness.onnx_file import write_onnx
from nasbench_grow.harness.record import Record
from nasbench_grow.harness.runner import load_data
from nasbench_grow.harness.store import Store
from nasbench_grow.report import frames
from nasbench_grow.report.block import blocks_of
from nasbench_grow.report.card import card
from nasbench_grow.report.output import rendered, write_file
from nasbench_grow.report.style import RC
from nasbench_grow.report.training_figures import growth
from nasbench_grow.structure.architecture import load, save
from nasbench_grow.structure.widths import output_channels

NETWORK, ONNX, CARD, HISTORY, PICTURE = "model.safetensors", "model.onnx", "README.md", "history.csv", "growth.png"
MARK = "run.json"
"""Says which run the files of a folder are of."""


def check_free(folder: str | Path, cell: Cell) -> Path:
    """The folder, made; raises UserError where it holds the network of another run, or cannot be made."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {str(folder)!r}: {error.strerror}; give another one") from error
    mark = folder / MARK
    try:
        known = json.loads(mark.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return folder
    except (OSError, ValueError) as error:
        raise UserError(f"{str(mark)!r} cannot be read ({error}); delete it, or give another folder") from error
    if known.get("run_key") != cell.run_key():
        raise UserError(
            f"{str(folder)!r} holds the network of another run ({known.get('cell')}); give another folder, or delete "
            "that one"
        )
    return folder


def ship(
    cell: Cell, store: Store, folder: str | Path, *, class_names: Sequence[str] = (), command: Sequence[str] = ()
) -> list[str]:
    """Writes all of a finished cell that a user of its network needs; returns what is to be said, a line each.

    The files are ``model.safetensors``, ``model.onnx`` (where the packages for it are installed and the network can
    be exported), ``README.md``, ``history.csv`` and ``growth.png``.

    Args:
        cell: whose record in ``store`` has the status "ok".
        store: the results folder that it ran into.
        folder: where to write, as :func:`check_free` gave it.
        class_names: of the outputs, in their order.
        command: what made the network, word by word, for its card.

    Raises:
        UserError: the results folder does not hold the network, or a file cannot be written.
    """
    folder, key, task = Path(folder), cell.run_key(), registry.task(cell.task)()
    record, weights, text = store.record(key), store.weights(key), store.architecture(key)
    assert record is not None
    if weights is None or text is None:
        raise UserError(
            f"{store.root} has the record of {cell}, but not its network: it was taken away, or {cell.method} returned "
            "one that cannot be cut from its backbone; run it into another folder, or by another method"
        )
    network = load(weights, registry.build_backbone(cell.backbone, task))
    example = task.example()
    said = []
    write_file(folder / MARK, json.dumps({"run_key": key, "cell": str(cell)}, indent=1).encode())
    save(network, text, folder / NETWORK, example=example, class_names=class_names)
    said.append(write_onnx(network, example, folder / ONNX))
    _write_history(store, key, folder / HISTORY)
    full = output_channels(registry.build_backbone(cell.backbone, task))
    pictured = _write_picture(store, record, full, folder / PICTURE)
    splits = load_data(cell.task, registry.setup(cell.setup).device, cell.train_samples)
    files = [path for path in (NETWORK, ONNX, HISTORY, PICTURE) if (folder / path).exists()]
    page = card(
        cell,
        task,
        record,
        validated=len(splits.val),
        tested=None if splits.test is splits.val else len(splits.test),
        class_names=class_names,
        command=shlex.join(command),
        files=files,
        alone='"backbone": null' not in text,
        picture=PICTURE if pictured else None,
        onnx=said[0],
    )
    write_file(folder / CARD, page.encode())
    return said


def _write_history(store: Store, key: str, path: Path) -> None:
    """An epoch a row; the output channels of each layer in columns ``width:...``."""
    table = frames.histories(store.root, [key])
    widths = frames.widths(store.root, [key])
    wide = widths.pivot(index="epoch", columns="layer", values="width").astype("Int64")
    wide = wide[list(dict.fromkeys(widths["layer"]))].add_prefix("width:")
    write_file(path, table.merge(wide, on="epoch", how="left").to_csv(index=False).encode())


def _write_picture(store: Store, record: Record, full: dict[str, int], path: Path) -> bool:
    """Cost and widths by epoch, as shares of the ``full`` ones; False where the history says nothing of them."""
    cells = frames.load(store.root)
    (block,) = blocks_of(cells[cells["run_key"] == record["run_key"]])

    structures = partial(frames.structures, store.root)
    with matplotlib.rc_context(RC):
        drawing = growth(block, record["method"], frames.histories(store.root, [record["run_key"]]), structures, full)
        if drawing is None:
            return False
        write_file(path, rendered(drawing.figure)["png"])
    return True
