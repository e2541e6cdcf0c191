"""Code in a fresh interpreter: for what a process that has measured before would falsify."""

from __future__ import annotations

import subprocess
import sys


def printed(code: str, *arguments: str) -> str:
    """What ``code``, run in a new process with these arguments, writes to stdout."""
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
