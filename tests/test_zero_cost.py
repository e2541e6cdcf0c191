"""Zero-cost proxies: both scores worked out by hand, which candidate is trained, the budget, and the bill."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from backbone_spaces import space_for
from test_baselines import equal, run, share, widths
from tiny_networks import Plain, Residual, small_job
from torch import Tensor, nn

from nasbench_grow import discover
from nasbench_grow.base.errors import UserError
from nasbench_grow.baselines.random import Random
from nasbench_grow.baselines.zero_cost import Agreement, Settings, ZeroCost, naswot, synflow
from nasbench_grow.harness import registry


def wide() -> nn.Module:
    return Residual(16)


def small(**changes):
    return small_job(wide, **{"batch_size": 8, "steps": 2, "epochs": 2, **changes})


def ranking(**changes) -> ZeroCost:
    return ZeroCost(Settings(**{"candidates": 6, "samples": 12, **changes}))


# --- synaptic flow ---


def linear_network(*, norm: type[nn.Module] | None = None, active: type[nn.Module] = nn.ReLU) -> nn.Module:
    """Two linear layers of two and one units, weights set by hand."""
    layers = [nn.Linear(2, 2, bias=False), *([norm(2)] if norm else []), active(), nn.Linear(2, 1, bias=False)]
    network = nn.Sequential(*layers)
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[1.0, -2.0], [-3.0, 0.5]]))
        network[-1].weight.copy_(torch.tensor([[-2.0, 4.0]]))
    return network


def test_synflow_of_a_linear_network_by_hand():
    # R = 2 (1 + 2) + 4 (3 + 0.5) = 20, and each layer's dR/dw * w add up to R
    assert synflow(linear_network(), torch.zeros(1, 2)) == pytest.approx(2 * 20)


def test_normalisations_and_bounds_are_left_out_of_synflow_and_the_network_stays():
    network = linear_network(norm=nn.BatchNorm1d, active=nn.ReLU6)
    with torch.no_grad():
        network[1].weight.fill_(0.1)
        network[1].running_var.fill_(7.0)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert synflow(network, torch.zeros(1, 2)) == pytest.approx(2 * 20), "ReLU6 would end at 6"
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert network.training and isinstance(network[1], nn.BatchNorm1d)


def test_synflow_of_convolutions_is_their_number_times_the_flow():
    network = nn.Sequential(nn.Conv2d(1, 3, 3, bias=False), nn.ReLU(), nn.Conv2d(3, 2, 1, bias=False), nn.Flatten())
    first, second = (network[at].weight.detach().abs().double() for at in (0, 2))
    flow = (second.flatten(1) @ first.sum((1, 2, 3))).sum() * 4  # positions of a 4 x 4 input
    assert synflow(network, torch.zeros(1, 1, 4, 4)) == pytest.approx(2 * float(flow))


def test_synflow_is_summed_in_double_precision():
    deep = nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(40)))
    with torch.no_grad():
        for layer in deep:
            layer.weight.fill_(30.0)
    found = synflow(deep, torch.zeros(1, 4))
    assert math.isfinite(found) and found == pytest.approx(40 * 4 * 120.0**40)


# --- NASWOT ---


class TwoRelus(nn.Module):
    """The inputs themselves and their negatives pass through a ReLU, once as a function and once as a module."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU6(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x) + self.relu(-x[:, :1])


def test_the_kernel_of_naswot_by_hand():
    x = torch.tensor([[1.0, -1.0, 2.0], [1.0, 3.0, -2.0], [-1.0, -1.0, -1.0]])
    # codes 1010, 1100, 0001 with that of -x1 at the end: 1010, 1100 agree in two of four, 1010, 0001 in one ...
    codes = np.array([[1, 0, 1, 0], [1, 1, 0, 0], [0, 0, 0, 1]])
    kernel = np.array([[(one == other).sum() for other in codes] for one in codes])
    with Agreement() as agreement:
        TwoRelus()(x)
    assert agreement.kernel.tolist() == kernel.tolist() == [[4, 2, 1], [2, 4, 1], [1, 1, 4]]
    assert naswot(TwoRelus(), x) == pytest.approx(math.log(4 * 15 - 2 * 7 + (2 - 4)))


def test_samples_that_pass_alike_make_a_network_worthless():
    x = torch.tensor([[1.0, -1.0], [2.0, -3.0]])
    assert naswot(TwoRelus(), x) == -math.inf


