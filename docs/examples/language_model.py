"""A small language model that predicts the next character of a text of your own.

    python language_model.py text.txt small.safetensors --epochs 20

Embedding, two LSTM layers and a classifier: units of every layer are grown, each in all of its gates.
"""

import argparse
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import nasbench_grow

parser = argparse.ArgumentParser()
parser.add_argument("text")
parser.add_argument("out")
parser.add_argument("--units", type=int, default=256)
parser.add_argument("--epochs", type=int, default=20)
parser.add_argument("--length", type=int, default=64)
parser.add_argument("--batch-size", type=int, default=16)
options = parser.parse_args()


class CharacterModel(nn.Module):
    """Logits of the character after each character: (batch, time) to (batch, time, characters)."""

    def __init__(self, characters: int, units: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, units)
        self.lower = nn.LSTM(units, units, batch_first=True)
        self.upper = nn.LSTM(units, units, batch_first=True)
        self.decoder = nn.Linear(units, characters)

    def forward(self, characters: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.upper(self.lower(self.embedding(characters))[0])[0])


text = Path(options.text).read_text()
alphabet = sorted(set(text))
numbers = torch.tensor([alphabet.index(character) for character in text])
rows = numbers[: (len(numbers) - 1) // options.length * options.length + 1].unfold(
    0, options.length + 1, options.length
)
batches = [(part[:, :-1], part[:, 1:]) for part in rows.split(options.batch_size)]

model = CharacterModel(len(alphabet), options.units)
grown = nasbench_grow.grow(
    model,
    torch.zeros(1, options.length, dtype=torch.long),
    batches,
    budget=0.5,
    epochs=options.epochs,
    loss=lambda logits, targets: F.cross_entropy(logits.flatten(0, 1), targets.flatten()),
    optimizer=lambda network: torch.optim.AdamW(network.parameters(), lr=0.002),
)
grown.save(options.out, class_names=alphabet)
network = nasbench_grow.load(options.out, model=CharacterModel(len(alphabet), options.units))
print(f"loss {grown.history[-1]['loss']:.3f} with {grown.macs / grown.dense_macs:.2f} of the multiply-accumulates")
