"""Tables as CSV, Markdown and LaTeX, and the page that shows everything."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from nasbench_grow.report.block import Block
from nasbench_grow.report.tables import Part, Table

_LATEX = {
    "\\": r"\textbackslash{}",
    "\N{PLUS-MINUS SIGN}": r"$\pm$",
    "\N{MINUS SIGN}": "$-$",
    "\N{MULTIPLICATION SIGN}": r"$\times$",
    "\N{BALLOT X}": r"$\times$",
    "\N{LESS-THAN OR EQUAL TO}": r"$\leq$",
    "\N{EN DASH}": "--",
    "\N{BLACK STAR}": r"$\star$",
    "*": "",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
} | {sign: f"\\{sign}" for sign in "&%$#_{}"}

_LATEX_FITS = 6
"""So many columns fit on a page in small type; wider tables are scaled down."""
_LEFT = ("method", "pair")


def csv(table: Table) -> str:
    """The table's unrounded numbers."""
    return table.data.to_csv(index=False, lineterminator="\n")


def markdown(table: Table) -> str:
    """The table with a caption for each block, as a page of its own."""
    parts = [f"## {part.block.title}\n\n{markdown_part(part)}\n\n{part.block.caption}" for part in table.parts]
    return "\n\n".join([f"# {table.title}", *(parts or ["No cells for this table."])]) + "\n"


def markdown_part(part: Part) -> str:
    """One block's rows as a pipe table, numbers to the right, with its notes."""
    align = ["left" if name in _LEFT else "right" for name in part.rows.columns]
    rows = str(part.rows.to_markdown(index=False, colalign=align, disable_numparse=True))
    return "\n\n".join([rows, *part.notes])


def latex(table: Table) -> str:
    """The table in booktabs style, a ``table`` environment for each block.

    Needs the packages ``booktabs`` and, for wide tables, ``graphicx``.
    """
    environments = []
    for number, part in enumerate(table.parts, start=1):
        rows = part.rows.map(_escape).rename(columns=_escape)
        text = rows.to_latex(
            index=False,
            column_format="".join("l" if name in _LEFT else "r" for name in part.rows.columns),
            caption=_escape(" ".join([f"{table.title}. {part.block.caption}", *part.notes])),
            label=f"tab:{table.name}-{number}",
            position="t",
        )
        text = text.replace("\\begin{tabular}", "\\centering\\small\n\\begin{tabular}", 1)
        if len(rows.columns) > _LATEX_FITS:
            text = text.replace("\\begin{tabular}", "\\resizebox{\\textwidth}{!}{%\n\\begin{tabular}", 1)
            text = text.replace("\\end{tabular}", "\\end{tabular}}", 1)
        environments.append(text)
    return "\n".join(environments) or f"% {table.title}: no cells for this table.\n"


def page(
    folder: str,
    blocks: list[Block],
    tables: list[Table],
    figures: Mapping[str, list[tuple[str, str]]],
    missing: pd.DataFrame,
) -> str:
    """The page that a stranger opens first: the comparison of every block, then all details.

    Args:
        folder: the results folder's name.
        blocks: the blocks found.
        tables: the tables; of each block the first one and the first figure lead.
        figures: for each block's name, the figures' paths relative to the page, with captions.
        missing: what was planned and is not there, as :func:`nasbench_grow.report.missing.missing` gives it.
    """
    cells = pd.concat([block.cells for block in blocks])
    counts = cells["status"].value_counts()
    others = "".join(f", {counts[status]} {status}" for status in counts.index if status != "ok")
    sections = [
        "# Results",
        f"Finished cells: {counts.get('ok', 0)}{others}. "
        "A cell is one method, task, backbone, set-up, budget and seed. Every number below is computed from "
        "`records/*.json`; this page, `tables/` and `figures/` are written anew by each `nasbench-grow report`.",
    ]
    for block in blocks:
        lead = [markdown_part(part) for part in tables[0].parts if part.block is block]
        sections += [f"## {block.title}", *lead, block.caption, *_pictures(figures[block.name][:1])]
    sections.append("# Details")
    for block in blocks:
        sections += [f"## Details: {block.title}"]
        for table in tables[1:]:
            sections += [f"### {table.title}\n\n{markdown_part(part)}" for part in table.parts if part.block is block]
        sections += _pictures(figures[block.name][1:])
    sections += [*_unfinished(cells), *_planned(missing), _HOW_TO_READ.format(folder=folder)]
    return "\n\n".join(section for section in sections if section) + "\n"


_HOW_TO_READ = """## Reading the records

```python
import nasbench_grow.results

frame = nasbench_grow.results.load("{folder}")  # a row a cell
frame.groupby(["method", "budget"])["val_metric"].agg(["mean", "std", "count"])
```

The same tables lie in `tables/` as CSV (unrounded), Markdown and LaTeX, the figures in `figures/` as PNG and PDF."""


def _pictures(figures: list[tuple[str, str]]) -> list[str]:
    return [f"![{Path(path).stem}]({path})\n\n*{caption}*" for path, caption in figures]


def _unfinished(cells: pd.DataFrame) -> list[str]:
    """The section that lists the cells that failed or diverged, with their errors; empty where there is none."""
    bad = cells[cells["status"].isin(["failed", "diverged"])]
    if bad.empty:
        return []
    columns = ["method", "task", "backbone", "setup", "budget", "seed", "status", "error"]
    return ["## Cells without a result", bad[columns].fillna("").to_markdown(index=False)]


def _planned(missing: pd.DataFrame) -> list[str]:
    """The section that lists what the profiles still lack; empty where they lack nothing."""
    if missing.empty:
        return []
    lead = "Of the profiles that these cells belong to, these are still to be run; `nasbench-grow reproduce` goes on."
    return ["## Still missing", lead, missing.to_markdown(index=False)]


def _escape(text: str) -> str:
    """Plain text for LaTeX."""
    return re.sub("|".join(map(re.escape, _LATEX)), lambda match: _LATEX[match[0]], str(text))
