"""Soft filter pruning and the geometric median: what is zeroed, that removing it changes nothing, and the bill."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from backbone_spaces import space_for
from nni.compression.pruning import FPGMPruner
from scipy.spatial.distance import cdist
from test_baselines import Plain, Residual, equal, job, run, seeded, share, wide
from tiny_networks import EXAMPLE, Kept, sgd
from torch import Tensor, nn

from nasbench_grow.base.errors import UserError
from nasbench_grow.baselines.dense import Dense
from nasbench_grow.baselines.fpgm import FPGM, FpgmSettings
from nasbench_grow.baselines.soft_filter import SoftFilter, SoftSettings, Zeroing, rising, zero
from nasbench_grow.contract import ElasticModel, Recipe
from nasbench_grow.cost.macs import count_macs
from nasbench_grow.harness import registry

BOTH = [SoftFilter, FPGM]
STILL = Recipe(batch_size=8, learning_rate=0.0)


def model_of(make=Plain) -> ElasticModel:
    return ElasticModel(seeded(make), EXAMPLE, sgd)


# --- the weights of a filter ---


def test_filter_vectors_hold_what_filter_sums_sums():
    for make in (Plain, Residual):
        model = model_of(make)
        present = model.space.full()
        present[: model.space.filters : 3] = False
        for structures in (model.space.full(), present):
            model.resize(structures)
            sums = model.filter_sums(torch.square)[: model.space.filters][structures[: model.space.filters]]
            vectors = model.filter_vectors()
            assert torch.allclose(torch.cat([vector.square().sum(1) for vector in vectors]), sums, rtol=1e-4)


def test_the_vector_of_a_coupled_filter_is_its_weights_in_every_layer_that_writes_it():
    model = model_of(Residual)
    stream = next(number for number, group in enumerate(model.space.groups) if group.layer is None)
    writers = [model.network.stem, *(block.conv2 for block in model.network.blocks)]
    expected = torch.cat([writer.weight.detach().flatten(1) for writer in writers], 1)
    found = model.filter_vectors()[stream]
    assert found.shape == expected.shape
    assert torch.allclose(found.sort(1).values, expected.sort(1).values)


def test_the_vector_of_a_recurrent_unit_is_its_row_of_every_gate():
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.fc = nn.LSTM(8, 6), nn.Linear(6, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.lstm(x[:, 0].transpose(0, 1))[0][-1])

    model = model_of(Recurrent)
    (vectors,) = model.filter_vectors()
    weight = model.network.lstm.weight_ih_l0.detach()
    assert torch.equal(vectors[2, : 4 * 8], weight[[2, 8, 14, 20]].flatten())


# --- which filters ---


def test_soft_filter_ranks_by_the_euclidean_norm():
    filters = torch.tensor([[3.0, 4.0], [0.0, -6.0], [4.9, 0.0]])
    assert SoftFilter().worth(filters, 1).tolist() == pytest.approx([5.0, 6.0, 4.9])


def test_fpgm_ranks_by_the_distances_to_the_other_filters():
    filters = torch.tensor([[0.0, 0.0], [3.0, 4.0], [10.0, 0.0]])
    one_two, one_three, two_three = 5.0, 10.0, 65**0.5
    expected = [one_two + one_three, one_two + two_three, one_three + two_three]
    assert FPGM().worth(filters, 1).tolist() == pytest.approx(expected, rel=1e-4)


def test_fpgm_sums_the_distances_that_scipy_computes():
    filters = torch.randn(40, 27, generator=torch.Generator().manual_seed(0))
    assert FPGM().worth(filters, 9).tolist() == pytest.approx(cdist(filters, filters).sum(1).tolist(), rel=1e-4)


def test_fpgm_removes_what_nni_masks():
    network = seeded(Plain)
    pruner = FPGMPruner(copy.deepcopy(network), [{"op_names": ["conv1", "conv2", "conv3"], "sparse_ratio": 0.5}])
    _, masks = pruner.compress()
    for name in ("conv1", "conv2", "conv3"):
        theirs = masks[name]["weight"].flatten(1).amax(1).bool()
        worth = FPGM().worth(network.get_submodule(name).weight.detach().flatten(1), 8)
        assert set(worth.argsort()[:8].tolist()) == set(torch.nonzero(~theirs).flatten().tolist())


def test_the_mix_removes_the_smallest_norms_and_measures_distances_among_the_rest():
    filters = torch.randn(20, 5, generator=torch.Generator().manual_seed(1))
    removed = FPGM(FpgmSettings(norm_share=0.75)).worth(filters, 8).argsort()[:8].tolist()
    by_norm = filters.norm(dim=1).argsort().tolist()
    rest = by_norm[6:]
    distances = cdist(filters[rest], filters[rest]).sum(1)
    assert removed[:6] == by_norm[:6]
    assert removed[6:] == [rest[at] for at in distances.argsort()[:2]]


# --- zeroing and removing ---


@pytest.mark.parametrize("make", [Plain, Residual])
@pytest.mark.parametrize("method", BOTH)
def test_removing_zeroed_filters_does_not_change_the_network(method, make):
    model, cell = model_of(make), job(make)
    for _ in cell.fit(model, epochs=1):  # norms with statistics and shifts of their own
        pass
    zeroing = Zeroing(cell, model, SoftSettings(), method().worth)
    zeroing.after_epoch(model)
    inputs = torch.randn(4, *EXAMPLE.shape[1:])
    zeroed, cut = model.network.eval()(inputs), zeroing.evaluated(model).eval()(inputs)
    assert count_macs(zeroing.evaluated(model), EXAMPLE) < 0.52 * cell.dense_macs
    assert torch.allclose(zeroed, cut, atol=1e-5)


@pytest.mark.parametrize("method", BOTH)
def test_zeroed_filters_train_on(method):
    model, cell = model_of(), job(Plain, epochs=2)
    zeroing = Zeroing(cell, model, SoftSettings(), method().worth)
    stages = cell.fit(model, zeroing)
    next(stages)
    gone = ~zeroing.present[model.space.groups[1].structures]
    assert not model.network.conv2.weight[gone].any() and not model.network.bn2.bias[gone].any()
    zeroing.after_epoch = lambda model: None
    for _ in stages:
        pass
    assert model.network.conv2.weight[gone].any(), "momentum moves them"


def test_norms_kept_leaves_scales_and_shifts_alone():
    model = model_of()
    zero(model, model.space.full(), alone=True)
    assert not model.network.conv1.weight.any() and model.network.bn1.weight.all()
    zero(model, model.space.full())
    assert not model.network.bn1.weight.any() and model.network.fc.weight.any()


def test_a_filter_that_has_grown_is_no_longer_removed():
    model, cell = model_of(), job(Plain, recipe=STILL)
    zeroing = Zeroing(cell, model, SoftSettings(), SoftFilter().worth)
    zeroing.after_epoch(model)
    back = int(torch.nonzero(~zeroing.present)[0])
    assert back < 16 and zeroing.log(model) == {"recovered": 0}
    model.network.conv1.weight.data[back] = 9.0
    zeroing.after_epoch(model)
    assert zeroing.present[back] and zeroing.log(model) == {"recovered": 1}


@pytest.mark.parametrize("method", BOTH)
def test_the_network_returned_is_the_one_judged_last(method):
    small = job(Plain)
    stages = method().run(small)
    while True:
        try:
            last = next(stages).network
        except StopIteration as end:
            assert equal(end.value, last)
            return


@pytest.mark.parametrize("budget", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("method", BOTH)
def test_the_budget_is_met_in_every_epoch_and_the_dense_network_is_billed(method, budget):
    small = job(wide, budget=budget)
    network, macs = run(method(), small)
    assert budget - 0.02 <= share(network, wide) <= budget
    assert macs == 4 * [count_macs(network, EXAMPLE)]
    assert small.meter.spent == {
        "training": 4 * 2 * 3 * 8 * small.dense_macs,
        "search": 0,
        "source": 0,
        "calibration": 0,
    }


@pytest.mark.parametrize(
    ("task", "backbone"),
    [
        ("cifar10_16px", "cifar_resnet20"),
        ("cifar10_16px", "cifar_vgg16_bn"),
        ("cifar10_16px", "cifar_mobilenetv2"),
        ("ptb_small", "lstm_200"),
        ("landcover", "deeplabv3plus_thin"),
    ],
)
def test_the_budget_is_met_on_other_backbones(task, backbone):
    space, task = space_for(task, backbone), registry.task(task)()
    network = registry.build_backbone(backbone, task)
    cell = job(lambda: network, example=task.example())
    model = cell.model()
    model.space = space
    for method, granularity in ((SoftFilter, 1), (FPGM, 8)):
        cell.granularity = granularity
        zeroing = Zeroing(cell, model, SoftSettings(), method().worth)
        zeroing.after_epoch(model)
        assert 0.48 <= model.space.macs(zeroing.present) / cell.dense_macs <= 0.5
        assert count_macs(zeroing.evaluated(model), cell.example) == model.space.macs(zeroing.present)


# --- the asymptotic variant ---


def test_the_zeroed_share_rises_to_three_quarters_at_the_knee_and_to_all_at_the_end():
    for knee in (0.125, 0.3, 0.5):
        assert rising(0.0, knee) == 0 and rising(1.0, knee) == pytest.approx(1)
        assert rising(knee, knee) == pytest.approx(0.75)
        steps = torch.tensor([rising(at / 20, knee) for at in range(21)]).diff()
        assert (steps > 0).all() and (steps.diff() < 0).all()
    assert rising(0.01, 0.0) == 1


def test_the_asymptotic_variant_zeroes_few_filters_at_first():
    model, cell = model_of(), job(Plain, epochs=40, recipe=STILL)
    zeroing = Zeroing(cell, model, SoftSettings(asymptotic=0.125), SoftFilter().worth)
    removed = int((~zeroing.present[:16]).sum())
    for epoch, expected in ((1, rising(1 / 40, 0.125)), (5, 0.75)):
        while zeroing.epochs < epoch:
            zeroing.after_epoch(model)
        zeroed = int((model.network.conv1.weight.flatten(1).abs().amax(1) == 0).sum())
        assert zeroed == round(expected * removed)
        assert int((~zeroing.present[:16]).sum()) == removed


# --- start, resuming, settings ---


def test_a_trained_start_goes_through_the_whole_schedule_at_a_tenth_of_the_rate():
    source = SimpleNamespace(network=lambda: seeded(Plain))
    small = job(Plain, source=source)
    rates = [stage.learning_rate for stage in SoftFilter(SoftSettings(start="trained")).run(small)]
    plain = [stage.learning_rate for stage in Dense().run(job(Plain))]
    assert rates == pytest.approx([0.1 * rate for rate in plain])
    assert SoftFilter(SoftSettings(start="trained")).source == "dense" and SoftFilter().source is None


@pytest.mark.parametrize("settings", [FpgmSettings(), FpgmSettings(asymptotic=0.125, norm_share=0.75)])
def test_killed_after_any_epoch_it_ends_with_the_same_bits(settings):
    whole, _ = run(FPGM(settings), job(Plain))
    storage = Kept()
    for epochs in (1, 2, 3):
        stages = FPGM(settings).run(job(Plain, storage=storage))
        for _ in zip(range(epochs if epochs == 1 else 2), stages, strict=False):
            pass
        stages.close()
    resumed, _ = run(FPGM(settings), job(Plain, storage=storage))
    assert equal(whole, resumed)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"asymptotic": 0.8}, "asymptotic 0.8 is out of range: it is a share, 0 <= asymptotic <= 0.5"),
        ({"tuning_rate": 0.0}, "tuning_rate 0 is out of range"),
        ({"norm_share": 1.0}, "norm_share 1 is out of range: it is a share, 0 <= norm_share < 1"),
        ({"start": "warm"}, "warm"),
    ],
)
def test_settings_outside_their_range_are_refused(changes, said):
    with pytest.raises(UserError, match=said):
        FpgmSettings(**changes)
