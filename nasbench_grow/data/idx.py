"""Reading the IDX file format of the MNIST family, plain or gzipped."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

_MAGIC_UINT8 = b"\x00\x00\x08"


def read_idx(path: Path) -> Tensor:
    """Read an IDX file of unsigned bytes.

    The file starts with two zero bytes, the type (8: unsigned byte) and the number of axes; then come the sizes as
    big-endian 32-bit numbers, then the values in row-major order.

    Args:
        path: the file; a name that ends in ``.gz`` is unpacked on the fly.
    Returns:
        uint8 tensor of the shape that the file states.
    Raises:
        ValueError: the file is no such file, or is truncated.
        OSError: the file cannot be opened.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is truncated or not a gzip file") from error
    axes = content[3] if len(content) > 3 else 0
    start = 4 + 4 * axes
    if content[:3] != _MAGIC_UINT8 or len(content) < start:
        raise ValueError(f"{path} is not an IDX file of unsigned bytes")
    shape = [int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4)]
    if len(content) - start != math.prod(shape):
        raise ValueError(f"{path} holds {len(content) - start} values instead of {math.prod(shape)}")
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=start).copy()).view(shape)
