"""GradMax: the auxiliary gradient and the largest gradient against brute force, the function preserved, the bill."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
import torch.nn.functional as F
from test_baselines import Residual, equal, job, run, share, wide, widths
from test_net2net import Layers, disturb
from tiny_networks import Kept, Plain, small_job
from torch import Tensor, nn

from nasbench_grow.base.errors import UserError
from nasbench_grow.baselines.gradmax import (
    GradMax,
    GradMaxSettings,
    Maximising,
    auxiliary_gradient,
    between,
    incoming,
)
from nasbench_grow.baselines.uniform import Uniform
from nasbench_grow.contract import Widening

SOON = GradMaxSettings(seed_share=0.5, steps=2, begin=0.25, growth=0.5, samples=8)


def brute_force(first: nn.Module, second: nn.Module, inputs: Tensor, incoming: Tensor, outgoing: Tensor) -> Tensor:
    """The gradient of the loss by the outgoing weights of a linear filter that really stands between the layers, at
    outgoing weights of zero. The loss is the sum of the outputs times ``outgoing``."""
    weight = torch.zeros(second.weight.shape[0], 1, *second.weight.shape[2:], requires_grad=True)
    if isinstance(first, nn.Linear):
        made = F.linear(inputs, incoming)
        output = second(first(inputs)) + F.linear(made, weight)
    else:
        made = F.conv2d(inputs, incoming, None, first.stride, first.padding, first.dilation)
        output = second(first(inputs)) + F.conv2d(made, weight, None, second.stride, second.padding, second.dilation)
    (output * outgoing).sum().backward()
    return weight.grad


LAYERS = {
    "linear": (nn.Linear(5, 4), nn.Linear(4, 3), (7, 5)),
    "3 x 3": (nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 3, padding=1), (2, 3, 8, 8)),
    "strides": (nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 2, 3, 2, 1), (2, 3, 9, 8)),
    "dilated, without padding": (nn.Conv2d(3, 4, (3, 1)), nn.Conv2d(4, 2, 3, dilation=2), (2, 3, 9, 8)),
    "1 x 1": (nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1), (2, 3, 4, 4)),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_the_matrix_gives_the_gradient_of_a_filter_that_stands_there(kind):
    first, second, shape = LAYERS[kind]
    torch.manual_seed(1)
    inputs = torch.randn(shape)
    hidden = first(inputs)
    outgoing = torch.randn_like(second(hidden))
    matrix = auxiliary_gradient(first, second, inputs, hidden.shape, outgoing, normalised=False)[0]
    vector = torch.randn(1, *first.weight.shape[1:])
    expected = brute_force(first, second, inputs, vector, outgoing)
    assert torch.allclose(matrix @ vector.flatten(), expected.flatten(), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("kind", ["linear", "strides"])
def test_no_other_directions_have_a_larger_gradient(kind):
    first, second, shape = LAYERS[kind]
    torch.manual_seed(1)
    inputs = torch.randn(shape)
    hidden = first(inputs)
    outgoing = torch.randn_like(second(hidden))

    def norm(vectors: Tensor) -> float:
        pulls = [
            brute_force(first, second, inputs, vector.view(1, *first.weight.shape[1:]), outgoing) for vector in vectors
        ]
        return float(sum(pull.square().sum() for pull in pulls))

    matrix, _ = auxiliary_gradient(first, second, inputs, hidden.shape, outgoing, normalised=False)
    best = incoming(matrix, None, 2)
    assert torch.allclose(best @ best.T, torch.eye(2), atol=1e-5)
    assert (best.sum(1) >= 0).all()
    for _ in range(60):
        other = torch.linalg.qr(torch.randn(best.shape[1], 2)).Q.T
        assert norm(other) <= norm(best)
        nearby = torch.linalg.qr((best + 0.1 * torch.randn_like(best)).T).Q.T
        assert norm(nearby) <= norm(best)


@pytest.mark.parametrize("make", [Plain, Residual, Layers])
def test_growing_leaves_the_function_as_it_was_bit_by_bit_nearly(make):
    small = small_job(make)
    model = small.model()
    growing = Maximising(small, model, SOON)
    torch.manual_seed(0)
    disturb(model)
    inputs = torch.randn(8, 1, 8, 8)
    for present in growing.networks[1:]:
        before = model.network.eval()(inputs)
        growing.grow(model, present)
        assert torch.allclose(model.network.eval()(inputs), before, rtol=0, atol=1e-6)
        disturb(model)


def test_behind_a_normalisation_no_other_filter_has_a_larger_gradient():
    """One filter, divided by its own deviation: against many random ones."""
    first, second, shape = LAYERS["3 x 3"]
    torch.manual_seed(1)
    inputs = torch.randn(shape) * torch.tensor([0.1, 1.0, 5.0]).view(1, 3, 1, 1)
    hidden = first(inputs)
    outgoing = torch.randn_like(second(hidden))

    def norm(vector: Tensor) -> float:
        weight = torch.zeros(2, 1, 3, 3, requires_grad=True)
        made = F.batch_norm(F.conv2d(inputs, vector.view(1, 3, 3, 3), padding=1), None, None, training=True)
        (F.conv2d(made, weight, padding=1) * outgoing).sum().backward()
        return float(weight.grad.norm())

    found = auxiliary_gradient(first, second, inputs, hidden.shape, outgoing, normalised=True)
    best = incoming(*found, 1)[0]
    others = [norm(torch.randn(27)) for _ in range(300)]
    nearby = [norm(best + 0.05 * torch.randn(27) * best.abs()) for _ in range(100)]
    assert max(others) < norm(best) and max(nearby) < 1.01 * norm(best)


def test_newborn_filters_pull_harder_than_random_ones_in_the_network_itself():
    """The gradient of their outgoing weights, normalisations and activations included."""
    pulls = []
    for start in (Maximising.start, Widening.start):
        small = small_job(lambda: Plain(24), steps=8)
        model = small.model()
        growing = Maximising(small, model, GradMaxSettings(seed_share=0.5, steps=8, samples=64))
        old = model.network.conv3.weight.shape[1]
        start(growing, model, growing.networks[0], growing.networks[1])
        with torch.no_grad():
            model.dense.conv3.weight[:, old:] = 0
        model.resize(growing.networks[1])
        for inputs, targets in small.calibrate(model.network, 64):
            F.cross_entropy(model.network.train()(inputs), targets).backward()
        pulls.append(float(model.network.conv3.weight.grad[:, old:].norm()))
    assert pulls[0] > 1.5 * pulls[1]


def test_filters_between_two_layers_of_a_kind_are_found():
    space, dense = small_job(Residual).model().space, Residual()
    found = [(place.first, place.second) for place in between(space, dense)]
    assert found == [(f"blocks.{number}.conv1", f"blocks.{number}.conv2") for number in range(3)]


def test_incoming_weights_have_half_the_mean_norm():
    small = small_job(lambda: Plain(24))
    model = small.model()
    growing = Maximising(small, model, GradMaxSettings(seed_share=0.5, steps=1, samples=16))
    old = model.network.conv2.weight.detach().clone()
    growing.grow(model, growing.networks[1])
    norms = model.network.conv2.weight.detach().flatten(1).norm(dim=1)
    assert torch.allclose(norms[len(old) :], 0.5 * old.flatten(1).norm(dim=1).mean().expand(len(norms) - len(old)))


@pytest.mark.parametrize("make, granularity", [(wide, 1), (lambda: Residual(24), 8)])
def test_the_last_network_is_that_of_uniform(make, granularity):
    network, _ = run(GradMax(), job(make, granularity=granularity))
    assert widths(network) == widths(Uniform().choose(job(make, granularity=granularity)))
    assert 0.48 <= share(network, make) <= 0.5


def test_the_gradients_of_growth_steps_are_billed():
    small = job(wide)
    _, macs = run(GradMax(SOON), small)
    assert small.meter.spent["training"] == 3 * 8 * 2 * sum(macs)
    assert small.meter.spent["calibration"] == 3 * 8 * (macs[1] + macs[2])
    assert small.meter.total == small.meter.spent["training"] + small.meter.spent["calibration"]


@pytest.mark.parametrize("epochs", [1, 3])
def test_a_killed_run_goes_on_where_it_was(epochs):
    storage = Kept()
    for _ in islice(GradMax(SOON).run(job(storage=storage)), epochs):
        pass
    again, whole = job(storage=storage), job()
    assert equal(run(GradMax(SOON), again)[0], run(GradMax(SOON), whole)[0])
    assert again.meter.spent == whole.meter.spent


def test_the_schedule_is_the_published_one():
    begins = [round(begin * 78_125) for begin, _ in GradMaxSettings().stages()[1:]]
    assert begins == [10_000 + 2_500 * number for number in range(12)]


@pytest.mark.parametrize("settings", [{"scale": 0.0}, {"samples": -1}, {"begin": 0.7}])
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(UserError, match=f"{next(iter(settings))} "):
        GradMaxSettings(**settings)
