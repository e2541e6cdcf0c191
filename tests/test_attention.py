"""Attention layers: heads are filters, whatever a layer keeps for each of them."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from nasbench_grow import Space, count_macs, discover, extract
from nasbench_grow.structure.exactness import masked
from nasbench_grow.structure.gating import GatedNetwork

HEADS, SIZE = 4, 32


def vision_transformer(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"img_size": SIZE, "patch_size": 16, "embed_dim": 24, "depth": 2, "num_heads": HEADS, "num_classes": 3}
    return timm.models.VisionTransformer(**sizes, **options).eval()


def windows() -> nn.Module:
    torch.manual_seed(0)
    return timm.models.SwinTransformer(
        img_size=SIZE, window_size=4, embed_dim=24, depths=(2,), num_heads=(HEADS,), num_classes=3
    ).eval()


class Image(nn.Module):
    """Attention over the positions of an image, made by convolutions, the rows of each head together."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 8, 8)
        self.attention = timm.models.maxxvit.Attention2d(24, dim_head=24 // HEADS, head_first=True)
        self.head = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head((x + self.attention(x)).mean((2, 3)))


MODELS = {
    "fused": vision_transformer,
    "norms of queries and keys": lambda: vision_transformer(qk_norm=True),
    "norm over the heads": lambda: vision_transformer(scale_attn_norm=True),
    "position biases": windows,
    "heads first": Image,
}


def example() -> Tensor:
    return torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def head_groups(space: Space) -> list[Any]:
    return [group for group in space.groups if group.name.endswith("qkv")]


def random_structures(space: Space, seed: int) -> Tensor:
    present = torch.rand(len(space), generator=torch.Generator().manual_seed(seed)) < 0.5
    return present | space.seed()


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_a_head_leaves_with_all_that_belongs_to_it(build):
    model = build()
    space = discover(model, example()[:1])
    assert head_groups(space) and all(group.size == HEADS for group in head_groups(space))
    for seed in range(3):
        present = random_structures(space, seed)
        small = extract(space, model, present)
        inputs = example().double()
        wanted = masked(space, model.double(), present, inputs)
        assert torch.allclose(small.double()(inputs), wanted, rtol=0, atol=1e-10)
        model.float()
        assert space.macs(present) == count_macs(small.float(), example())


def test_a_layer_with_fewer_heads_knows_how_many():
    model = vision_transformer()
    space = discover(model, example()[:1])
    present = space.full()
    first = head_groups(space)[0]
    present[first.start : first.start + HEADS - 1] = False
    small = extract(space, model, present)
    assert [block.attn.num_heads for block in small.blocks] == [1, HEADS]
    assert small.blocks[0].attn.qkv.out_features == 3 * 24 // HEADS
    assert small.blocks[0].attn.proj.in_features == 24 // HEADS


def test_products_inside_attention_cost_by_the_head():
    model = vision_transformer()
    space = discover(model, example()[:1])
    tokens, features = (SIZE // 16) ** 2 + 1, 24 // HEADS
    present = space.full()
    group = head_groups(space)[0]
    present[group.start] = False
    products = 2 * tokens * tokens * features
    weights = tokens * 4 * features * 24
    assert space.macs(space.full()) - space.macs(present) == products + weights


def test_a_gate_scales_what_its_head_gives():
    model = vision_transformer()
    space = discover(model, example()[:1])
    gates = torch.ones(len(space))
    group = head_groups(space)[0]
    gates[group.start] = 0
    without = space.full()
    without[group.start] = False
    gated = GatedNetwork(space, space.full(), extract(space, model, space.full()))
    assert torch.allclose(gated(example(), gates), extract(space, model, without)(example()), atol=1e-5)


class Whole(nn.Module):
    """Attention that takes the number of its features from its input, so that no head can leave."""

    def __init__(self, inside: bool) -> None:
        super().__init__()
        self.num_heads, self.inside = HEADS, inside
        self.stem, self.qkv, self.proj = nn.Linear(24, 24), nn.Linear(24, 72), nn.Linear(24, 24)

    def forward(self, x: Tensor) -> Tensor:
        if self.inside:
            x = self.stem(x.flatten(1, 2))
        batch, tokens, features = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        joined = ((q @ k.transpose(-2, -1)).softmax(-1) @ v).transpose(1, 2)
        return self.proj(joined.reshape(batch, tokens, features))


@pytest.mark.parametrize("inside", [False, True], ids=["does nothing else", "does more"])
def test_heads_that_cannot_leave_stay_and_the_rest_still_grows(inside):
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.hidden, self.out = Whole(inside), nn.Linear(24, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.attention(x if inside else x.flatten(1, 2))
            return self.out(self.hidden(x.mean(1)).relu())

    space = discover(Model().eval(), torch.randn(1, 3, 4, 24))
    assert "attention.qkv" in space.fixed
    assert {group.name: group.size for group in space.groups} == {"attention.proj": 24, "hidden": 8}
