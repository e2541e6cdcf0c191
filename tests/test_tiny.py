"""TINY: the closed forms against brute force, what newborn filters do to the network, what is billed."""

import copy

import pytest
import torch
import torch.nn.functional as F
from backbone_spaces import space_of
from test_baselines import run
from tiny_networks import EXAMPLE, Plain, Residual, seeded, small_job
from torch import nn

from nasbench_grow import backbones, discover, extract
from nasbench_grow.base.errors import UserError
from nasbench_grow.baselines.tiny import (
    AMPLITUDES,
    Expressive,
    Moments,
    Settings,
    Tiny,
    best_update,
    between,
    gather,
    newborn_filters,
)
from nasbench_grow.cost.macs import count_macs
from nasbench_grow.harness import registry


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def test_the_best_update_is_that_of_least_squares():
    inputs, wanted = draw(50, 6), draw(50, 4, seed=1)
    found = best_update(inputs.T @ inputs, inputs.T @ wanted)
    torch.testing.assert_close(found, torch.linalg.lstsq(inputs, wanted).solution)


@pytest.mark.parametrize("count", [1, 2])
def test_newborn_filters_of_a_linear_layer_are_the_best_there_are(count):
    """Alternating least squares from several starts find no filters whose contribution comes closer."""
    inputs, missing = draw(60, 5), draw(60, 4, seed=1)
    incoming, outgoing = newborn_filters(inputs.T @ inputs / 60, inputs.T @ missing / 60, count)
    assert incoming.shape == (count, 5) and outgoing.shape == (count, 4)
    torch.testing.assert_close((inputs @ incoming.T).square().mean(0), torch.ones(count, dtype=torch.double))
    found = (missing - inputs @ incoming.T @ outgoing).square().sum()
    best = torch.inf
    for seed in range(3):
        made = draw(5, count, seed=seed)
        for _ in range(300):
            taken = torch.linalg.lstsq(inputs @ made, missing).solution
            made = torch.linalg.lstsq(inputs, missing @ torch.linalg.pinv(taken)).solution
        best = min(best, float((missing - inputs @ made @ taken).square().sum()))
    assert float(found) == pytest.approx(best, rel=1e-5)


def test_no_filter_is_made_of_what_the_inputs_or_the_bottleneck_lack():
    inputs = torch.cat([draw(30, 2), torch.zeros(30, 2, dtype=torch.double)], 1)
    incoming, outgoing = newborn_filters(inputs.T @ inputs, inputs.T @ draw(30, 1, seed=1), 4)
    assert len(incoming) == len(outgoing) == 1, "as many as the bottleneck has dimensions"
    assert (incoming[:, 2:] == 0).all()


def test_moments_of_two_convolutions_are_those_of_loops_over_positions():
    maker = nn.Conv2d(2, 3, 3, padding=1, bias=False).double()
    taker = nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False).double()
    before, gradient = draw(2, 2, 6, 6), draw(2, 4, 3, 3, seed=1)
    inputs = F.relu(maker(before)).detach()
    moments = Moments(seen={"before": before, "inputs": inputs, "gradient": gradient})
    gather(maker, taker, moments, None)
    update = best_update(moments.inputs, moments.wanted)
    gather(maker, taker, moments, update)
    assert moments.count == 2 * 36
    missing = -2 * gradient - F.conv2d(inputs, update.T.reshape(4, 3, 3, 3), stride=2, padding=1)
    expected, second = torch.zeros(18, 4, 3, 3, dtype=torch.double), torch.zeros(18, 18, dtype=torch.double)
    padded = F.pad(before, (1, 1, 1, 1))
    for sample in range(2):
        for row in range(6):
            for column in range(6):
                patch = padded[sample, :, row : row + 3, column : column + 3].flatten()
                second += torch.outer(patch, patch)
        for row in range(3):
            for column in range(3):
                for down in range(3):
                    for right in range(3):
                        y, x = 2 * row + down - 1, 2 * column + right - 1
                        if 0 <= y < 6 and 0 <= x < 6:
                            patch = padded[sample, :, y : y + 3, x : x + 3].flatten()
                            expected[:, :, down, right] += torch.outer(patch, missing[sample, :, row, column])
    torch.testing.assert_close(moments.before, second)
    torch.testing.assert_close(moments.missing, expected.flatten(1))


