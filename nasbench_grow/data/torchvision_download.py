"""Torchvision's own download of a data set, as one of the sources of the data folder."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

from nasbench_grow.base.errors import UserError
from nasbench_grow.data.cache import Source, SourceError
from nasbench_grow.data.raw import Raw

SILENCE_LIMIT_S = 30
"""A server that says nothing for so long is given up; torchvision itself would wait for ever."""


def source(dataset: str, size: str, read_layout: Callable[[Path], Raw]) -> Source:
    """The source that downloads ``torchvision.datasets.<dataset>`` and reads the folder that this makes."""

    def fetch(work: Path) -> Raw:
        import torchvision.datasets

        patience = socket.getdefaulttimeout()
        socket.setdefaulttimeout(SILENCE_LIMIT_S)
        try:
            getattr(torchvision.datasets, dataset)(work, download=True)
            return read_layout(work)
        except (OSError, RuntimeError, UserError) as error:
            raise SourceError(str(error)) from error
        finally:
            socket.setdefaulttimeout(patience)

    return Source(f"torchvision's download, {size}", fetch)
