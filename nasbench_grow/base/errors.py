"""The one exception whose message is meant for a person at a terminal."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input: one line that names the offending value, the allowed ones and the fix.

    The command line prints the message without a traceback and exits with code 2.
    """


def unknown(kind: str, name: str, known: Iterable[str], hint: str = "") -> UserError:
    """The error for a name that is not registered, with the nearest known name.

    Args:
        kind: what the name stands for, e.g. ``"method"``.
        name: what the user typed.
        known: every name that would have been accepted.
        hint: how to go on, appended to the line (optional).
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    nearest = f"; did you mean {near[0]!r}?" if near else ""
    line = f"unknown {kind} {name!r}{nearest} (known: {', '.join(names)})"
    return UserError(f"{line}; {hint}" if hint else line)


def one_line(error: Exception) -> str:
    """An exception's class and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
