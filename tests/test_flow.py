"""Kinds of layers and couplings: what is found, and that what is cut computes what it should.

Every sub-network is held against the full network with the absent entries at zero, its MACs against the counter, and
the network that its description gives against itself.
"""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import (
    Bert,
    ByInput,
    Does,
    Gated,
    Gpt,
    Grouped,
    Own,
    RootMeanSquare,
    Window,
    image,
    projected_back,
    shortcut_a,
    shuffled,
    tied,
    tokens,
    twice,
    two_names,
)
from torch import nn
from torch.nn.utils import parametrizations
from torchvision.ops import FrozenBatchNorm2d

import nasbench_grow as ng
from nasbench_grow.base.errors import UserError
from nasbench_grow.structure.exactness import masked
from nasbench_grow.structure.gating import GatedNetwork

PAGE = Path(__file__).parent.parent / "docs" / "layers.md"
IMAGE, TOKENS = (1, 3, 8, 8), (1, 5, 8)
STEM, MLP = {"0": 16}, {"2": 12}
"""The groups of ``image`` and ``tokens``, with one module between their ends."""


def ends(width: int, last: str = "3") -> dict[str, int]:
    return {"0": width, last: 8}


Conv, weight_norm, spectral_norm = nn.Conv2d, parametrizations.weight_norm, parametrizations.spectral_norm
MODELS = {
    # normalisations
    "weight norm": (lambda: image(weight_norm(Conv(16, 12, 3)), width=12), IMAGE, {"1": 12, **ends(16)}),
    "weight norm, old": (
        lambda: image(nn.utils.weight_norm(Conv(16, 12, 3)), width=12),
        IMAGE,
        {"1": 12, **ends(16)},
    ),
    "spectral norm": (lambda: image(spectral_norm(Conv(16, 12, 3)), width=12), IMAGE, {"1": 12, **ends(16)}),
    "spectral norm, old": (
        lambda: image(nn.utils.spectral_norm(Conv(16, 12, 3)), width=12),
        IMAGE,
        {"1": 12, **ends(16)},
    ),
    "RMS norm": (lambda: tokens(nn.RMSNorm(16)), TOKENS, {**STEM, **MLP}),
    "RMS norm by hand": (lambda: tokens(RootMeanSquare(16)), TOKENS, MLP),
    "layer norm without weights": (lambda: tokens(nn.LayerNorm(16, elementwise_affine=False)), TOKENS, {**STEM, **MLP}),
    "layer norm over the image": (lambda: image(nn.LayerNorm((16, 8, 8))), IMAGE, {"3": 8}),
    "frozen batch norm": (lambda: image(FrozenBatchNorm2d(16)), IMAGE, ends(16)),
    "group norm without weights": (lambda: image(nn.GroupNorm(4, 16, affine=False)), IMAGE, ends(4)),
    "one group without weights": (lambda: image(nn.GroupNorm(1, 16, affine=False)), IMAGE, ends(16)),
    # names and ties
    "two names": (two_names, (1, 8), {"layer": 16}),
    "tied": (lambda: tied(False), (1, 5, "tokens"), {"embedding": 16, "up": 12}),
    "tied, with a bias": (lambda: tied(True), (1, 5, "tokens"), {"embedding": 16, "up": 12}),
    "one weight twice": (twice, IMAGE, ends(16, "5")),
    "transposed": (projected_back, (1, 8), {"there": 16}),
    # layers
    "embedding bag": (
        lambda: nn.Sequential(nn.EmbeddingBag(9, 16), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)),
        (4, 5, "tokens"),
        {"0": 16, "1": 8},
    ),
    "bilinear": (
        lambda: Does(
            lambda m, x: m.out(m.both(m.a(x), m.b(x)).relu()),
            a=nn.Linear(8, 6),
            b=nn.Linear(8, 5),
            both=nn.Bilinear(6, 5, 9),
            out=nn.Linear(9, 3),
        ),
        (1, 8),
        {"a": 6, "b": 5, "both": 9},
    ),
    "transposed, grouped": (lambda: image(nn.ConvTranspose2d(16, 32, 2, 2, groups=4), width=32), IMAGE, ends(4)),
    "transposed, depthwise": (lambda: image(nn.ConvTranspose2d(16, 32, 2, 2, groups=16), width=32), IMAGE, ends(16)),
    "own parameters": (lambda: tokens(Own(), width=12), TOKENS, {"0": 16, "1.w": 12, "2": 12}),
    "PReLU twice": (
        lambda: (lambda act: image(act, Conv(16, 16, 1), act))(nn.PReLU(16)),
        IMAGE,
        ends(16, "5"),
    ),
    # gates
    "GLU": (lambda: image(nn.GLU(1), width=8), IMAGE, ends(8)),
    "halves by a chunk": (lambda: tokens(Gated(lambda y, _: y.chunk(2, -1))), TOKENS, {"1.up": 24, "1.down": 16}),
    "halves by slices": (
        lambda: tokens(Gated(lambda y, hidden: (y[..., :hidden], y[..., hidden:]))),
        TOKENS,
        {"1.up": 24, "1.down": 16},
    ),
    "halves by a split": (
        lambda: tokens(Gated(lambda y, hidden: y.split([hidden, hidden], -1))),
        TOKENS,
        {"1.up": 24, "1.down": 16},
    ),
    # moves
    "unflatten": (lambda: image(nn.Unflatten(1, (4, 4)), nn.Flatten(1, 2)), IMAGE, ends(4, "4")),
    "shuffle": (lambda: image(Does(lambda m, x: shuffled(x))), IMAGE, ends(4)),
    "channel shuffle": (lambda: image(nn.ChannelShuffle(4)), IMAGE, ends(4)),
    "pixel shuffle": (lambda: image(nn.PixelShuffle(2), nn.BatchNorm2d(4), width=4), IMAGE, ends(4, "4")),
    "pixel unshuffle": (lambda: image(nn.PixelUnshuffle(2), width=64), IMAGE, ends(16)),
    "repeat": (lambda: image(Does(lambda m, x: x.repeat(1, 2, 1, 1)), width=32), IMAGE, ends(16)),
    "option A": (lambda: image(shortcut_a(), width=32), IMAGE, {"1.a": 20, **ends(16)}),
    "broadcast": (
        lambda: image(Does(lambda m, x: x * m.mask(x).sigmoid(), mask=Conv(16, 1, 1))),
        IMAGE,
        ends(16),
    ),
    "every other channel": (lambda: image(Does(lambda m, x: x[:, ::2]), width=8), IMAGE, {"3": 8}),
    "softmax over channels": (lambda: image(nn.Softmax(1)), IMAGE, {"3": 8}),
    # attention
    "as in BERT": (lambda: tokens(Bert(16, 4)), TOKENS, {"0": 16, "1.query": 4, "2": 12}),
    "as in GPT-2": (lambda: tokens(Gpt(16, 4)), TOKENS, {"0": 16, "1.qkv": 4, "2": 12}),
    "as wide as its input": (lambda: tokens(ByInput(16, 4)), TOKENS, {"0": 4, "2": 12}),
    "shared keys": (lambda: tokens(Grouped(16, 4)), TOKENS, {"0": 16, "1.query": 2, "2": 12}),
    "windows": (lambda: image(Window()), IMAGE, ends(2)),
    "nn.MultiheadAttention": (
        lambda: tokens(Does(lambda m, x: m.a(x, x, x, need_weights=False)[0], a=nn.MultiheadAttention(16, 4))),
        TOKENS,
        {"0": 4, "2": 12},
    ),
    "nn.TransformerEncoderLayer": (
        lambda: tokens(nn.TransformerEncoderLayer(16, 4, 24, dropout=0.0, batch_first=True)),
        TOKENS,
        {"0": 4, "1.linear1": 24, "2": 12},
    ),
}


