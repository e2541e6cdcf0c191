"""The LSTM language models of Zaremba, Sutskever, Vinyals, "Recurrent Neural Network Regularization" (arXiv 1409.2329).

Two LSTM layers between an embedding and a softmax over the vocabulary; dropout on what is handed upwards, never on what
is handed from one time step to the next (section 3.2). Each layer is an ``nn.LSTM`` of its own, so that the layers can
have different widths and each still runs fused on a GPU.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from nasbench_grow.backbones.registering import backbone


class LanguageModel(nn.Module):
    """Predicts each next word: (B, 1 + T) int64 to (B, T, vocabulary) logits.

    The first column of the input says whether a sequence goes on where the sequence in the same row of the last batch
    ended (1) or starts afresh (0); then come the numbers of T words. The hidden states (h and c of every layer, in
    buffers that are not saved) are carried along; gradients stop at the batch. A batch of another size starts afresh.
    """

    def __init__(self, vocabulary: int, units: int, layers: int, dropout: float, scale: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, units)
        self.layers = nn.ModuleList(nn.LSTM(units, units, batch_first=True) for _ in range(layers))
        for layer in self.layers:
            layer.register_buffer("hidden", torch.zeros(1, 0, units), persistent=False)
            layer.register_buffer("cell", torch.zeros(1, 0, units), persistent=False)
        self.dropout = nn.Dropout(dropout)
        self.decoder = nn.Linear(units, vocabulary)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -scale, scale)

    def get_classifier(self) -> nn.Linear:
        """The layer that gives the logits, by the name that it has in timm's models."""
        return self.decoder

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits of the word after each word."""
        goes_on, words = inputs[:, 0] > 0, inputs[:, 1:]
        features = self.dropout(self.embedding(words))
        for layer in cast("list[nn.LSTM]", self.layers):
            with torch.autocast("cuda", enabled=False):  # which takes fp16 for LSTMs, whatever it is asked for
                features, (hidden, cell) = layer(features, _state(layer, features, goes_on))
            features = self.dropout(features)
            layer.hidden, layer.cell = hidden.detach(), cell.detach()
        return self.decoder(features)


def _state(layer: nn.LSTM, features: Tensor, goes_on: Tensor) -> tuple[Tensor, Tensor]:
    """The layer's state at the start of a batch (h and c, each (1, B, units)); zero where a sequence starts afresh."""
    hidden, cell = layer.get_buffer("hidden"), layer.get_buffer("cell")
    fresh = features.new_zeros(1, len(features), layer.hidden_size)
    if hidden.shape != fresh.shape:
        return fresh, fresh
    kept = goes_on.view(1, -1, 1)
    return torch.where(kept, hidden, fresh), torch.where(kept, cell, fresh)


@backbone
def lstm_1500(num_classes: int, in_chans: int) -> nn.Module:
    """Two LSTM layers of 1,500 units for language modelling, dropout 0.65 (Zaremba et al. 2014, large)."""
    return LanguageModel(num_classes, units=1500, layers=2, dropout=0.65, scale=0.04)


@backbone
def lstm_650(num_classes: int, in_chans: int) -> nn.Module:
    """Two LSTM layers of 650 units for language modelling, dropout 0.5 (Zaremba et al. 2014, medium)."""
    return LanguageModel(num_classes, units=650, layers=2, dropout=0.5, scale=0.05)


@backbone
def lstm_200(num_classes: int, in_chans: int) -> nn.Module:
    """Two LSTM layers of 200 units for language modelling, no dropout (Zaremba et al. 2014, not regularised)."""
    return LanguageModel(num_classes, units=200, layers=2, dropout=0.0, scale=0.1)