def test_layers_that_pooling_parts_are_left_alone():
    maker, taker = nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 1)
    seen = {"before": torch.ones(1, 1, 4, 4), "inputs": torch.ones(1, 2, 2, 2), "gradient": torch.ones(1, 2, 2, 2)}
    moments = Moments(seen=seen)
    gather(maker, taker, moments, None)
    assert moments.count == 0


class Two(nn.Module):
    """Two 1 x 1 convolutions on one position, so that the closed form is exact: (B, 1, 8, 8) to (B, 10)."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(64, 16, 1, bias=False), nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 10, 1)

    def forward(self, x):
        x = self.bn1(self.conv1(x.flatten(1)[:, :, None, None])).relu()
        return self.conv2(x).flatten(1)


def grown(make=Two, **changes):
    """A model before and after a growth step, both as modules, and its callback."""
    job = small_job(make, steps=2, batch_size=16, **changes)
    model = job.model()
    callback = Expressive(job, model, Settings(steps=1, growth=0.5))
    old = copy.deepcopy(model.network)
    model.resize(callback.networks[1], callback.start)
    return job, model, old, callback


def test_the_loss_on_the_batches_of_the_search_falls():
    job, model, old, callback = grown()
    batches = list(job.train.batches(16))[:2]

    def loss(network):
        with torch.no_grad():
            return sum(float(F.cross_entropy(copy.deepcopy(network).train()(x), y)) for x, y in batches)

    plain = extract(model.space, job.build(), callback.networks[1])
    assert loss(model.network) < loss(old) and loss(model.network) < loss(plain)


def test_an_amplitude_of_zero_changes_no_function_and_norms_pass_newborn_filters(monkeypatch):
    monkeypatch.setattr("nasbench_grow.baselines.tiny.AMPLITUDES", (0.0,))
    job, model, old, _ = grown(Two)
    inputs = next(job.train.batches(16))[0]
    kept = len(old.bn1.weight)
    network = model.network.eval()
    made = network.conv1(inputs.flatten(1)[:, :, None, None])
    torch.testing.assert_close(network.bn1(made)[:, kept:], made[:, kept:], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(network(inputs), old.eval()(inputs), atol=1e-6, rtol=0)


def test_the_groups_that_are_served():
    for make, makers in (
        (lambda: Residual(8), ["blocks.0.conv1", "blocks.1.conv1", "blocks.2.conv1"]),
        (lambda: Plain(8), ["conv1", "conv2"]),
    ):
        network = seeded(make)
        assert [group.maker for group in between(discover(network, EXAMPLE), network)] == makers


@pytest.mark.parametrize("granularity", [1, 8])
@pytest.mark.parametrize("make", [lambda: Residual(32), lambda: Plain(32)])
def test_it_meets_the_budget_and_bills_statistics_and_amplitudes(make, granularity):
    job = small_job(make, epochs=4, granularity=granularity)
    network, macs = run(Tiny(Settings(steps=1, growth=0.5)), job)
    assert 0.48 <= macs[-1] / job.dense_macs <= 0.5
    assert macs[1] < macs[2] == macs[3] == count_macs(network, EXAMPLE)
    samples = 2 * 8
    statistics = 2 * 3 * macs[0] * samples
    assert job.meter.spent["calibration"] == statistics + len(AMPLITUDES) * macs[-1] * samples
    assert job.meter.spent["training"] == 3 * 8 * 2 * sum(macs)


@pytest.mark.parametrize(
    "name, served",
    [("cifar_resnet20", 9), ("cifar_vgg16_bn", 12), ("cifar_mobilenetv2", 2), ("deeplabv3plus_thin", 10)],
)
def test_backbones_of_which_it_serves_little_are_skipped(name, served, monkeypatch):
    monkeypatch.setattr("nasbench_grow.baselines.tiny.discover", lambda *_: space_of(name))
    task, network = registry.tasks()["cifar10"](), backbones.create(name, 8, 3)
    assert len(between(space_of(name), network)) == served
    assert ("plain layer" in (Tiny().skip(task, network) or "")) == (name == "cifar_mobilenetv2")


def test_language_models_are_skipped():
    assert "plain layer" in Tiny().skip(registry.tasks()["ptb_small"](), backbones.create("lstm_200", 10, 3))


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(UserError, match="batches 0 is out of range"):
        Settings(batches=0)
