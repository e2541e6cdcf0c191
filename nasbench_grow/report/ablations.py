"""What the records say on each question about growing: tables, figures, and the blocks of ``docs/ablations.md``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from tqdm import tqdm

from nasbench_grow.base.errors import UserError
from nasbench_grow.harness.ablations import QUESTIONS, Question
from nasbench_grow.report import ablation_figures, ablation_tables, documents, marked
from nasbench_grow.report import frames as results
from nasbench_grow.report.figures import Widths
from nasbench_grow.report.output import rendered, write_file
from nasbench_grow.report.protocol import Block, blocks, provenance
from nasbench_grow.report.studies import Study, asked_cells, studies
from nasbench_grow.report.style import RC
from nasbench_grow.report.tables import Table

_ARCHITECTURE = (("retrain", "uniform"), ("retrain", "random"))
_TRAINING = (("grow", "retrain"), ("grow", "uniform"), ("grow", "random"))
_PAIRED = "Differences of the test metric, paired by seed"


@dataclass(frozen=True)
class Exhibit:
    """A table and a figure that answer a question, or a part of it; ``name`` is their files' stem."""

    name: str
    question: Question
    studied: list[Study]
    table: Table
    caption: str
    draw: Callable[[], Figure | None]

    @cached_property
    def figure(self) -> Figure | None:
        """The figure; None where the records do not allow one."""
        with matplotlib.rc_context(RC):
            return self.draw()


def write(
    folder: str | Path = "results/ablations",
    document: str | Path = "docs/ablations.md",
    questions: Iterable[Question] = QUESTIONS,
) -> list[Path]:
    """Write ``tables/*`` and ``figures/*`` of a results folder and the blocks of a document; returns the files.

    The document comes first. A question without a record gets no file, and a block that says so.

    Raises:
        UserError: the folder or the document is missing or cannot be written, or the document's markers are wrong.
    """
    folder, document = Path(folder), Path(document)
    try:
        text = document.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read {document}: {error.strerror}; name the document with --document") from None
    found = exhibits(folder, questions)
    files = {document: marked.fill(text, contents(found, folder, document)).encode()}
    recorded = [exhibit for exhibit in found if exhibit.studied]
    for exhibit in tqdm(recorded, desc="tables and figures", leave=False, disable=None, file=sys.stderr):
        table = exhibit.table
        files[folder / "tables" / f"{table.name}.csv"] = documents.csv(table).encode()
        files[folder / "tables" / f"{table.name}.md"] = documents.markdown(table).encode()
        with matplotlib.rc_context(RC):
            for kind, content in (rendered(exhibit.figure) if exhibit.figure else {}).items():
                files[folder / "figures" / f"{exhibit.name}.{kind}"] = content
    for path, content in files.items():
        write_file(path, content)
    return list(files)


def exhibits(folder: str | Path, questions: Iterable[Question] = QUESTIONS) -> list[Exhibit]:
    """Every table and figure of some questions, from the records of a folder.

    Raises:
        UserError: the folder does not exist.
    """
    found = blocks(results.load(folder))
    widths = partial(results.widths, folder)
    return [exhibit for question in questions for exhibit in _exhibits(question, found, widths)]


def contents(found: Iterable[Exhibit], folder: Path, document: Path) -> dict[str, str]:
    """What stands in the document's block of each exhibit; links lead from the document to the folder."""
    figures = Path(os.path.relpath(folder / "figures", document.parent)).as_posix()
    return {exhibit.name: _content(exhibit, figures, folder.as_posix()) for exhibit in found}


def _exhibits(question: Question, found: list[Block], widths: Widths) -> list[Exhibit]:
    """The exhibits of one question, by its form."""
    studied = studies(question, found)
    name, title = question.name, question.title[0].upper() + question.title[1:]
    seeds = (
        "grey points are seeds, coloured ones their mean with the 95 % Student t interval, cut where it leaves the axes"
    )
    if question.form == "stability":
        return [
            Exhibit(
                name,
                question,
                studied,
                ablation_tables.stability(name, title, studied, widths),
                f"Test metric of every seed: {seeds}.",
                lambda: ablation_figures.stability(studied),
            )
        ]
    if question.form == "variants":
        return [
            Exhibit(
                name,
                question,
                studied,
                ablation_tables.variants(name, title, studied),
                f"{_PAIRED}: {seeds}.",
                lambda: ablation_figures.variants(studied),
            )
        ]
    parts = [
        Exhibit(
            part,
            question,
            studied,
            ablation_tables.couples(part, part.capitalize(), studied, pairs),
            f"{_PAIRED}: {seeds}.",
            lambda pairs=pairs: ablation_figures.couples(studied, pairs),  # type: ignore[misc]
        )
        for part, pairs in (("architecture", _ARCHITECTURE), ("training", _TRAINING))
    ]
    price = Exhibit(
        "price",
        question,
        studied,
        ablation_tables.price("price", "Price", studied),
        "Test metric against what training costs, a line over the budgets of each method: means over seeds with the "
        "95 % Student t interval. On the left, methods are moved apart sideways by a few points.",
        lambda: ablation_figures.price(studied),
    )
    return [*parts, price]


def _content(exhibit: Exhibit, figures: str, folder: str) -> str:
    """A block of the document: tables, figure, protocol, and the command that runs the cells again."""
    command = f"`nasbench-grow reproduce --profile {exhibit.question.profile.name} --results {folder}`"
    if not exhibit.studied:
        return f"No records yet. Run the cells: {command}"
    sections = []
    for part in exhibit.table.parts:
        sections += [documents.markdown_rows(part), part.note, _protocol(part.block)]
    finished = sum(len(study.own.finished) for study in exhibit.studied)
    asked = asked_cells(exhibit.question)
    if finished < asked:
        sections.append(f"**{finished} of {asked} cells are finished.**")
    if exhibit.figure:
        sections.append(f"![{exhibit.name}]({figures}/{exhibit.name}.png)\n\n*{exhibit.caption}*")
    return "\n\n".join([*sections, f"Run again: {command}"])


def _protocol(block: Block) -> str:
    """Under which protocol and on which machine the cells were run, in one line."""
    seeds = sorted(int(seed) for seed in set(block.cells["seed"]))
    whole = seeds == list(range(seeds[0], seeds[-1] + 1)) and len(seeds) > 2
    machine = provenance(block.cells.filter(regex="^hardware_|^versions_torch$"))
    listed = f"{seeds[0]} to {seeds[-1]}" if whole else ", ".join(map(str, seeds))
    return f"{block.title}; seeds {listed}. {machine}".strip()
