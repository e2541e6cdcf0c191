"""Downloading a package's archive with the packager's own program."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from nasbench_grow.data.cache import SourceError

TIME_LIMIT_S = 1800


def download(name: str, command: Sequence[str], work: Path, suffix: str) -> Path:
    """The one archive that ``command`` leaves in the folder ``work``.

    Args:
        name: the program as the user should read it, e.g. "npm pack".
        command: the program and its arguments; it runs in ``work``.
        work: an empty folder.
        suffix: of the archive's name, e.g. ".tgz".
    Raises:
        SourceError: the program fails, takes longer than half an hour, or leaves another number of archives than one.
    """
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=TIME_LIMIT_S, cwd=work)
    except subprocess.CalledProcessError as error:
        raise SourceError(f"{name} failed with exit code {error.returncode}: {error.stderr[-200:]}") from error
    except subprocess.TimeoutExpired as error:
        raise SourceError(f"{name} took longer than {TIME_LIMIT_S} s") from error
    archives = list(work.glob(f"*{suffix}"))
    if len(archives) != 1:
        raise SourceError(f"{name} left {len(archives)} archives instead of one")
    return archives[0]
