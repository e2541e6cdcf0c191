"""Set-ups: on what device, in what memory layout and with what width granularity a cell runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

_Place = TypeVar("_Place", Tensor, nn.Module)


@dataclass(frozen=True)
class Setup:
    """How the machine is used. All cells of one comparison share a set-up."""

    name: str
    summary: str
    device: str = "cpu"
    channels_last: bool = False
    """Keep 4-d activations and weights as NHWC in memory; shapes stay NCHW."""
    granularity: int = 8
    """Widths are rounded to multiples of this: odd widths save multiply-accumulates but hardly any time."""

    def available(self) -> tuple[bool, str]:
        """Whether this machine can run the set-up and, if not, why not."""
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            return False, "PyTorch finds no CUDA device"
        return True, ""

    def place(self, thing: _Place) -> _Place:
        """The tensor or module on the set-up's device in its memory layout."""
        memory_format = torch.channels_last if self.channels_last else torch.contiguous_format
        if isinstance(thing, Tensor) and thing.ndim != 4:
            return thing.to(self.device)
        return thing.to(self.device, memory_format=memory_format)  # type: ignore[call-overload]


SETUPS = {
    setup.name: setup
    for setup in (
        Setup("cpu", "CPU, tensors in PyTorch's default layout (NCHW)"),
        Setup("cpu-channels-last", "CPU, tensors with channels last in memory (NHWC)", channels_last=True),
    )
}
