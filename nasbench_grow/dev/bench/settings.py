"""How much is measured: the sizes of a full benchmark and of a quick look."""

from __future__ import annotations

from dataclasses import dataclass, replace

from nasbench_grow.harness.cell import DEFAULT_SETUP
from nasbench_grow.harness.setups import SETUPS, Setup


@dataclass(frozen=True)
class Settings:
    """Sizes of a benchmark run. The defaults are those of the targets on a CPU."""

    backbones: tuple[str, ...] = ("cifar_resnet20", "cifar_vgg16_bn")
    setup_name: str = DEFAULT_SETUP
    batch_size: int = 128
    pixels: int = 32
    seconds: float = 45.0
    """About how long the timed rounds of one comparison take."""
    min_rounds: int = 4
    """Rounds of a comparison, however long they take."""
    run_seconds: float = 90.0
    """About how long a whole dense run takes, of which the growing runs have the steps."""
    min_run_steps: int = 80
    """Optimizer steps of a whole run, however long they take."""
    restructurings: int = 12
    repeats: int = 3
    """Fresh processes started for each start-up time."""
    cells: int = 1000
    """Finished cells that are listed."""

    @property
    def setup(self) -> Setup:
        """How the machine is used."""
        return SETUPS[self.setup_name]

    def on(self, setup_name: str) -> Settings:
        """The same on another set-up. On a GPU there is a wider network too, and runs are shorter."""
        if SETUPS[setup_name].device == "cpu":
            return replace(self, setup_name=setup_name)
        backbones = (*self.backbones, "cifar_wrn28_10")
        return replace(self, setup_name=setup_name, backbones=backbones, run_seconds=self.run_seconds / 3)


FULL = Settings()
QUICK = Settings(
    batch_size=8, seconds=0.0, min_rounds=2, run_seconds=0.0, min_run_steps=16, restructurings=3, repeats=1, cells=50
)
EPOCH_STEPS = 390
"""Optimizer steps of an epoch of CIFAR-10 (50,000 images in batches of 128)."""