def made(name: str) -> tuple[nn.Module, torch.Tensor]:
    """A model in evaluation mode, and a batch of four (or as many as its example has)."""
    build, shape, _ = MODELS[name]
    torch.manual_seed(0)
    if shape[-1] == "tokens":
        return build().eval(), torch.randint(9, (4, shape[1]))
    return build().eval(), torch.randn(4, *shape[1:])


@pytest.mark.parametrize("name", MODELS)
def test_what_is_cut_computes_what_the_masked_network_does(name):
    model, inputs = made(name)
    space = ng.discover(model, inputs[:1])
    widths = space.widths(space.full())
    expected = MODELS[name][2]
    assert {key: widths.get(key) for key in expected} == expected
    stays = {"layer norm over the image", "every other channel", "softmax over channels"}
    assert ("0" in space.fixed) == (name in stays), space.fixed
    double = copy.deepcopy(model).double()
    doubles = inputs.double() if inputs.is_floating_point() else inputs

    @settings(max_examples=3, deadline=None, derandomize=True, database=None)
    @given(seed=st.integers(0, 1000), share=st.sampled_from((0.2, 0.6)))
    def for_every_structure(seed, share):
        generator = torch.Generator().manual_seed(seed)
        present = (torch.rand(len(space), generator=generator) < share) | space.seed()
        with torch.no_grad():
            found, wanted = ng.extract(space, double, present)(doubles), masked(space, double, present, doubles)
        assert found.shape == wanted.shape
        assert (found - wanted).abs().max() <= 1e-9 * wanted.abs().max()
        small = ng.extract(space, model, present)
        assert space.macs(present) == ng.count_macs(small, inputs[:1])
        rebuilt = ng.rebuild(ng.describe(small, model), model)
        rebuilt.load_state_dict(small.state_dict())
        assert torch.equal(rebuilt.eval()(inputs), small(inputs))
        small.train()(inputs).square().sum().backward()

    for_every_structure()


