"""Tables, figures and a page to read them on, computed from the records of a results folder and from nothing else."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import matplotlib
import pandas as pd

from nasbench_grow.base import blocks as generated
from nasbench_grow.base.errors import UserError, unknown
from nasbench_grow.report import documents, figures, frames, interactive, tables, training_figures
from nasbench_grow.report.block import Block, blocks_of
from nasbench_grow.report.figures import Drawing, Looks
from nasbench_grow.report.headroom import headroom
from nasbench_grow.report.missing import missing
from nasbench_grow.report.output import figures_shown, rendered, write_file
from nasbench_grow.report.style import RC, looks
from nasbench_grow.report.tables import REFERENCE, Table

__all__ = ["fill", "write"]

FOUND = "retrain"
"""What growing found, trained from scratch: whether that is a good architecture has a paired table of its own."""


def write(
    folder: str | Path = "results",
    reference: str = REFERENCE,
    document: str | Path | None = None,
    *,
    html: bool = False,
) -> list[Path]:
    """Write ``README.md``, ``tables/*`` and ``figures/*`` of a results folder; returns the files, the page first.

    Figures that the page showed before and whose records are gone are removed.

    Args:
        folder: holds ``records``.
        reference: the method that every other one is compared with, seed by seed.
        document: a Markdown file whose blocks are filled as :func:`fill` says; it comes last of the files.
        html: write ``report.html`` as well, a page to sort, filter and hover on, in one file that needs no network.

    Raises:
        UserError: the folder is missing, holds no record, or cannot be written to; no cell is of the reference (but
            for the default one); the document cannot be read, or its blocks are wrong.
    """
    folder = Path(folder)
    cells, found = _read(folder, reference)
    histories = frames.histories(folder)
    every_table = _tables(found, reference, histories)
    text = _filled(Path(document), every_table) if document else ""

    files: dict[Path, bytes] = {}
    for table in every_table:
        for suffix, written in (("md", documents.markdown), ("csv", documents.csv), ("tex", documents.latex)):
            files[folder / "tables" / f"{table.name}.{suffix}"] = written(table).encode()
    shown: dict[str, list[tuple[str, str]]] = {}
    every_look = looks({method: family for block in found for method, family in block.families.items()})
    with matplotlib.rc_context(RC):
        for block in found:
            shown[block.name] = []
            for drawing in _draw(block.without_draws(), every_look, histories, folder, reference):
                stem = f"figures/{block.name}_{drawing.name}"
                shown[block.name].append((f"{stem}.png", drawing.caption))
                for kind, content in rendered(drawing.figure).items():
                    files[folder / f"{stem}.{kind}"] = content
    page = documents.page(folder.resolve().name, found, every_table, shown, missing(cells))
    if html:
        widths = partial(frames.widths, folder)
        in_browser = interactive.page(folder.resolve().name, every_table[0], every_look, histories, widths)
        files[folder / "report.html"] = in_browser.encode()
    files = {folder / "README.md": page.encode()} | files | ({Path(document): text.encode()} if document else {})
    outdated = figures_shown(folder / "README.md") - files.keys()
    for path, content in files.items():
        write_file(path, content)
    for path in outdated:
        path.unlink(missing_ok=True)
    return list(files)


def fill(document: str | Path, folder: str | Path, reference: str = REFERENCE) -> str:
    """The text of a document with its blocks ``<!-- report:BLOCK:TABLE -->`` filled from a results folder.

    TABLE is ``comparison``, ``paired``, ``architectures``, ``headroom`` or ``requirements``; BLOCK is what the names of
    the block's figures begin with.

    Raises:
        UserError: the folder holds no record, the document cannot be read, or has a block that the folder does not.
    """
    folder = Path(folder)
    _, found = _read(folder, reference)
    return _filled(Path(document), _tables(found, reference, frames.histories(folder)))


def _read(folder: Path, reference: str) -> tuple[pd.DataFrame, list[Block]]:
    """The cells of a folder, and their blocks."""
    cells = frames.load(folder)
    if cells.empty:
        raise UserError(f"no finished cells in {str(folder)!r}; run `nasbench-grow reproduce --results {folder}` first")
    if reference != REFERENCE and reference not in set(cells["method"]):
        raise unknown("reference", reference, set(cells["method"]), hint=f"name a method that has a cell in {folder}")
    return cells, blocks_of(cells)


def _tables(found: list[Block], reference: str, histories: pd.DataFrame) -> list[Table]:
    return [
        tables.comparison(found),
        tables.paired(found, reference),
        tables.paired(found, FOUND, "architectures"),
        headroom(found),
        tables.requirements(found, histories),
    ]


def _filled(document: Path, every_table: list[Table]) -> str:
    try:
        text = document.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read {document}: {error.strerror}; name the document with --document") from None
    contents = {
        f"report:{part.block.name}:{table.name}": f"{documents.markdown_part(part)}\n\n{part.block.caption}"
        for table in every_table
        for part in table.parts
    }
    named = generated.names(text, "report")
    for name in named:
        if name not in contents:
            raise unknown("block of the document", name, contents, hint="rename its two markers")
    return generated.fill(text, {name: contents[name] for name in named})


def _draw(block: Block, every_look: Looks, histories: pd.DataFrame, folder: Path, reference: str) -> list[Drawing]:
    """Every figure of a block that its cells and their histories allow."""
    return [
        *figures.draw(block, every_look, reference),
        *training_figures.draw(block, every_look, histories, partial(frames.structures, folder)),
    ]
