"""Net2Net: that wider and deeper networks compute what the smaller ones did, by hand and on networks; bill, budget."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

import pytest
import torch
import torch.nn.functional as F
from test_baselines import Residual, equal, job, run, share, wide, widths
from tiny_networks import EXAMPLE, Kept, Plain, small_job
from torch import Tensor, nn

from nasbench_grow.base.errors import UserError
from nasbench_grow.baselines.net2net import Morphing, Net2Net, Net2NetSettings
from nasbench_grow.baselines.uniform import Uniform
from nasbench_grow.contract import ElasticModel, Recipe
from nasbench_grow.structure.discovery import discover

EXACT = Net2NetSettings(noise=0.0, steps=3, seed_layers=0.0)


class Layers(nn.Module):
    """Plain layers that can leave, as VGG has them, and a depthwise one: (B, 1, 8, 8) to (B, 10)."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.layers = nn.Sequential(
            *(nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()) for _ in range(3))
        )
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.fc = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.depthwise(self.layers(self.stem(x)))).mean((2, 3)))


class Recurrent(nn.Module):
    """Eight rows of eight numbers, read by an LSTM: (B, 1, 8, 8) to (B, 10)."""

    def __init__(self, units: int = 16) -> None:
        super().__init__()
        self.first = nn.LSTM(8, units, batch_first=True)
        self.second = nn.LSTM(units, units, batch_first=True)
        self.fc = nn.Linear(units, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.second(self.first(x.flatten(1, 2))[0])[0][:, -1])


def begun(make: Callable[[], nn.Module], settings: Net2NetSettings) -> tuple[ElasticModel, Morphing]:
    """The first network, whose normalisations have seen some noise, and what makes it grow."""
    small = small_job(make)
    model = small.model()
    morphing = Morphing(small, model, settings)
    torch.manual_seed(0)
    disturb(model)
    return model, morphing


def disturb(model: ElasticModel) -> None:
    """Running statistics and affine parameters are no longer those of the beginning."""
    model.network.train()
    for _ in range(5):
        model.network(torch.randn(8, 1, 8, 8) + 0.3)
    for parameter in model.network.parameters():
        parameter.detach().add_(0.05 * torch.randn_like(parameter))


@pytest.mark.parametrize("make", [Plain, Residual, Layers, Recurrent])
def test_every_growth_step_leaves_the_function_as_it_was(make):
    model, morphing = begun(make, EXACT)
    inputs = torch.randn(8, 1, 8, 8)
    for present in morphing.networks[1:]:
        before = model.network.eval()(inputs)
        macs = model.macs
        morphing.grow(model, present)
        assert torch.allclose(model.network.eval()(inputs), before, rtol=0, atol=1e-6)
        assert model.macs > macs
        disturb(model)


def test_a_plain_layer_joins_as_the_identity_while_it_trains_too():
    model, morphing = begun(Layers, EXACT)
    batch = torch.cat([inputs for inputs, _ in morphing.job.calibrate(model.network, 256)])
    before = model.network.eval()(batch)
    seed = model.structures.clone()
    seed[model.space.filters :] = True
    morphing.grow(model, seed)
    model.network.eval()
    for module in model.network.layers.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()  # with the statistics of the very samples that its own were set from
    assert torch.allclose(model.network(batch), before, rtol=0, atol=1e-4)


def test_copies_share_what_takes_them_in_by_hand():
    model, morphing = begun(Plain, Net2NetSettings(noise=0.0, steps=1))
    old, weight = model.structures[:16].clone(), model.network.conv1.weight.detach().clone()
    taken_in = model.network.conv2.weight.detach()[0].clone()
    morphing.grow(model, morphing.networks[1])
    network, kept = model.network, int(old.sum())
    copies = [int((network.conv1.weight == each).all((1, 2, 3)).sum()) for each in weight]
    assert sum(copies) == network.conv1.out_channels > kept, "every newborn filter copies one that was there"
    assert torch.equal(network.conv1.weight[:kept], weight)
    for filter_, number in enumerate(copies):
        assert torch.allclose(network.conv2.weight[0, filter_] * number, taken_in[filter_])


def test_noise_parts_the_copies_and_nothing_else():
    model, morphing = begun(Plain, Net2NetSettings(noise=0.1, steps=1))
    old = model.network.conv1.weight.detach().clone()
    morphing.grow(model, morphing.networks[1])
    new = model.network.conv1.weight.detach()
    assert torch.equal(new[: len(old)], old)
    nearest = torch.cdist(new[len(old) :].flatten(1), old.flatten(1)).min(1).values
    assert (nearest > 0).all() and (nearest < 0.5 * old.flatten(1).norm(dim=1).mean()).all()


def test_the_first_network_has_half_the_layers_of_each_stage_and_the_last_one_all():
    model, morphing = begun(lambda: Residual(24), Net2NetSettings())
    layers = [present[model.space.filters :].tolist() for present in morphing.networks]
    assert layers[0] == [True, True, False] and layers[-1] == [True, True, True]
    widths_of_last = model.space.widths(morphing.networks[-1])
    assert min(widths_of_last.values()) >= 16, "about 24 / sqrt(2)"
    only_wider = begun(lambda: Residual(24), Net2NetSettings(seed_layers=1.0))[1]
    assert all(present[model.space.filters :].all() for present in only_wider.networks)


@pytest.mark.parametrize("make, granularity", [(wide, 1), (lambda: Residual(24), 8), (Layers, 1)])
def test_the_last_network_is_that_of_uniform(make, granularity):
    network, macs = run(Net2Net(), job(make, granularity=granularity))
    assert widths(network) == widths(Uniform().choose(job(make, granularity=granularity)))
    assert macs[-1] / discover(make(), EXAMPLE).macs(discover(make(), EXAMPLE).full()) == share(network, make)


def test_the_passes_that_set_normalisations_are_billed():
    settings = Net2NetSettings(steps=1, begin=0.25, growth=0.25, seed_layers=0.0, samples=8)
    small = job(Layers, recipe=Recipe(batch_size=8, learning_rate=0.0))
    _, macs = run(Net2Net(settings), small)
    assert macs[0] == macs[1] < macs[2] == macs[3]
    assert small.meter.spent["training"] == 3 * 8 * 2 * sum(macs)
    assert small.meter.spent["calibration"] == 8 * macs[0]


@pytest.mark.parametrize("epochs", [1, 3])
def test_a_killed_run_goes_on_where_it_was(epochs):
    settings, storage = Net2NetSettings(steps=2, begin=0.2, growth=0.5, seed_layers=0.0), Kept()
    torch.manual_seed(0)
    for _ in islice(Net2Net(settings).run(job(storage=storage)), epochs):
        pass
    again, whole = job(storage=storage), job()
    network = run(Net2Net(settings), again)[0]
    torch.manual_seed(0)
    assert equal(network, run(Net2Net(settings), whole)[0])
    assert again.meter.spent == whole.meter.spent


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"noise": -1.0}, "noise -1 is out of range: give 0 or more"),
        ({"seed_layers": 1.5}, "seed_layers 1.5 is out of range"),
        ({"samples": 0}, "samples 0 is out of range"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, words):
    with pytest.raises(UserError, match=words):
        Net2NetSettings(**settings)
