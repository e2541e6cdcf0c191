"""The C library's heap: whether memory that a step frees stays with the process, for the next step to use again.

By default glibc gives large blocks back to the system at once, and a training step is made of large blocks: at every
step Linux hands over, and clears, the same pages anew, which takes a good part of the step. Elsewhere than on glibc all
of this does nothing.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Parameters of ``mallopt`` (malloc.h)."""


def keep_freed() -> None:
    """From now on freed memory stays with the process; the variables MALLOC_TRIM_THRESHOLD_=-1 and MALLOC_MMAP_MAX_=0
    do the same from outside."""
    with suppress(AttributeError, OSError):
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_MAX, 0)  # large blocks come from the heap, not from the system one by one
        library.mallopt(_TRIM_THRESHOLD, -1)  # -1: the heap never shrinks by itself


def give_back() -> None:
    """Gives the memory that is free now back to the system."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