def test_naswot_sees_the_relus_of_functions_too():
    found = {}
    for name in ("cifar_resnet20", "cifar_mobilenetv2"):
        network = registry.build_backbone(name, registry.task("digits")())
        with torch.no_grad(), Agreement() as agreement:
            network(torch.randn(2, 1, 8, 8))
        found[name] = agreement.kernel[0, 0].item()
    assert found["cifar_resnet20"] == 64 * 16 * 7 + 16 * 32 * 6 + 4 * 64 * 6, "as many as there are units"
    assert found["cifar_mobilenetv2"] > 10_000


# --- the method ---


@pytest.mark.parametrize("score", ["synflow", "naswot"])
def test_the_best_of_the_candidates_is_trained_and_each_is_billed(score):
    job, method = small(), ranking(score=score)
    space = discover(job.build(), job.example)
    drawn = list(method.candidates(job, space))
    worth = [method.score(small(), space, job.build(), present) for present in drawn]
    assert len({*worth}) > 1
    best = drawn[worth.index(max(worth))]
    network, macs = run(method, job)
    assert list(widths(network).items()) == [(name, width) for name, width in widths_of(space, best) if width]
    assert macs == 2 * [space.macs(best)]
    costs = sum(map(space.macs, drawn))
    expected = (
        {"search": 3 * costs, "calibration": 0} if score == "synflow" else {"search": 0, "calibration": 12 * costs}
    )
    assert {purpose: job.meter.spent[purpose] for purpose in expected} == expected
    assert job.meter.spent["training"] == 3 * 8 * 2 * sum(macs)


def widths_of(space, present):
    """Out channels of every convolution, as the space says."""
    sizes = dict(space.sizes(present))
    return [(name.removesuffix(".weight"), shape[0]) for name, shape in sizes.items() if len(shape) == 4]


def test_it_is_a_pure_function_of_the_job_and_seeds_draw_other_candidates():
    one, again, other = (ranking().choose(small(seed=seed)) for seed in (0, 0, 1))
    assert equal(one, again) and not equal(one, other)
    assert equal(ranking(candidates=1).choose(small()), Random().choose(small()))


@pytest.mark.parametrize("score", ["synflow", "naswot"])
def test_a_network_that_is_worth_more_wins_over_a_narrow_neck(score):
    method = ranking(score=score)
    job = small_job(lambda: Plain(24))
    space = discover(job.build(), job.example)
    neck, even = space.full(), space.full()
    neck[space.groups[1].start + 1 : space.groups[1].start + 24] = False
    for group in space.groups:
        even[group.start + 20 : group.start + 24] = False
    assert method.score(job, space, job.build(), neck) < method.score(job, space, job.build(), even)


@pytest.mark.parametrize(
    ("task", "backbone"),
    [
        ("cifar10_16px", "cifar_resnet20"),
        ("cifar10_16px", "cifar_vgg16_bn"),
        ("cifar10_16px", "cifar_mobilenetv2"),
        ("landcover", "deeplabv3plus_thin"),
    ],
)
def test_both_scores_rank_networks_of_the_budget_on_other_backbones(task, backbone):
    space, task = space_for(task, backbone), registry.task(task)()
    network = registry.build_backbone(backbone, task)
    assert ZeroCost().skip(task, network) is None and network.training
    job = small_job(lambda: network, example=task.example())
    for job.granularity, score in ((8, "synflow"), (1, "naswot")):
        method = ranking(score=score, candidates=2, samples=3)
        found = list(method.candidates(job, space))
        assert all(0.48 <= space.macs(present) / space.macs(space.full()) <= 0.5 for present in found)
        worth = [method.score(job, space, network, present) for present in found]
        assert all(math.isfinite(each) for each in worth) and worth[0] != worth[1]


@pytest.mark.parametrize("budget", [0.25, 0.75])
def test_the_budget_is_met(budget):
    network, _ = run(ranking(), small(budget=budget))
    assert budget - 0.02 <= share(network, wide) <= budget


def test_networks_without_rectified_activations_are_skipped():
    task = registry.task("ptb_small")()
    assert "recurrent" in ZeroCost().skip(task, registry.build_backbone("lstm_200", task))
    smooth = nn.Sequential(nn.Conv2d(1, 4, 3), nn.GELU(), nn.Flatten())
    assert "no rectified activation" in ZeroCost().skip(registry.task("digits")(), smooth)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"score": "snip"}, "snip"),
        ({"candidates": 0}, "candidates 0 is out of range: give a number above 0"),
        ({"samples": 1}, "samples 1 is out of range: they are compared, so give 2 or more"),
    ],
)
def test_settings_outside_their_range_are_refused(changes, said):
    with pytest.raises(UserError) as caught:
        Settings(**changes)
    assert said in str(caught.value) and "\n" not in str(caught.value)
