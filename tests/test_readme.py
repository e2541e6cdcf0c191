"""What the README shows must work as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_example_with_your_own_loop_runs(tmp_path, monkeypatch):
    (example,) = (code for code in re.findall(r"```python\n(.*?)```", README, re.S) if "nasbench_grow.grow(" in code)
    monkeypatch.chdir(tmp_path)
    shown: dict = {}
    exec(example, shown)
    with torch.inference_mode():
        assert shown["network"](torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert shown["grown"].macs / shown["grown"].dense_macs == pytest.approx(0.5, abs=0.02)
    assert len(example.splitlines()) <= 12


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda page: page.name
)
def test_every_link_and_picture_leads_to_a_file(page):
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8"))
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing
