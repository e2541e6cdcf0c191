"""Sums over the weights of a filter: by what a weight is to it, and of norms taken weight by weight."""

import pytest
import torch
from tiny_networks import EXAMPLE, Plain, Residual, seeded, sgd
from torch import nn

from nasbench_grow.contract import ElasticModel


def model_of(make=Plain):
    return ElasticModel(seeded(make), EXAMPLE, sgd)


def sums(model, *arguments, **options):
    """By the group's name."""
    found = model.filter_sums(*arguments, **options).detach()
    return {group.name: found[group.structures] for group in model.space.groups}


def test_each_role_counts_its_weights():
    model = model_of()
    network = model.network
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    found = {role: sums(model, torch.abs, of=(role,))["conv2"] for role in ("creating", "consuming", "scale", "shift")}
    torch.testing.assert_close(found["creating"], network.conv2.weight.abs().sum((1, 2, 3)))
    torch.testing.assert_close(found["consuming"], network.conv3.weight.abs().sum((0, 2, 3)))
    assert torch.equal(found["scale"], network.bn2.weight.abs())
    assert torch.equal(found["shift"], network.bn2.bias.abs())


def test_norms_are_taken_weight_by_weight_before_they_are_added():
    model = model_of(lambda: Residual(4))
    network = model.network
    writers = [network.stem, *(block.conv2 for block in network.blocks)]
    stream = next(group for group in model.space.groups if group.layer is None)
    expected = sum(writer.weight.square().sum((1, 2, 3)).sqrt() for writer in writers)
    found = sums(model, torch.square, each=torch.sqrt)[stream.name]
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, sums(model, torch.square)[stream.name].sqrt())


class Flattened(nn.Module):
    """A filter of the convolution has four entries of the linear layer's inputs."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, stride=4, padding=1)
        self.fc = nn.Linear(12, 10)

    def forward(self, x):
        return self.fc(self.conv(x).relu().flatten(1))


def test_the_entries_that_a_filter_has_of_one_weight_make_one_norm():
    model = model_of(Flattened)
    found = sums(model, torch.square, of=("consuming",), each=torch.sqrt)["conv"]
    torch.testing.assert_close(found, model.network.fc.weight.view(10, 3, 4).square().sum((0, 2)).sqrt())


def test_after_pruning_absent_filters_have_nothing():
    model = model_of()
    before = sums(model, torch.square, each=torch.ones_like)["conv2"]
    present = model.space.full()
    gone = next(group for group in model.space.groups if group.name == "conv2").start + 3
    present[gone] = False
    model.resize(present)
    after = sums(model, torch.square, each=torch.ones_like)["conv2"]
    assert after[3] == 0 and before[3] == 1
    assert torch.equal(after[:3], before[:3])


def test_a_weight_of_which_there_is_no_measure_does_not_count():
    model = model_of()
    without = {id(model.network.conv2.weight)}
    found = sums(model, lambda weight: None if id(weight) in without else weight.abs(), of=("creating",))
    assert not found["conv2"].any() and found["conv3"].all()


@pytest.mark.parametrize("each", [None, torch.sqrt])
def test_sums_have_gradients(each):
    model = model_of()
    model.filter_sums(torch.square, of=("creating", "scale"), each=each).sum().backward()
    weight = model.network.conv3.weight
    expected = 2 * weight if each is None else weight / weight.square().sum((1, 2, 3), keepdim=True).sqrt()
    torch.testing.assert_close(weight.grad, expected)
