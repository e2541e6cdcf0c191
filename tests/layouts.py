"""Layouts of users' models, as small as they can be: layers of their own, gates, and attention as others write it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Does(nn.Module):
    """What ``function`` does with the module itself, which has the given parts, and its input."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor], /, **parts: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def image(*modules: nn.Module, width: int = 16) -> nn.Module:
    """(B, 3, 8, 8) to (B, 3), by a stem of 16 channels and modules that give ``width``."""
    ends = (nn.ReLU(), nn.Conv2d(width, 8, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), *modules, *ends)


def tokens(*modules: nn.Module, width: int = 16) -> nn.Module:
    """(B, 5, 8) to (B, 5, 3), by a stem of 16 features and modules that give ``width``."""
    return nn.Sequential(nn.Linear(8, 16), *modules, nn.Linear(width, 12), nn.GELU(), nn.Linear(12, 3))


class RootMeanSquare(nn.Module):
    """Divides by the root mean square of all features, so that none can leave unnoticed."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class Own(nn.Module):
    """A linear layer of parameters of one's own."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.randn(12, 16) / 4), nn.Parameter(torch.randn(12))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.w.t() + self.b


class Gated(nn.Module):
    """An MLP with a gate; both halves come from one layer and are told apart by ``divide``."""

    def __init__(self, divide: Callable[[Tensor, int], tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.up, self.down, self.hidden, self.divide = nn.Linear(16, 48), nn.Linear(24, 16), 24, divide

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.divide(self.up(x), self.hidden)
        return self.down(F.silu(gate) * value)


def shuffled(x: Tensor) -> Tensor:
    """The channels of four groups in turn."""
    batch, channels, height, width = x.shape
    return x.view(batch, 4, channels // 4, height, width).transpose(1, 2).reshape(x.shape)


def shortcut_a() -> nn.Module:
    """A block that halves the image, whose shortcut pads its channels with zeros (option A)."""
    convs = {"a": nn.Conv2d(16, 20, 3, 2, 1), "b": nn.Conv2d(20, 32, 3, 1, 1)}
    return Does(lambda m, x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 8, 8)) + m.b(m.a(x).relu()), **convs)


def two_names() -> nn.Module:
    """A layer that the model has under two names."""
    layer = nn.Linear(8, 16)
    return Does(lambda m, x: m.last(m.layer(x).relu()), layer=layer, last=nn.Linear(16, 3), again=layer)


def tied(bias: bool) -> nn.Module:
    """An embedding whose weight is the output's, too."""
    embedding, output = nn.Embedding(20, 16), nn.Linear(16, 20, bias=bias)
    output.weight = embedding.weight
    parts = {"embedding": embedding, "up": nn.Linear(16, 12), "down": nn.Linear(12, 16), "output": output}
    return Does(lambda m, x: m.output(m.embedding(x) + m.down(m.up(m.embedding(x)).relu())), **parts)


def twice() -> nn.Module:
    """One convolution's weight in two, of which the second takes what the first gives."""
    one, other = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
    other.weight = one.weight
    return image(one, nn.ReLU(), other)


def projected_back() -> nn.Module:
    """A layer's weight, transposed, leads back."""
    parts = {"there": nn.Linear(8, 16), "last": nn.Linear(8, 3)}
    return Does(lambda m, x: m.last(F.linear(m.there(x).relu(), m.there.weight.t())), **parts)


class Bert(nn.Module):
    """Attention with queries, keys and values of their own, and widths kept as attributes; then an MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_attention_heads, self.attention_head_size, self.all_head_size = heads, width // heads, width
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.dense, self.norm = nn.Linear(width, width), nn.LayerNorm(width)

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.num_attention_heads, self.attention_head_size).permute(0, 2, 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self._heads(self.query(x)), self._heads(self.key(x)), self._heads(self.value(x))
        weights = (query @ key.transpose(-1, -2) / math.sqrt(self.attention_head_size)).softmax(-1)
        joined = (weights @ value).permute(0, 2, 1, 3).contiguous()
        return self.norm(x + self.dense(joined.view(*joined.shape[:-2], self.all_head_size)))


class Gpt(nn.Module):
    """Attention whose queries, keys and values are split by a width kept as an attribute."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.split_size, self.head_dim = width, width // heads
        self.norm, self.qkv, self.dense = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        split = self.qkv(self.norm(x)).split(self.split_size, dim=2)
        query, key, value = (each.view(*each.shape[:-1], -1, self.head_dim).transpose(1, 2) for each in split)
        joined = F.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2)
        return x + self.dense(joined.reshape(*x.shape[:-1], -1))


class ByInput(nn.Module):
    """Attention that takes the number of its features from its input, so that heads leave with what it is given."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.scale = heads, (width // heads) ** -0.5
        self.norm, self.qkv, self.dense = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(self.norm(x)).reshape(batch, length, 3, self.num_heads, width // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        joined = (query @ key.transpose(-2, -1) * self.scale).softmax(-1) @ value
        return x + self.dense(joined.transpose(1, 2).reshape(batch, length, width))


class Grouped(nn.Module):
    """Attention in which two heads share keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, heads // 2, width // heads
        self.query, self.dense = nn.Linear(width, width), nn.Linear(width, width)
        self.key, self.value = nn.Linear(width, width // 2), nn.Linear(width, width // 2)

    def forward(self, x: Tensor) -> Tensor:
        query = self.query(x).unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2)
        key, value = (
            layer(x).unflatten(-1, (self.kv_heads, self.head_dim)).transpose(1, 2).repeat_interleave(2, 1)
            for layer in (self.key, self.value)
        )
        joined = F.scaled_dot_product_attention(query, key, value).transpose(1, 2)
        return x + self.dense(joined.flatten(2))


class Window(nn.Module):
    """Attention inside windows, of as many positions a side as there are heads, with biases by position."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.window, self.scale = 2, 2, 8**-0.5
        self.qkv, self.dense, self.table = nn.Linear(16, 48), nn.Linear(16, 16), nn.Parameter(torch.randn(9, 2))
        self.register_buffer("places", torch.arange(16).view(4, 4) % 9)

    def forward(self, x: Tensor) -> Tensor:
        side = self.window
        batch, channels, height, width = x.shape
        tiles = x.view(batch, channels, height // side, side, width // side, side).permute(0, 2, 4, 3, 5, 1)
        rows = tiles.reshape(-1, side * side, channels)
        qkv = self.qkv(rows).reshape(len(rows), side * side, 3, self.num_heads, channels // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        bias = self.table[self.places.view(-1)].view(side * side, side * side, -1).permute(2, 0, 1)
        joined = ((query @ key.transpose(-2, -1) * self.scale + bias).softmax(-1) @ value).transpose(1, 2)
        made = self.dense(joined.reshape(rows.shape)).reshape(tiles.shape)
        return x + made.permute(0, 5, 1, 3, 2, 4).reshape(x.shape)
