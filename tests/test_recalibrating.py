"""Recalibrated batch normalisations: the mean over the batches of what each has, by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_networks import Plain
from torch import Tensor, nn

from nasbench_grow.base.errors import UserError
from nasbench_grow.structure.recalibrating import recalibrate


def batches(*rows: list[float]) -> list[Tensor]:
    """Batches of numbers for a batch norm of one feature."""
    return [torch.tensor(row)[:, None] for row in rows]


def test_statistics_are_the_mean_of_each_batchs_own() -> None:
    norm = nn.BatchNorm1d(1)
    norm.running_mean.fill_(7.0)
    norm.running_var.fill_(7.0)
    recalibrate(norm, batches([0.0, 2.0], [1.0, 5.0], [3.0, 3.0]))
    # Means 1, 3, 3; unbiased variances 2, 8, 0.
    assert norm.running_mean.item() == pytest.approx(7 / 3)
    assert norm.running_var.item() == pytest.approx(10 / 3)
    assert norm.num_batches_tracked == 3


def test_a_later_norm_sees_what_the_earlier_one_gives_in_training() -> None:
    network = nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 1), nn.BatchNorm1d(1))
    with torch.no_grad():
        network[1].weight.fill_(2.0)
        network[1].bias.fill_(5.0)
    recalibrate(network, batches([10.0, 30.0]))
    assert network[0].running_mean.item() == pytest.approx(20)
    assert network[2].running_mean.item() == pytest.approx(5)  # 2 * (-1, 1) + 5
    assert network[2].running_var.item() == pytest.approx(8, rel=1e-4)


def test_dropout_is_off_and_modes_momenta_and_weights_stay() -> None:
    network = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(1, momentum=0.3), nn.BatchNorm1d(1).eval())
    weights = copy.deepcopy(dict(network.named_parameters()))
    recalibrate(network, batches([1.0, 3.0]))
    assert network[1].running_mean.item() == 2
    assert [module.training for module in network] == [True, True, False]
    assert [network[1].momentum, network[2].momentum] == [0.3, 0.1]
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter, weights[name]) and parameter.grad is None


def test_a_recalibrated_network_evaluates_as_it_trains() -> None:
    network = Plain().double()
    images = torch.randn(64, 1, 8, 8, dtype=torch.double)
    before = copy.deepcopy(network).eval()(images)
    recalibrate(network, [images])
    trained = copy.deepcopy(network).train()(images)
    # But for the running variance, which is unbiased: by 1 / 256 and less, here.
    torch.testing.assert_close(network.eval()(images), trained, rtol=0, atol=0.02)
    assert not torch.allclose(before, trained, rtol=0, atol=0.02)


def test_networks_without_running_statistics_are_not_run() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.GroupNorm(1, 2), nn.BatchNorm1d(2, track_running_stats=False))
    recalibrate(network, [])
    recalibrate(network, ["no tensor at all"])


def test_no_batch_is_refused() -> None:
    with pytest.raises(UserError, match="no batch to recalibrate batch normalisations with; give at least one"):
        recalibrate(nn.BatchNorm1d(1), [])


def test_modes_come_back_after_an_error() -> None:
    norm = nn.BatchNorm1d(1).train()
    network = nn.Sequential(norm)
    with pytest.raises(ValueError, match="expected 2D or 3D input"):
        recalibrate(network, [torch.zeros(3)])
    assert network.training and norm.momentum == 0.1
