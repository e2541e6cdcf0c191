"""The search space, and NNI's own strategies on it, unchanged."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from backbone_spaces import space_for
from nas_experiments import make_experiment, make_space, run
from nni.mutable.exception import SampleValidationError
from nni.nas.strategy import TPE, GridSearch, Random, RegularizedEvolution, Strategy
from numpy.random import RandomState
from tiny_networks import EXAMPLE, Residual, seeded
from torch import nn

from nasbench_grow.base.errors import UserError
from nasbench_grow.cost.macs import count_macs
from nasbench_grow.growing import nni_space
from nasbench_grow.growing.nni_space import GrowableSpace, Sample
from nasbench_grow.harness import registry
from nasbench_grow.tasks.digits import Digits

MODELS = 3


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # NNI lists its experiments there


def evolution() -> Strategy:
    return RegularizedEvolution(population_size=2, sample_size=2, mutation_prob=0.5, seed=0)


def share(space: GrowableSpace, network: nn.Module) -> float:
    return count_macs(network, EXAMPLE) / count_macs(space.dense, EXAMPLE)


def architecture(network: nn.Module) -> dict[str, int | bool]:
    """What a Residual network physically is, in the words of a sample."""
    found: dict[str, int | bool] = {"stem": network.stem.out_channels}
    for index, block in enumerate(network.blocks):
        found[f"blocks.{index}"] = not isinstance(block, nn.Identity)
        if found[f"blocks.{index}"]:
            found[f"blocks.{index}.conv1"] = block.conv1.out_channels
    return found


@pytest.mark.parametrize("form", ["raw", "simplified"])
@pytest.mark.parametrize(
    "make_strategy", [lambda: Random(seed=0), evolution, lambda: TPE("maximize", seed=0)], ids=["Random", "RE", "TPE"]
)
def test_strategies_of_nni_export_networks_of_the_budget_and_say_what_they_are(
    make_strategy: Callable[[], Strategy], form: str, tmp_path: Path
) -> None:
    space = make_space()
    dense = copy.deepcopy(space.dense.state_dict())
    experiment = run(make_experiment(space, make_strategy(), tmp_path, models=MODELS, form=form))

    assert all(torch.equal(dense[name], tensor) for name, tensor in space.dense.state_dict().items())
    models = experiment.export_top_models(MODELS)
    samples = experiment.export_top_models(MODELS, formatter="dict")
    networks = experiment.export_top_models(MODELS, formatter="instance")
    assert len(models) == MODELS
    assert all(0 < model.metric <= 1 for model in models)
    assert len({tuple(sorted(sample.items())) for sample in samples}) > 1
    for sample, network in zip(samples, networks, strict=True):
        assert 0.48 <= share(space, network) <= 0.5
        assert architecture(network).items() <= sample.items()


def test_grid_search_tries_every_network_of_a_small_space_once(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    space = GrowableSpace(model, EXAMPLE, budget=0.5)
    experiment = run(make_experiment(space, GridSearch(), tmp_path, form="simplified"))
    # widths 1 to 4 to draw from; half of the MACs are two filters
    assert experiment.export_top_models(9, formatter="dict") == [{"0": 2, "budget": 0.5}]

    narrow = make_space(0.1)
    experiment = run(make_experiment(narrow, GridSearch(shuffle=False), tmp_path, models=MODELS, form="simplified"))
    samples = experiment.export_top_models(MODELS, formatter="dict")
    networks = experiment.export_top_models(MODELS, formatter="instance")
    assert len({tuple(sorted(sample.items())) for sample in samples}) == MODELS
    for sample, network in zip(samples, networks, strict=True):
        assert 0.08 <= share(narrow, network) <= 0.1
        assert architecture(network).items() <= sample.items()


def test_grid_search_in_the_raw_format_is_refused_with_the_way_out(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    experiment = make_experiment(GrowableSpace(model, EXAMPLE), GridSearch(), tmp_path)
    with pytest.raises(UserError, match="'simplified'"):
        experiment.run()
    experiment.stop()


def test_the_dimensions_are_a_few_widths_of_each_group_and_the_presence_of_each_layer() -> None:
    space = GrowableSpace(seeded(lambda: Residual(32)), EXAMPLE, budget=0.25, granularity=8)
    assert {label: mutable.values for label, mutable in space.simplify().items()} == {
        "stem": [32, 24, 16, 8, 4],
        "blocks.0.conv1": [32, 24, 16, 8, 4],
        "blocks.1.conv1": [32, 24, 16, 8, 4],
        "blocks.2.conv1": [32, 24, 16, 8, 4],
        "blocks.0": [True, False],
        "blocks.1": [True, False],
        "blocks.2": [True, False],
        "budget": [0.25],
    }


@pytest.mark.parametrize("budget", [0.1, 0.25, 0.5, 0.75])
def test_whatever_is_drawn_costs_the_budget(budget: float, monkeypatch: pytest.MonkeyPatch) -> None:
    task = Digits()
    monkeypatch.setattr(nni_space, "discover", lambda *_: space_for("digits", "cifar_resnet20"))
    model = registry.build_backbone("cifar_resnet20", task)
    space, state = GrowableSpace(model, task.example(), budget), RandomState(0)
    drawn = set()
    for _ in range(8):
        sample: Sample = {}
        network = space.random(sample, state)
        assert budget - 0.02 <= count_macs(network, task.example()) / count_macs(model, task.example()) <= budget
        drawn.add(tuple(sample.items()))
    assert len(drawn) == 8


def chain() -> nn.Sequential:
    """On 8 x 8 inputs 64 x 16 + 16 x 16 x 16 + 16 x 10 = 5280 MACs."""
    convs = [nn.Conv2d(1, 16, 1, bias=False), nn.ReLU(), nn.Conv2d(16, 16, 1, stride=2, bias=False), nn.ReLU()]
    return nn.Sequential(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))


def test_a_sample_is_brought_to_the_budget_in_its_own_proportions() -> None:
    space = GrowableSpace(chain(), EXAMPLE, budget=0.5, granularity=1)
    # 16 and 8 cost 1024 + 2048 + 80 = 3152 MACs, 14 and 7 cost 896 + 1568 + 70 = 2534; with one more of either, over
    # half of 5280
    sample = {"0": 16, "2": 8, "budget": 0.5}
    network = space.freeze(sample)
    assert sample == {"0": 14, "2": 7, "budget": 0.5}
    assert (network[0].out_channels, network[2].out_channels) == (14, 7)
    assert torch.equal(network[2].weight, space.dense[2].weight[:7, :14])
    # all 16 of the second and 448 + 1792 + 160 = 2400; 8 and 16 would cost 2720
    assert space.at_budget({"0": 1, "2": 16, "budget": 0.5}) == {"0": 7, "2": 16, "budget": 0.5}


def test_a_grid_goes_through_all_combinations_each_brought_to_the_budget() -> None:
    space = GrowableSpace(chain(), EXAMPLE, budget=0.5, granularity=8)
    sample: Sample = {}
    visited = [dict(sample) for _ in space.grid(sample)]
    widths = [16, 8, 6, 4, 2]
    combinations = [{"0": first, "2": second, "budget": 0.5} for first in widths for second in widths]
    assert visited == [space.at_budget(each) for each in combinations]


def test_layers_join_where_the_others_cannot_use_up_the_budget() -> None:
    space = make_space(budget=0.5)
    nothing = {name: False for name in ("blocks.0", "blocks.1", "blocks.2")}
    sample = space.at_budget({**space.sample_of(space.structures.full()), **nothing})
    # A block is a third of the MACs: one is not enough, two are too much at full width
    assert [sample[name] for name in nothing] != [False, False, False]
    assert 0.48 <= share(space, space.freeze(sample)) <= 0.5


def test_bringing_a_sample_to_the_budget_twice_is_the_same_as_once() -> None:
    for width, budget in ((6, 0.5), (12, 0.1), (32, 0.5)):  # in the narrow ones a filter is many percent
        space, state = GrowableSpace(seeded(lambda width=width: Residual(width)), EXAMPLE, budget), RandomState(0)
        for _ in range(10):
            sample: Sample = {}
            space.random(sample, state)
            assert space.at_budget(sample) == sample


def test_a_sample_can_be_kept_as_json() -> None:
    space = make_space()
    sample: Sample = {}
    network = space.random(sample, RandomState(0))
    again = make_space().freeze(json.loads(json.dumps(sample)))
    assert network.state_dict().keys() == again.state_dict().keys()
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize(
    "change", [{"stem": None}, {"stem": 0}, {"stem": 33}, {"stem": 8.5}, {"blocks.1": "yes"}, {"budget": 0.25}]
)
def test_a_sample_of_another_space_is_refused(change: Sample) -> None:
    space = make_space()
    sample = space.sample_of(space.structures.full())
    with pytest.raises(SampleValidationError):
        space.freeze({**sample, **change})
    del sample["blocks.1.conv1"]
    with pytest.raises(SampleValidationError, match=r"blocks\.1\.conv1"):
        space.freeze(sample)


@pytest.mark.parametrize(
    ("model", "budget", "message"),
    [(chain(), 1.5, "1.5 is outside"), (chain(), 0.001, "seed network"), (nn.Flatten(), 0.5, "nothing")],
)
def test_a_space_that_cannot_be_had_is_refused(model: nn.Module, budget: float, message: str) -> None:
    with pytest.raises(UserError, match=message):
        GrowableSpace(model, EXAMPLE, budget)
