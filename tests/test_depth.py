"""Depth: which plain layers can leave, what the network computes without them, and growing only filters or layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tiny_networks import EXAMPLE, Residual, seeded, small_job
from torch import Tensor, nn

import nasbench_grow
from nasbench_grow import count_macs, discover, extract
from nasbench_grow.backbones import create
from nasbench_grow.backbones.cifar_resnet import CifarResNet
from nasbench_grow.base.errors import UserError
from nasbench_grow.contract import ElasticModel
from nasbench_grow.growing.beginning import Settings, begin
from nasbench_grow.growing.relaxation import RelaxationSettings
from nasbench_grow.growing.sampling import SamplingSettings
from nasbench_grow.growing.scaling import ScalingSettings
from nasbench_grow.structure.exactness import masked

WIDTH = 8


def conv_bn_relu(given: int, channels: int, **options: int) -> nn.Sequential:
    conv = nn.Conv2d(given, channels, 3, padding=1, bias=False, **options)
    return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU())


class Stack(nn.Module):
    """Convolutions one after another: (B, 1, 8, 8) to (B, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn_relu(1, WIDTH)
        self.same1 = conv_bn_relu(WIDTH, WIDTH)
        self.same2 = conv_bn_relu(WIDTH, WIDTH)
        self.strided = conv_bn_relu(WIDTH, WIDTH, stride=2)
        self.wider = conv_bn_relu(WIDTH, 2 * WIDTH)
        self.depthwise = conv_bn_relu(2 * WIDTH, 2 * WIDTH, groups=2 * WIDTH)
        self.last = conv_bn_relu(2 * WIDTH, 2 * WIDTH)
        self.fc = nn.Linear(2 * WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.strided(self.same2(self.same1(self.stem(x))))
        return self.fc(self.last(self.depthwise(self.wider(x))).mean((2, 3)))


class Functional(nn.Module):
    """A plain layer whose activation is no module, after two convolutions that are added up, and one that feeds two."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(1, WIDTH, 1), nn.Conv2d(1, WIDTH, 1)
        self.plain = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.adds, self.too = nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.Conv2d(WIDTH, WIDTH, 1)
        self.fc = nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x) + self.two(x)
        x = F.silu(self.plain(x))
        return self.fc((self.adds(x) + self.too(x)).mean((2, 3)))


def spread(model: nn.Module) -> nn.Module:
    """The model in double precision with affine parameters away from 0 and 1."""
    for parameter in model.double().parameters():
        if parameter.ndim == 1:
            parameter.data = 0.5 + torch.rand_like(parameter)
    return model.eval()


def test_plain_layers_are_convolutions_that_keep_the_shape():
    space = discover(seeded(Stack), EXAMPLE)
    assert [layer.paths for layer in space.layers] == [
        ("same1.0", "same1.1", "same1.2"),
        ("same2.0", "same2.1", "same2.2"),
        ("last.0", "last.1", "last.2"),
    ]
    assert [len(stage) for stage in space.stages()] == [2, 1]


def test_a_layer_that_does_not_make_its_channels_alone_stays():
    space = discover(seeded(Functional), EXAMPLE)
    assert [layer.paths for layer in space.layers] == [("plain",)]


def test_an_absent_plain_layer_passes_its_input_on():
    model = seeded(Stack)
    space = discover(model, EXAMPLE)
    spread(model)
    present = space.full()
    present[space.filters :] = False
    inputs = torch.randn(2, 1, 8, 8, dtype=torch.double)
    wanted = model.fc(model.depthwise(model.wider(model.strided(model.stem(inputs)))).mean((2, 3)))
    assert torch.allclose(extract(space, model, present)(inputs), wanted)


@pytest.mark.parametrize("make", [Stack, Functional, lambda: create("cifar_vgg16_bn", 10, 1)])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_networks_without_some_layers_and_filters_are_exact(make, share):
    model = seeded(make)
    space = discover(model, EXAMPLE)
    spread(model)
    inputs = torch.randn(2, 1, 8, 8, dtype=torch.double)
    for seed in range(4):
        present = torch.rand(len(space), generator=torch.Generator().manual_seed(seed)) < share
        present |= space.seed()
        small = extract(space, model, present)
        with torch.no_grad():
            assert torch.allclose(small(inputs), masked(space, model, present, inputs), rtol=1e-9, atol=1e-12)
        assert space.macs(present) == count_macs(small.float(), EXAMPLE)
        assert {name: tuple(tensor.shape) for name, tensor in small.state_dict().items()} == dict(space.sizes(present))


def test_one_more_filter_or_layer_costs_what_it_is_said_to():
    space = discover(seeded(Stack), EXAMPLE)
    present = space.seed()
    for index in (0, 2):
        present[space.filters + index] = True
    costs = space.marginal_macs(present)
    for group in space.groups:
        if space.layer_present(present, group.layer):
            more = present.clone()
            more[group.start + 1] = True
            assert space.macs(more) - space.macs(present) == costs[group.start]
    more = present.clone()
    more[space.filters + 1] = True
    assert space.macs(more) - space.macs(present) == costs[space.filters + 1]


def test_a_network_without_some_plain_layers_is_saved_and_loaded(tmp_path):
    model = create("cifar_vgg16_bn", 10, 1)
    space = discover(model, EXAMPLE)
    present = space.seed()
    present[space.filters + 1] = True
    small = extract(space, model, present).eval()
    path = nasbench_grow.save(small, nasbench_grow.describe(small, model), tmp_path / "small.safetensors")
    inputs = torch.randn(2, 1, 8, 8)
    assert torch.equal(nasbench_grow.load(path)(inputs), small(inputs))


# --- growing ---


def grown(
    make: Callable[[], nn.Module], budget: float, steps: int = 120, settings: Settings | None = None
) -> tuple[ElasticModel, nn.Module, list[tuple[int, int]]]:
    """A finished run: its model, what it returned, and the numbers of filters and layers after every step."""
    job = small_job(make, epochs=steps, steps=1, budget=budget, batch_size=4)
    model, growing = begin(job, settings or ScalingSettings())
    sizes = []
    for _ in job.fit(model, growing):
        now = model.space.effective(model.structures)
        sizes.append((int(now[: model.space.filters].sum()), int(now[model.space.filters :].sum())))
    return model, growing.finish(model), sizes


def share(small: nn.Module, model: ElasticModel) -> float:
    return count_macs(small, EXAMPLE) / model.space.macs(model.space.full())


SAMPLED = SamplingSettings(periods=8, least_search=0)


@pytest.mark.parametrize(
    "blocks, settings, steps",
    [(1, ScalingSettings(), 120), (2, ScalingSettings(), 120), (5, ScalingSettings(), 120), (2, SAMPLED, 32)],
)
def test_depth_and_width_grow_from_one_block_a_stage_and_one_filter_a_layer(blocks, settings, steps):
    model, small, sizes = grown(lambda: CifarResNet(blocks, 10, 1), budget=0.5, settings=settings, steps=steps)
    assert len(model.space.layers) == 3 * blocks - 2
    seed = model.space.seed()
    filters, layers = seed[: model.space.filters], seed[model.space.filters :]
    assert not layers.any() and filters.sum() == len(model.space.groups)
    assert abs(share(small, model) - 0.5) <= 0.02
    assert sizes[-1][0] > sizes[0][0] and sizes[-1][1] >= sizes[0][1]


def test_a_plain_network_grows_in_depth_too():
    model, small, sizes = grown(lambda: create("cifar_vgg16_bn", 10, 1), budget=0.5, steps=60)
    assert len(model.space.layers) == 9
    assert 0 < sizes[-1][1] < 9
    assert abs(share(small, model) - 0.5) <= 0.02


@pytest.mark.parametrize("kind", [ScalingSettings, SamplingSettings, RelaxationSettings])
def test_only_filters_grow_where_only_filters_are_asked_for(kind):
    options = {RelaxationSettings: {"periods": 6}, SamplingSettings: {"periods": 8}}.get(kind, {})
    _, small, sizes = grown(Residual, 0.5, settings=kind(structures="filters", **options))
    assert {layers for _, layers in sizes} == {3}
    assert sizes[0][0] < sizes[-1][0]
    assert all(not isinstance(block, nn.Identity) for block in small.blocks)


@pytest.mark.parametrize(
    "settings",
    [
        ScalingSettings(structures="layers"),
        replace(SAMPLED, structures="layers"),
        RelaxationSettings(structures="layers", logit_start=0.2, periods=6, mask_learning_rate=2.0),
    ],
    ids=["scaling", "sampling", "relaxation"],
)
def test_only_layers_grow_where_only_layers_are_asked_for(settings):
    model, small, sizes = grown(lambda: CifarResNet(3, 10, 1), 0.75, settings=settings)
    wide = {name: conv.out_channels for name, conv in model.dense.named_modules() if isinstance(conv, nn.Conv2d)}
    kept = {name: conv.out_channels for name, conv in small.named_modules() if isinstance(conv, nn.Conv2d)}
    assert kept.items() < wide.items()
    if not isinstance(settings, RelaxationSettings):
        assert sizes[0][1] < sizes[-1][1] == 4
        assert 0.6 < share(small, model) <= 0.75


def test_a_budget_that_the_frozen_structures_exceed_is_refused():
    with pytest.raises(UserError, match=r"budget 0\.01 is below the seed network's own cost"):
        grown(Residual, 0.01, settings=ScalingSettings(structures="layers"))
    with pytest.raises(UserError, match=r"budget 0\.01 is below the seed network's own cost"):
        grown(Residual, 0.01, settings=replace(SAMPLED, structures="layers"))


def test_layers_alone_cannot_grow_where_there_are_none():
    def model() -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 10))

    with pytest.raises(UserError, match="structures 'layers' finds no removable layer"):
        grown(model, 0.5, settings=ScalingSettings(structures="layers"))
