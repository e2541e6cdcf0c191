"""Layouts of well-known networks as one writes them by hand, without a library: language models, attention in windows,
what denoises images. Each is as small as it can be and still have every part of the full-sized one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WORDS, LENGTH, CLASSES = 100, 16, 10
"""Of language models: tokens that they know, and those of an input."""
WIDTH, HEADS, DEPTH = 64, 4, 2


class BertBlock(nn.Module):
    """Queries, keys and values of their own; norms after the sums."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_attention_heads, self.attention_head_size, self.all_head_size = heads, width // heads, width
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.dense, self.attention_norm = nn.Linear(width, width), nn.LayerNorm(width)
        self.intermediate, self.output, self.norm = (
            nn.Linear(width, 4 * width),
            nn.Linear(4 * width, width),
            nn.LayerNorm(width),
        )

    def _heads(self, states: Tensor) -> Tensor:
        shape = (*states.shape[:-1], self.num_attention_heads, self.attention_head_size)
        return states.view(shape).permute(0, 2, 1, 3)

    def forward(self, states: Tensor) -> Tensor:
        query, key, value = (self._heads(layer(states)) for layer in (self.query, self.key, self.value))
        scores = (query @ key.transpose(-1, -2) / math.sqrt(self.attention_head_size)).softmax(-1)
        context = (scores @ value).permute(0, 2, 1, 3).contiguous()
        context = context.view(*context.shape[:-2], self.all_head_size)
        states = self.attention_norm(states + self.dense(context))
        return self.norm(states + self.output(F.gelu(self.intermediate(states))))


class Bert(nn.Module):
    """Words, positions and segments; a pooler and a classifier on the first token."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.positions, self.segments = (nn.Embedding(rows, WIDTH) for rows in (WORDS, LENGTH, 2))
        self.norm = nn.LayerNorm(WIDTH)
        self.layers = nn.ModuleList(BertBlock(WIDTH, HEADS) for _ in range(DEPTH))
        self.pooler, self.classifier = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        states = self.norm(self.words(tokens) + self.positions(places) + self.segments(torch.zeros_like(tokens)))
        for layer in self.layers:
            states = layer(states)
        return self.classifier(torch.tanh(self.pooler(states[:, 0])))


class Gpt2Block(nn.Module):
    """Queries, keys and values from one layer, split; norms before; a mask of the past."""

    past: Tensor

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.projection = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.register_buffer("past", torch.tril(torch.ones(LENGTH, LENGTH, dtype=torch.bool)))

    def forward(self, states: Tensor) -> Tensor:
        batch, length, _ = states.shape
        query, key, value = (
            part.view(batch, length, self.heads, -1).transpose(1, 2)
            for part in self.attention(self.norm_1(states)).split(self.width, dim=2)
        )
        scores = query @ key.transpose(-2, -1) / math.sqrt(key.shape[-1])
        scores = scores.masked_fill(~self.past[:length, :length], float("-inf")).softmax(-1)
        states = states + self.projection((scores @ value).transpose(1, 2).reshape(batch, length, -1))
        return states + self.down(F.gelu(self.up(self.norm_2(states)), approximate="tanh"))


class Gpt2(nn.Module):
    """The embedding's weight is the output's, too."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(WORDS, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.Sequential(*(Gpt2Block(WIDTH, HEADS) for _ in range(DEPTH)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WORDS, bias=False)
        self.head.weight = self.words.weight

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        return self.head(self.norm(self.blocks(self.words(tokens) + self.positions(places))))


