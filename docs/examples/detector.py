"""A detector-like network: two heads, a loss of its own, and batches that are dicts.

    python detector.py small.safetensors --epochs 20

It finds the bright square in a noisy picture: where it is (four numbers), and whether there is one. ``step`` calls the
network and gives the loss, so that neither its outputs nor its batches need to look like a classifier's.
"""

import argparse

import torch
from torch import nn
from torch.nn import functional as F

import nasbench_grow

parser = argparse.ArgumentParser()
parser.add_argument("out")
parser.add_argument("--pictures", type=int, default=2048)
parser.add_argument("--epochs", type=int, default=20)
parser.add_argument("--budget", type=float, default=0.5)
options = parser.parse_args()


class Detector(nn.Module):
    """A backbone with a head for boxes and one for scores: (batch, 1, 32, 32) to {"box", "score"}."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        layers = [(1, width), (width, 2 * width), (2 * width, 2 * width)]
        blocks = [(nn.Conv2d(a, b, 3, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU()) for a, b in layers]
        self.backbone = nn.Sequential(*(layer for block in blocks for layer in block), nn.Flatten())
        self.box, self.score = nn.Linear(32 * width, 4), nn.Linear(32 * width, 1)

    def forward(self, pictures: torch.Tensor) -> dict[str, torch.Tensor]:
        features = self.backbone(pictures)
        return {"box": self.box(features), "score": self.score(features).squeeze(1)}


def batch(size: int = 32) -> dict[str, torch.Tensor]:
    """Noise, half of it with a square; boxes are left, top, right, bottom as shares of the side."""
    pictures, there = 0.3 * torch.randn(size, 1, 32, 32), torch.arange(size) % 2
    corners = torch.randint(24, (size, 2))
    for picture, (x, y) in zip(pictures[there == 1], corners[there == 1].tolist(), strict=True):
        picture[:, y : y + 8, x : x + 8] += 1
    return {"pictures": pictures, "box": torch.cat([corners, corners + 8], 1) / 32, "there": there.float()}


def step(network: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    found, there = network(batch["pictures"]), batch["there"]
    off = F.smooth_l1_loss(found["box"], batch["box"], reduction="none").mean(1)
    return F.binary_cross_entropy_with_logits(found["score"], there) + (off * there).mean()


loader, example = [batch() for _ in range(options.pictures // 32)], torch.zeros(1, 1, 32, 32)
grown = nasbench_grow.grow(Detector(), example, loader, budget=options.budget, epochs=options.epochs, step=step)
grown.save(options.out)
network = nasbench_grow.load(options.out, model=Detector())
print(f"loss {grown.history[-1]['loss']:.3f} with {grown.macs / grown.dense_macs:.2f} of the multiply-accumulates")
