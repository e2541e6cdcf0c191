"""Where data sets and tables of step times are kept between runs."""

from __future__ import annotations

import os
from pathlib import Path

from nasbench_grow.base.errors import UserError

FOLDER_VARIABLE = "NASBENCH_GROW_DATA"


def data_folder() -> Path:
    """The folder that data sets live in: ``$NASBENCH_GROW_DATA``, else ``~/.cache/nasbench-grow``, made if missing.

    Raises:
        UserError: the variable names a folder that does not exist, or the default one cannot be made.
    """
    named = os.environ.get(FOLDER_VARIABLE)
    if named:
        folder = Path(named).expanduser()
        if not folder.is_dir():
            raise UserError(
                f"{FOLDER_VARIABLE} is {named!r}, which is not a folder; create it, or unset the variable to use "
                "~/.cache/nasbench-grow"
            )
        return folder
    folder = Path.home() / ".cache" / "nasbench-grow"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise not_writable(folder, error) from error
    return folder


def not_writable(folder: Path, error: OSError) -> UserError:
    """The error for a data folder that cannot be written."""
    return UserError(
        f"cannot write to the data folder {folder} ({error.strerror or error}); free it, or set {FOLDER_VARIABLE} to "
        "another folder"
    )