class RootMeanSquare(nn.Module):
    """A norm without mean and shift."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, states: Tensor) -> Tensor:
        return self.weight * (states * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + 1e-6))


class LlamaBlock(nn.Module):
    """Two heads share keys and values; positions turn queries and keys; the MLP has a gate."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.num_key_value_heads, self.head_dim = heads, heads // 2, width // heads
        self.input_norm, self.norm = RootMeanSquare(width), RootMeanSquare(width)
        self.q_proj, self.o_proj = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.k_proj, self.v_proj = (nn.Linear(width, width // 2, bias=False) for _ in range(2))
        self.gate_proj, self.up_proj = (nn.Linear(width, 3 * width, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(3 * width, width, bias=False)

    def forward(self, states: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
        batch, length, _ = states.shape
        given = self.input_norm(states)
        query = self.q_proj(given).view(batch, length, self.num_heads, self.head_dim).transpose(1, 2)
        key, value = (
            layer(given).view(batch, length, self.num_key_value_heads, self.head_dim).transpose(1, 2)
            for layer in (self.k_proj, self.v_proj)
        )
        query, key = _turned(query, *turn), _turned(key, *turn)
        key, value = (each.repeat_interleave(2, dim=1) for each in (key, value))
        joined = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        states = states + self.o_proj(joined.transpose(1, 2).reshape(batch, length, -1))
        given = self.norm(states)
        return states + self.down_proj(F.silu(self.gate_proj(given)) * self.up_proj(given))


def _turned(states: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Features in pairs, each turned by an angle of its own at every position."""
    first, second = states.chunk(2, dim=-1)
    return states * cosine + torch.cat((-second, first), dim=-1) * sine


class Llama(nn.Module):
    """Rotary positions, which all blocks share."""

    cosine: Tensor
    sine: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.blocks = nn.ModuleList(LlamaBlock(WIDTH, HEADS) for _ in range(DEPTH))
        self.norm, self.head = RootMeanSquare(WIDTH), nn.Linear(WIDTH, WORDS, bias=False)
        half = WIDTH // HEADS // 2
        angles = torch.outer(torch.arange(LENGTH), 10_000 ** (-torch.arange(half) / half)).repeat(1, 2)
        self.register_buffer("cosine", angles.cos())
        self.register_buffer("sine", angles.sin())

    def forward(self, tokens: Tensor) -> Tensor:
        states, length = self.words(tokens), tokens.shape[1]
        for block in self.blocks:
            states = block(states, (self.cosine[:length], self.sine[:length]))
        return self.head(self.norm(states))


class VitBlock(nn.Module):
    """Attention by einsum, as a paper writes it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_qkv, self.to_out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.to_qkv(self.norm_1(tokens)).chunk(3, -1)
        )
        weights = (torch.einsum("bhid,bhjd->bhij", query, key) * self.scale).softmax(-1)
        joined = torch.einsum("bhij,bhjd->bhid", weights, value).transpose(1, 2).flatten(2)
        tokens = tokens + self.to_out(joined)
        return tokens + self.mlp(self.norm_2(tokens))


class Vit(nn.Module):
    """Patches by a convolution, a class token, learned positions."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, WIDTH, 8, 8), nn.Parameter(torch.randn(1, 1, WIDTH))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 17, WIDTH))
        self.blocks = nn.Sequential(*(VitBlock(WIDTH, HEADS) for _ in range(DEPTH)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        tokens = self.patches(image).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(image), -1, -1), tokens], dim=1) + self.positions
        return self.head(self.norm(self.blocks(tokens))[:, 0])


class SwinBlock(nn.Module):
    """Attention inside windows with biases by place, every other time with the windows shifted."""

    places: Tensor

    def __init__(self, width: int, heads: int, shift: int) -> None:
        super().__init__()
        self.window, self.shift, self.num_heads, self.scale = 4, shift, heads, (width // heads) ** -0.5
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.bias_table = nn.Parameter(0.02 * torch.randn((2 * self.window - 1) ** 2, heads))
        rows, columns = torch.meshgrid(*[torch.arange(self.window)] * 2, indexing="ij")
        away = [(place.flatten()[:, None] - place.flatten()[None]) + self.window - 1 for place in (rows, columns)]
        self.register_buffer("places", away[0] * (2 * self.window - 1) + away[1])

    def forward(self, image: Tensor) -> Tensor:
        batch, height, width, channels = image.shape
        shifted = torch.roll(self.norm_1(image), (-self.shift, -self.shift), (1, 2))
        grid = (batch, height // self.window, self.window, width // self.window, self.window, channels)
        windows = shifted.view(grid).permute(0, 1, 3, 2, 4, 5).reshape(-1, self.window**2, channels)
        made = self._attend(windows).view(batch, grid[1], grid[3], self.window, self.window, channels)
        made = made.permute(0, 1, 3, 2, 4, 5).reshape(batch, height, width, channels)
        image = image + torch.roll(made, (self.shift, self.shift), (1, 2))
        return image + self.fc2(F.gelu(self.fc1(self.norm_2(image))))

    def _attend(self, windows: Tensor) -> Tensor:
        count, places, channels = windows.shape
        qkv = self.qkv(windows).reshape(count, places, 3, self.num_heads, channels // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        bias = self.bias_table[self.places.flatten()].view(places, places, -1).permute(2, 0, 1)
        weights = (query * self.scale @ key.transpose(-2, -1) + bias).softmax(-1)
        return self.proj((weights @ value).transpose(1, 2).reshape(count, places, channels))


class Merging(nn.Module):
    """Four neighbouring positions become one of twice as many channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.reduction = nn.LayerNorm(4 * width), nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, image: Tensor) -> Tensor:
        corners = [image[:, row::2, column::2] for row in (0, 1) for column in (0, 1)]
        return self.reduction(self.norm(torch.cat(corners, dim=-1)))


class Swin(nn.Module):
    """Two stages, channels last, with three heads and then six, as the smallest Swin begins."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm_0 = nn.Conv2d(3, 48, 4, 4), nn.LayerNorm(48)
        self.stages = nn.Sequential(
            *(SwinBlock(48, 3, shift) for shift in (0, 2)), Merging(48), *(SwinBlock(96, 6, shift) for shift in (0, 2))
        )
        self.norm, self.head = nn.LayerNorm(96), nn.Linear(96, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        image = self.norm_0(self.patches(image).permute(0, 2, 3, 1))
        return self.head(self.norm(self.stages(image)).mean((1, 2)))


class TimedBlock(nn.Module):
    """A residual block with group norms, to whose middle the time is added."""

    def __init__(self, given: int, made: int, time: int) -> None:
        super().__init__()
        self.norm_1, self.conv_1 = nn.GroupNorm(8, given), nn.Conv2d(given, made, 3, padding=1)
        self.time = nn.Linear(time, made)
        self.norm_2, self.conv_2 = nn.GroupNorm(8, made), nn.Conv2d(made, made, 3, padding=1)
        self.shortcut = nn.Conv2d(given, made, 1) if given != made else nn.Identity()

    def forward(self, image: Tensor, time: Tensor) -> Tensor:
        hidden = self.conv_1(F.silu(self.norm_1(image))) + self.time(F.silu(time))[:, :, None, None]
        return self.shortcut(image) + self.conv_2(F.silu(self.norm_2(hidden)))


class ImageAttention(nn.Module):
    """Attention of all positions of an image, by convolutions."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.qkv, self.proj = (
            nn.GroupNorm(8, width),
            nn.Conv2d(width, 3 * width, 1),
            nn.Conv2d(width, width, 1),
        )

    def forward(self, image: Tensor) -> Tensor:
        batch, _, height, width = image.shape
        qkv = self.qkv(self.norm(image)).reshape(batch * self.heads, -1, height * width)
        query, key, value = qkv.chunk(3, dim=1)
        weights = (query.transpose(1, 2) @ key / math.sqrt(query.shape[1])).softmax(-1)
        return image + self.proj((value @ weights.transpose(1, 2)).reshape(batch, -1, height, width))


class DiffusionUnet(nn.Module):
    """What predicts the noise in an image at a time: down, attention in the middle, and up with what was kept."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(32, 128), nn.SiLU(), nn.Linear(128, 128))
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.down_1, self.halve = TimedBlock(32, 32, 128), nn.Conv2d(32, 32, 3, 2, 1)
        self.down_2 = TimedBlock(32, 64, 128)
        self.middle_1, self.attention, self.middle_2 = (
            TimedBlock(64, 64, 128),
            ImageAttention(64, HEADS),
            TimedBlock(64, 64, 128),
        )
        self.up_1, self.enlarge = TimedBlock(128, 64, 128), nn.Conv2d(64, 64, 3, padding=1)
        self.up_2, self.norm, self.out = TimedBlock(96, 32, 128), nn.GroupNorm(8, 32), nn.Conv2d(32, 3, 3, padding=1)

    def forward(self, image: Tensor, step: Tensor) -> Tensor:
        rates = torch.exp(-math.log(10_000) * torch.arange(16, device=step.device) / 16)
        angles = step.to(image.dtype)[:, None] * rates.to(image.dtype)
        time = self.time(torch.cat([angles.sin(), angles.cos()], dim=1))
        first = self.down_1(self.stem(image), time)
        second = self.down_2(self.halve(first), time)
        middle = self.middle_2(self.attention(self.middle_1(second, time)), time)
        up = self.up_1(torch.cat([middle, second], dim=1), time)
        up = self.enlarge(F.interpolate(up, scale_factor=2))
        return self.out(F.silu(self.norm(self.up_2(torch.cat([up, first], dim=1), time))))


def _tokens() -> Tensor:
    return torch.randint(WORDS, (1, LENGTH))


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "bert": (Bert, _tokens),
    "gpt2": (Gpt2, _tokens),
    "llama": (Llama, _tokens),
    "vit": (Vit, lambda: torch.randn(1, 3, 32, 32)),
    "swin": (Swin, lambda: torch.randn(1, 3, 64, 64)),
    "diffusion_unet": (DiffusionUnet, lambda: (torch.randn(1, 3, 16, 16), torch.randint(1000, (1,)))),
}
"""How each network and an input for it are made."""
FAMILIES = {
    "bert": "language",
    "gpt2": "language",
    "llama": "language",
    "vit": "classification",
    "swin": "classification",
    "diffusion_unet": "diffusion",
}
"""Every network with what it is for."""


def build(name: str) -> tuple[nn.Module, Any]:
    """A network in evaluation mode, and one input for it."""
    model, example = MODELS[name]
    return model().eval(), example()
