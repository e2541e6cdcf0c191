"""OTO (HESSO): zero-invariant groups leave without a trace, shrink as published, and the network meets its budget."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from cells import small_cell
from killing import run_whole_and_in_pieces
from tiny_networks import EXAMPLE, Plain, Residual, small_job
from torch import Tensor, nn

from nasbench_grow import count_macs
from nasbench_grow.base.errors import UserError
from nasbench_grow.baselines.oto import Hesso, Oto, Settings, group_masks, saliency
from nasbench_grow.contract import ElasticModel, Job
from nasbench_grow.tasks.digits import Digits


class Biased(nn.Module):
    """Convolutions with bias, one of them depthwise, before a normalisation and without: (B, 1, 8, 8) to (B, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 12, 3, padding=1)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.norm = nn.BatchNorm2d(12)
        self.second = nn.Conv2d(12, 12, 1)
        self.fc = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.depthwise(F.relu(self.first(x)))))
        return self.fc(F.relu(self.second(x)).mean((2, 3)))


def with_gradients(job: Job) -> ElasticModel:
    """A model whose weights have the gradients of one batch."""
    model = job.model()
    inputs, targets = next(iter(job.train.epoch(1, 8, 0)))
    F.cross_entropy(model.network(inputs), targets).backward()
    return model


@pytest.mark.parametrize("make", [lambda: Plain(12), lambda: Residual(12), Biased])
def test_a_period_drives_groups_to_exact_zero_and_their_removal_changes_nothing(make):
    job = small_job(make, epochs=10, steps=4)  # 40 steps: four before pruning, four of one period
    model = with_gradients(job)
    callback = Hesso(job, Settings(periods=1))
    for step in range(4, 8):
        callback.before_step(model, step, 40)
        callback.after_backward(model)
        model.optimizer.step()
        assert callback.redundant.any()
        callback.after_step(model)
    weights = dict(model.network.named_parameters())
    for name, mask in group_masks(model, callback.redundant):
        assert not weights[name][mask.expand_as(weights[name])].any(), f"{name} is not zero"
    full, inputs = copy.deepcopy(model.network), torch.randn(6, 1, 8, 8)
    callback.before_step(model, 8, 40)
    assert model.macs <= 0.5 * job.dense_macs < count_macs(full, EXAMPLE)
    for mode in (True, False):  # by the statistics of the batch, and by those that ran along
        full.train(mode), model.network.train(mode)
        assert torch.allclose(model.network(inputs), full(inputs), atol=1e-6)


def test_groups_shrink_by_equal_parts_of_what_they_were():
    job = small_job(lambda: Plain(8), epochs=10, steps=5)  # 50 steps: five before pruning, five of one period
    model = with_gradients(job)
    callback = Hesso(job, Settings(periods=1))
    before = model.network.conv2.weight.detach().clone()
    for step, share in zip(range(5, 10), (0.8, 0.6, 0.4, 0.2, 0.0), strict=True):
        callback.before_step(model, step, 50)
        callback.after_backward(model)
        callback.after_step(model)
        gone = callback.redundant[model.space.groups[1].structures]
        assert gone.any() and not gone.all()
        assert torch.allclose(model.network.conv2.weight[gone], share * before[gone], atol=1e-7)
        assert torch.equal(model.network.conv2.weight[~gone], before[~gone])


def test_saliency_is_the_mean_of_five_scores_worked_by_hand():
    network = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 10))
    model = small_job(lambda: network).model()
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([3.0, -4.0]).view(2, 1, 1, 1))
    network[0].weight.grad = torch.tensor([2.0, 1.0]).view(2, 1, 1, 1)
    # norms 3 and 4, also per weight; cosines plus one 2 and 0; Taylor terms 6 and 4, then 18 and 8
    expected = 2 * torch.tensor([0.6, 0.8]) + torch.tensor([1.0, 0.0])
    expected = expected + torch.tensor([6.0, 4.0]) / 52**0.5 + torch.tensor([18.0, 8.0]) / (18**2 + 8**2) ** 0.5
    assert saliency(model).tolist() == pytest.approx((expected / 5).tolist(), rel=1e-5)


@pytest.mark.parametrize("granularity", [1, 8])
@pytest.mark.parametrize("make", [lambda: Plain(48), lambda: Residual(48)])
def test_it_meets_the_budget_early_and_bills_the_networks_that_trained(make, granularity):
    job = small_job(make, granularity=granularity)  # twenty steps in ten epochs: two before pruning, two periods
    macs, stages = [], Oto().run(job)
    try:
        while True:
            macs.append(count_macs(next(stages).network, EXAMPLE))
    except StopIteration as end:
        final = count_macs(end.value, EXAMPLE)
    assert job.budget - 0.02 <= final / job.dense_macs <= job.budget
    assert set(macs[2:]) == {final}
    between = macs[1]
    assert final < between < job.dense_macs
    assert job.meter.total == 3 * 8 * (3 * job.dense_macs + between + 16 * final)


def test_pruning_to_the_last_step_still_removes_what_is_zero():
    job = small_job(lambda: Plain(48))
    stages = Oto(Settings(start_share=0.5, pruning_share=0.5, periods=5)).run(job)
    try:
        while True:
            next(stages)
    except StopIteration as end:
        assert 0.48 <= count_macs(end.value, EXAMPLE) / job.dense_macs <= 0.5


def test_killed_within_a_period_it_goes_on_to_the_same_bits(tmp_path):
    cell = small_cell(
        method="oto[periods=1,pruning_share=0.7]", backbone="tiny_residual", budget=0.5, epochs=4
    )  # one period from the first epoch to the third
    whole, pieces = run_whole_and_in_pieces(cell, tmp_path)
    assert whole["status"] == "ok" and whole["meets_budget"], whole["error"]
    assert whole["test_metric"] == pieces["test_metric"] and whole["train_macs"] == pieces["train_macs"]


def test_it_skips_normalisations_that_mix_channels():
    assert "mix channels" in (Oto().skip(Digits(), nn.Sequential(nn.LayerNorm(3))) or "")
    assert Oto().skip(Digits(), Plain()) is None


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"periods": 0}, "periods 0 is out of range: give 1 or more"),
        ({"start_share": 0.0}, "start_share 0 is out of range"),
        ({"start_share": 0.6, "pruning_share": 0.5}, "are more than the run; give two shares that add up to 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong, words):
    with pytest.raises(UserError) as caught:
        Settings(**wrong)
    assert words in str(caught.value)