@pytest.mark.parametrize("name", ["own parameters", "embedding bag", "bilinear", "as in BERT", "halves by a chunk"])
def test_a_gate_at_zero_takes_a_filter_away(name):
    model, inputs = made(name)
    space = ng.discover(model, inputs[:1])
    whole = GatedNetwork(space, space.full(), ng.extract(space, model, space.full()))
    for group in space.groups:
        if (name, group.name) == ("as in BERT", "0"):
            continue  # a layer norm's gates come after its statistics
        present, gates = space.full(), torch.ones(len(space))
        present[group.start], gates[group.start] = False, 0
        with torch.no_grad():
            wanted = ng.extract(space, model, present)(inputs)
            assert torch.allclose(whole(inputs, gates), wanted, rtol=0, atol=1e-5), group.name


@pytest.mark.parametrize("name", ["two names", "tied", "PReLU twice", "one weight twice"])
def test_what_is_one_tensor_stays_one(name):
    model, inputs = made(name)
    space = ng.discover(model, inputs[:1])
    small = ng.extract(space, model, space.seed())
    assert len(list(small.parameters())) == len(list(model.parameters()))
    assert len(list(small.modules())) == len(list(model.modules()))
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.add_(1)
    ng.absorb(space, model, space.seed(), small)
    with torch.no_grad():
        assert torch.allclose(ng.extract(space, model, space.seed())(inputs), small(inputs))


@pytest.mark.parametrize("name", ["as in BERT", "as wide as its input", "tied", "weight norm, old", "halves by slices"])
def test_it_grows(name):
    model, inputs = made(name)
    targets = torch.zeros_like(model(inputs))
    grown = ng.grow(
        model.train(), inputs[:1], [(inputs, targets)] * 4, loss=nn.MSELoss(), budget=0.5, epochs=2, progress=False
    )
    assert grown.macs <= 0.52 * grown.dense_macs
    assert grown.network(inputs).shape == targets.shape


class _Unseen(torch.autograd.Function):
    """Scales every channel and adds an offset, in one operation that nothing sees into."""

    @staticmethod
    def forward(context, x, weight, offset):
        context.save_for_backward(x, weight)
        return torch.from_numpy(x.detach().numpy() * weight.detach().numpy()[:, None, None]) + offset[:, None, None]

    @staticmethod
    def backward(context, gradient):
        x, weight = context.saved_tensors
        return gradient * weight[:, None, None], (gradient * x).sum((0, 2, 3)), gradient.sum((0, 2, 3))


def unseen_layer():
    class Unseen(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.offset = nn.Parameter(torch.randn(16)), nn.Parameter(torch.randn(16))

        def forward(self, x):
            return _Unseen.apply(x, self.scale, self.offset)

    return Unseen


def test_a_layer_that_is_registered_is_cut_as_its_author_says():
    layer = unseen_layer()
    torch.manual_seed(0)
    model, inputs = image(layer()).eval(), torch.randn(4, 3, 8, 8)
    ng.register_layer(layer, both={"scale": 0, "offset": 0})
    space = ng.discover(model, inputs[:1])
    assert space.widths(space.full()) == {"0": 16, "3": 8}
    present = space.seed()
    with torch.no_grad():
        assert torch.allclose(
            ng.extract(space, model, present)(inputs), masked(space, model, present, inputs), atol=1e-6
        )
    assert ng.extract(space, model, present)[1].scale.shape == (1,)


def test_the_example_of_the_page_on_layers_runs():
    (example,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    shown: dict = {}
    exec(example, shown)
    assert [tuple(parameter.shape) for parameter in shown["small"][1].parameters()] == [(1,)]
    assert shown["space"].widths(shown["space"].full()) == {"0": 16}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((nn.Linear(2, 2),), "is not a class of modules"),
        ((nn.Linear,), "no tensor of Linear is named"),
        ((nn.Linear, {"weight": 1}, {"weight": -1}), r"outputs\['weight'\] of Linear is -1"),
        ((nn.Linear, {}, {"weight": 0}, {"bias": 0}), "pass through or are made"),
    ],
)
def test_what_cannot_be_registered_is_said(arguments, said):
    layer, *sides = arguments
    with pytest.raises(UserError, match=said):
        ng.register_layer(layer, **dict(zip(("inputs", "outputs", "both"), sides, strict=False)))


def test_a_block_that_is_given_more_than_its_input_is_not_itself_taken_for_a_layer():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(16, 16, 3, padding=1)

        def forward(self, x, size):
            return x + self.conv(x).view(-1, 16, size, size)

    model = image(Does(lambda m, x: m.block(x, size=8), block=Block()))
    assert [layer.paths for layer in ng.discover(model, torch.zeros(IMAGE)).layers] == [("1",)]
