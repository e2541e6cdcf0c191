"""What of the results is committed: little, and only what anybody can run again."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LIMIT_KB = 12_000


def committed() -> list[Path]:
    """The tracked files under ``results``."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z", "results"], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).exists()]


def test_committed_results_are_small() -> None:
    blocks = sum(-(-path.stat().st_size // 4096) * 4 for path in committed())
    assert blocks < LIMIT_KB


def test_every_committed_record_comes_from_a_clean_commit() -> None:
    records = [path for path in committed() if path.suffix == ".json" and "records" in path.parts]
    assert records
    for path in records:
        code = json.loads(path.read_text(encoding="utf-8"))["code_version"]
        assert code and not code.endswith("-dirty"), path
