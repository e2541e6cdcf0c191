"""Kinds of networks that are followed by their operations: experts, codes, equations, windows, graphs, own norms."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cutting import cut_at_random
from torch import Tensor, nn

from nasbench_grow import count_macs, discover


class Experts(nn.Module):
    """Four experts see each sample, all of them at once."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gate, self.head = nn.Linear(4, 8), nn.Linear(8, 4), nn.Linear(8, 3)
        self.up, self.down = nn.Parameter(torch.randn(4, 8, 6) / 3), nn.Parameter(torch.randn(4, 6, 8) / 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.stem(x).relu()
        each = torch.einsum("bd,edf->bef", hidden, self.up).relu()
        mixed = torch.einsum("be,bef,efd->bd", self.gate(hidden).softmax(-1), each, self.down)
        return self.head(hidden + mixed)


class Codes(nn.Module):
    """The nearest of five codes takes the place of every vector."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.codes, self.last = nn.Linear(4, 8), nn.Embedding(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        chosen = torch.cdist(self.first(x), self.codes.weight).argmin(-1)
        return self.last(F.one_hot(chosen, 5).to(x.dtype) @ self.codes.weight)


class Windows(nn.Module):
    """A linear layer on windows of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.windows, self.last = nn.Conv2d(3, 8, 1), nn.Linear(8 * 9, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.windows(F.unfold(self.first(x).relu(), 3).transpose(1, 2)).relu().mean(1))


class OwnNorm(nn.Module):
    """A root mean square norm over the last dimension, or a layer norm over the channels of images."""

    def __init__(self, channels: int, images: bool) -> None:
        super().__init__()
        self.weight, self.images = nn.Parameter(torch.ones(channels)), images

    def forward(self, x: Tensor) -> Tensor:
        if not self.images:
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight
        x = x - x.mean(1, keepdim=True)
        return x / (x.pow(2).mean(1, keepdim=True) + 1e-6).sqrt() * self.weight[:, None, None]


class Normed(nn.Module):
    def __init__(self, images: bool) -> None:
        super().__init__()
        self.images = images
        self.first = nn.Conv2d(3, 8, 1) if images else nn.Linear(4, 8)
        self.norm, self.last = OwnNorm(8, images), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x))
        return self.last(x.mean((2, 3)) if self.images else x)


class Spectrum(nn.Module):
    """Channels mixed by complex weights in the frequency domain."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv1d(2, 8, 1), nn.Conv1d(6, 1, 1)
        self.mixing = nn.Parameter(torch.randn(8, 6, 5, dtype=torch.cfloat))

    def forward(self, x: Tensor) -> Tensor:
        mixed = torch.einsum("bif,iof->bof", torch.fft.rfft(self.first(x)), self.mixing)
        return self.last(F.gelu(torch.fft.irfft(mixed, n=x.shape[-1])))


KINDS = [
    pytest.param(Experts, (4,), {"down": 8, "up[2]": 6}, id="equations"),
    pytest.param(Codes, (4,), {"first": 8}, id="codes"),
    pytest.param(Windows, (3, 5, 5), {"first": 8, "windows": 6}, id="windows"),
    pytest.param(lambda: Normed(False), (4,), {"first": 8}, id="own norm of vectors"),
    pytest.param(lambda: Normed(True), (3, 8, 8), {"first": 8}, id="own norm of images"),
    pytest.param(Spectrum, (2, 8), {"first": 8, "mixing": 6}, id="spectrum"),
]


@pytest.mark.filterwarnings("ignore:no rule to count")
@pytest.mark.parametrize(("kind", "shape", "groups"), KINDS)
def test_a_kind_grows_exactly(kind: type[nn.Module], shape: tuple[int, ...], groups: dict[str, int]) -> None:
    torch.manual_seed(0)
    model, example = kind().eval(), torch.zeros(1, *shape)
    space = discover(model, example)
    assert {group.name: group.size for group in space.groups} == groups
    inputs = torch.randn(5, *shape)
    for present, small, wanted in cut_at_random(space, model, inputs):
        torch.testing.assert_close(small(inputs), wanted, rtol=1e-4, atol=1e-5)
        assert space.macs(present) == count_macs(small, example)


def test_attention_that_is_called_again_has_the_same_heads() -> None:
    class Repeated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)
            self.block = nn.TransformerEncoderLayer(8, 4, 6, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.block(self.block(self.first(x))).mean(1))

    space = discover(Repeated(), torch.zeros(1, 5, 4))
    assert sorted(group.size for group in space.groups) == [4, 6]


def test_a_graph_whose_edges_count_its_nodes_grows() -> None:
    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
            hidden = self.first(nodes).relu()
            return self.last(torch.zeros_like(hidden).index_add_(0, edges[1], hidden[edges[0]]))

    space = discover(Graph(), (torch.zeros(6, 4), torch.stack([torch.arange(6), torch.arange(6).roll(1)])))
    assert {group.name: group.size for group in space.groups} == {"first": 8}
