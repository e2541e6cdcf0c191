"""Growing under NNI's NasExperiment, for real, on digits."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nni
import pytest
import torch
from nni.mutable.exception import SampleValidationError
from nni.nas.evaluator import FunctionalEvaluator
from nni.nas.experiment import NasExperiment, NasExperimentConfig
from nni.nas.nn.pytorch import ModelSpace
from torch import nn

from nasbench_grow.base.errors import UserError
from nasbench_grow.contract.task import Batch
from nasbench_grow.cost.macs import count_macs
from nasbench_grow.growing.strategy import GrowableSpace, GrowingStrategy
from nasbench_grow.harness import registry
from nasbench_grow.tasks.digits import Digits

EPOCHS = 3


@pytest.fixture(scope="module")
def digits() -> Any:
    return Digits().load(torch.device("cpu"), 256)


@pytest.fixture
def space() -> GrowableSpace:
    torch.manual_seed(0)
    channels = Digits.input_shape[0]
    model = nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, Digits.num_classes),
    )
    return GrowableSpace(model, Digits().example())


def make_strategy(
    digits: Any, stop_in_epoch: int | None = None, epochs_seen: list[int] | None = None
) -> GrowingStrategy:
    """A strategy of EPOCHS epochs, noted in ``epochs_seen``; Ctrl-C after one batch of ``stop_in_epoch``."""

    def batches(epoch: int) -> Iterable[Batch]:
        if epochs_seen is not None:
            epochs_seen.append(epoch)
        for batch in digits.train.epoch(epoch, 64, seed=0):
            yield batch
            if epoch == stop_in_epoch:
                raise KeyboardInterrupt

    return GrowingStrategy(
        batches,
        epochs=EPOCHS,
        steps_per_epoch=digits.train.steps_per_epoch(64),
        budget=0.5,
        optimizer=lambda network: torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9),
    )


def make_experiment(space: ModelSpace, digits: Any, strategy: GrowingStrategy, folder: Path) -> NasExperiment:
    """An in-process experiment that keeps its files in ``folder``."""
    config = NasExperimentConfig("sequential", "raw")
    config.experiment_working_directory = str(folder)

    def evaluate(network: nn.Module) -> None:
        nni.report_final_result(Digits().evaluate(network, digits.val))

    return NasExperiment(space, FunctionalEvaluator(evaluate), strategy, config)


def grow(space: GrowableSpace, digits: Any, strategy: GrowingStrategy, folder: Path) -> NasExperiment:
    experiment = make_experiment(space, digits, strategy, folder)
    experiment.run()
    experiment.stop()
    return experiment


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # NNI lists its experiments there


def test_an_experiment_reports_and_exports_the_grown_network(space: GrowableSpace, digits: Any, tmp_path: Path) -> None:
    dense = copy.deepcopy(space.dense.state_dict())

    experiment = grow(space, digits, make_strategy(digits), tmp_path)

    (model,) = experiment.export_top_models()
    (network,) = experiment.export_top_models(formatter="instance")
    (sample,) = experiment.export_top_models(formatter="dict")
    assert len(model.metrics.intermediates) == EPOCHS
    assert model.metric == pytest.approx(Digits().evaluate(network, digits.val))
    example = Digits().example()
    assert 0.3 < count_macs(network, example) / count_macs(space.dense, example) <= 0.52
    assert [len(kept) for kept in sample.values()] == [network[0].out_channels, network[3].out_channels]
    assert all(torch.equal(dense[name], tensor) for name, tensor in space.dense.state_dict().items())


def test_a_sample_without_grown_weights_gives_the_dense_network_cut_to_it(space: GrowableSpace) -> None:
    sample = space.sample_of(space.structures.seed())
    network = space.freeze(sample)
    assert (network[0].out_channels, network[3].out_channels) == (1, 1)
    assert torch.equal(network[0].weight[0], space.dense[0].weight[0])


def test_a_sample_says_all_about_filters_and_layers() -> None:
    task = Digits()
    space = GrowableSpace(registry.build_backbone("cifar_resnet20", task), task.example())
    present = space.structures.seed()
    present[space.structures.groups[1].start + 2] = True
    present[space.structures.filters + 3] = True
    network = space.freeze(json.loads(json.dumps(space.sample_of(present))))
    assert count_macs(network, task.example()) == space.structures.macs(present)
    assert sum(isinstance(module, nn.Identity) for module in network.modules()) >= len(space.structures.layers) - 1


@pytest.mark.parametrize("change", [{"elsewhere": [0]}, {"0": []}, {"0": [8]}])
def test_a_sample_of_another_network_is_refused(space: GrowableSpace, change: dict[str, Any]) -> None:
    with pytest.raises(SampleValidationError):
        space.freeze({**space.sample_of(space.structures.full()), **change})


def test_an_interrupted_experiment_goes_on_as_if_nothing_had_happened(
    space: GrowableSpace, digits: Any, tmp_path: Path
) -> None:
    (expected,) = grow(space, digits, make_strategy(digits), tmp_path).export_top_models(formatter="instance")

    interrupted = make_strategy(digits, stop_in_epoch=2)
    experiment = make_experiment(space, digits, interrupted, tmp_path)
    experiment.run()  # NNI takes Ctrl-C as the wish to stop, and keeps the state
    assert len(interrupted.metrics) == 1
    epochs_seen: list[int] = []
    resumed = make_strategy(digits, epochs_seen=epochs_seen)
    again = NasExperiment(space, experiment.evaluator, resumed, experiment.config, id=experiment.id)
    again.resume()
    again.stop()

    assert epochs_seen == [2, 3]
    (model,) = again.export_top_models()
    (network,) = again.export_top_models(formatter="instance")
    assert len(model.metrics.intermediates) == EPOCHS
    assert network.state_dict().keys() == expected.state_dict().keys()
    assert all(torch.equal(tensor, network.state_dict()[name]) for name, tensor in expected.state_dict().items())


def test_another_model_space_is_refused_in_one_line(digits: Any, tmp_path: Path) -> None:
    class Other(ModelSpace):
        pass

    experiment = make_experiment(Other(), digits, make_strategy(digits), tmp_path)
    with pytest.raises(UserError, match="GrowableSpace"):
        experiment.run()
    experiment.stop()
