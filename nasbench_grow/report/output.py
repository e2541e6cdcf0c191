"""Figures as bytes, and files written whole."""

from __future__ import annotations

import io
import re
from pathlib import Path

from matplotlib.figure import Figure

from nasbench_grow.base.errors import UserError
from nasbench_grow.base.files import write_whole


def rendered(figure: Figure) -> dict[str, bytes]:
    """The content of the figure's files by their kind; the same figure gives the same bytes."""
    png, pdf = io.BytesIO(), io.BytesIO()
    figure.savefig(png, format="png", dpi=160)
    figure.set_layout_engine("none")  # laid out by now; doing it again takes longer than the rest
    figure.savefig(pdf, format="pdf", metadata={"CreationDate": None})
    return {"png": png.getvalue(), "pdf": pdf.getvalue()}


def write_file(path: Path, content: bytes) -> None:
    """Write a file whole.

    Raises:
        UserError: it cannot be written.
    """
    try:
        write_whole(path, content)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}; free space or choose a folder you may write to"
        ) from None


def figures_shown(page: Path) -> set[Path]:
    """The files of the figures that a page shows, if there is one."""
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    stems = re.findall(r"\]\((figures/[^)]+)\.png\)", text)
    return {page.parent / f"{stem}.{kind}" for stem in stems for kind in ("png", "pdf")}
