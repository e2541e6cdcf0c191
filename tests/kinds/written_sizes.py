"""Networks whose code writes the number of their features down, as tutorials do."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class LeNet(nn.Module):
    """Two convolutions, and three linear layers on a flat view of so many features."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3)
        self.fc1, self.fc2 = nn.Linear(6 * 2 * 2, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.conv1(x).relu(), 2)
        x = F.max_pool2d(self.conv2(x).relu(), 2)
        x = x.view(-1, 6 * 2 * 2)
        return self.fc2(self.fc1(x).relu())


class Generator(nn.Module):
    """Noise (batch, 5) to images (batch, 3, 8, 8), through a view of so many channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.up, self.last = nn.Linear(5, 6 * 4 * 4), nn.ConvTranspose2d(6, 4, 2, 2), nn.Conv2d(4, 3, 1)

    def forward(self, noise: Tensor) -> Tensor:
        x = self.first(noise).relu().reshape(noise.shape[0], 6, 4, 4)
        return self.last(self.up(x).relu())
