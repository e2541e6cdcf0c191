"""The scripts of docs/examples run as they stand, on tiny data."""

from __future__ import annotations

import inspect
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import nasbench_grow
import nasbench_grow.backbones

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"
needs_step = pytest.mark.skipif(
    "step" not in inspect.signature(nasbench_grow.grow).parameters, reason="grow takes no step here"
)


def run(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: str) -> dict[str, Any]:
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    return runpy.run_path(str(EXAMPLES / name))


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_is_short(script: Path) -> None:
    assert len(script.read_text().splitlines()) < 60


def test_own_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    generator = torch.Generator().manual_seed(0)
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(8):
            pixels = torch.randint(256, (20, 24, 3), generator=generator, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(tmp_path / "photos" / name / f"{number}.jpg")
    out = str(tmp_path / "small.safetensors")
    small = ("--model", "cifar_resnet20", "--size", "16", "--epochs", "2", "--batch-size", "8")
    shown = run(monkeypatch, "own_images.py", str(tmp_path / "photos"), out, *small)
    assert shown["network"].class_names == ["cat", "dog"]
    assert shown["grown"].macs / shown["grown"].dense_macs == pytest.approx(0.5, abs=0.02)
    assert "cat, dog: " in capsys.readouterr().out


def test_language_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 30)
    out = str(tmp_path / "small.safetensors")
    small = ("--units", "32", "--epochs", "3", "--length", "16", "--batch-size", "8")
    shown = run(monkeypatch, "language_model.py", str(tmp_path / "text.txt"), out, *small)
    history = shown["grown"].history
    assert history[-1]["loss"] < history[0]["loss"]
    assert shown["grown"].macs / shown["grown"].dense_macs == pytest.approx(0.5, abs=0.05)
    characters = torch.zeros(1, 5, dtype=torch.long)
    with torch.no_grad():
        assert torch.equal(shown["network"](characters), shown["grown"].network(characters))


@needs_step
def test_detector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = run(monkeypatch, "detector.py", str(tmp_path / "small.safetensors"), "--pictures", "128", "--epochs", "2")
    with torch.no_grad():
        found = shown["network"](torch.zeros(2, 1, 32, 32))
    assert (found["box"].shape, found["score"].shape) == ((2, 4), (2,))
    assert shown["grown"].macs / shown["grown"].dense_macs == pytest.approx(0.5, abs=0.03)
