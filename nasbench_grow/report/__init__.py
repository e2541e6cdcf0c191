"""Tables, figures and a page to read them on, computed from the records of a results folder and from nothing else."""

from __future__ import annotations

from pathlib import Path

import matplotlib

from nasbench_grow.base.errors import UserError
from nasbench_grow.report import documents, tables
from nasbench_grow.report import frames as results
from nasbench_grow.report.figures import draw
from nasbench_grow.report.missing import missing
from nasbench_grow.report.output import figures_shown, rendered, write_file
from nasbench_grow.report.protocol import blocks
from nasbench_grow.report.style import RC

__all__ = ["write"]


def write(folder: str | Path = "results") -> list[Path]:
    """Write ``README.md``, ``tables/*`` and ``figures/*`` of a results folder; returns the files, the page first.

    Figures that the page showed before and whose records are gone are removed.

    Raises:
        UserError: the folder is missing, holds no record, or cannot be written to.
    """
    folder = Path(folder)
    cells = results.load(folder)
    if cells.empty:
        raise UserError(f"no finished cells in {str(folder)!r}; run `nasbench-grow reproduce --results {folder}` first")
    found = blocks(cells)
    histories = results.histories(folder)
    every_table = [tables.comparison(found), tables.paired(found), tables.requirements(found, histories)]

    files: dict[Path, bytes] = {}
    for table in every_table:
        for suffix, text in (("md", documents.markdown), ("csv", documents.csv), ("tex", documents.latex)):
            files[folder / "tables" / f"{table.name}.{suffix}"] = text(table).encode()
    shown: dict[str, list[tuple[str, str]]] = {}
    with matplotlib.rc_context(RC):
        for block in found:
            shown[block.name] = []
            for drawing in draw(block, histories, lambda run_keys: results.widths(folder, run_keys)):
                stem = f"figures/{block.name}_{drawing.name}"
                shown[block.name].append((f"{stem}.png", drawing.caption))
                for kind, content in rendered(drawing.figure).items():
                    files[folder / f"{stem}.{kind}"] = content
    page = documents.page(folder.resolve().name, found, every_table, shown, missing(cells))
    files = {folder / "README.md": page.encode()} | files
    outdated = figures_shown(folder / "README.md") - files.keys()
    for path, content in files.items():
        write_file(path, content)
    for path in outdated:
        path.unlink(missing_ok=True)
    return list(files)
