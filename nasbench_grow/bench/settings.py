"""How much is measured: the sizes of a full benchmark and of a quick look."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Sizes of a benchmark run. The defaults are those of the targets."""

    backbones: tuple[str, ...] = ("cifar_resnet20", "cifar_vgg16_bn")
    batch_size: int = 128
    pixels: int = 32
    seconds: float = 45.0
    """About how long the timed rounds of one comparison take."""
    min_rounds: int = 4
    """Rounds of a comparison, however long they take."""
    run_steps: int = 160
    """Optimizer steps of a whole run."""
    restructurings: int = 12
    repeats: int = 3
    """Fresh processes started for each start-up time."""
    cells: int = 1000
    """Finished cells that are listed."""


FULL = Settings()
QUICK = Settings(batch_size=8, seconds=0.0, min_rounds=2, run_steps=16, restructurings=3, repeats=1, cells=50)
EPOCH_STEPS = 390
"""Optimizer steps of an epoch of CIFAR-10 (50,000 images in batches of 128)."""
