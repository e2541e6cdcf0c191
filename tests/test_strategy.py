"""Growing under NNI's NasExperiment, for real, on digits."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from nas_experiments import accuracy, make_experiment, make_space, run, train_and_evaluate
from nni.nas.nn.pytorch import ModelSpace
from nni.nas.strategy import Random
from tiny_networks import EXAMPLE, digit_batches, sgd
from torch import nn

from nasbench_grow.base.errors import UserError
from nasbench_grow.contract.task import Batch
from nasbench_grow.cost.macs import count_macs
from nasbench_grow.growing.nni_strategy import GrowingStrategy, MethodStrategy
from nasbench_grow.harness import registry

EPOCHS, STEPS = 3, 8


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # NNI lists its experiments there


def make_strategy(stop_in_epoch: int | None = None, epochs_seen: list[int] | None = None) -> GrowingStrategy:
    """A strategy of EPOCHS epochs, noted in ``epochs_seen``; Ctrl-C after one batch of ``stop_in_epoch``."""

    def batches(epoch: int) -> Iterable[Batch]:
        if epochs_seen is not None:
            epochs_seen.append(epoch)
        for batch in digit_batches(epoch, STEPS):
            yield batch
            if epoch == stop_in_epoch:
                raise KeyboardInterrupt

    return GrowingStrategy(batches, epochs=EPOCHS, steps_per_epoch=STEPS, metric=accuracy, optimizer=sgd)


def test_growing_exports_its_network_and_never_calls_the_evaluator_that_trains(tmp_path: Path) -> None:
    space, evaluated = make_space(), []
    dense = copy.deepcopy(space.dense.state_dict())

    def evaluate(network: nn.Module) -> None:
        evaluated.append(network)
        train_and_evaluate(network)

    drawn = run(make_experiment(space, Random(seed=0), tmp_path, models=1, evaluate=evaluate))
    assert len(evaluated) == len(drawn.export_top_models()) == 1
    grown = run(make_experiment(space, make_strategy(), tmp_path, models=1, evaluate=evaluate))
    assert len(evaluated) == 1

    (model,) = grown.export_top_models()
    (network,) = grown.export_top_models(formatter="instance")
    (sample,) = grown.export_top_models(formatter="dict")
    assert len(model.metrics.intermediates) == EPOCHS
    assert model.metric == accuracy(network)
    assert 0.48 <= count_macs(network, EXAMPLE) / count_macs(space.dense, EXAMPLE) <= 0.5
    assert sample["stem"] == network.stem.out_channels
    assert [sample[f"blocks.{index}"] for index in range(3)] == [
        not isinstance(block, nn.Identity) for block in network.blocks
    ]
    assert all(torch.equal(dense[name], tensor) for name, tensor in space.dense.state_dict().items())


def test_an_interrupted_experiment_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    space = make_space()
    (expected,) = run(make_experiment(space, make_strategy(), tmp_path)).export_top_models(formatter="instance")

    interrupted = make_strategy(stop_in_epoch=2)
    experiment = make_experiment(space, interrupted, tmp_path)
    experiment.run()  # NNI takes Ctrl-C as the wish to stop, and keeps the state
    assert len(interrupted.metrics) == 1
    epochs_seen: list[int] = []
    again = make_experiment(space, make_strategy(epochs_seen=epochs_seen), tmp_path, id=experiment.id)
    again.resume()
    again.stop()

    assert epochs_seen == [2, 3]
    (model,) = again.export_top_models()
    (network,) = again.export_top_models(formatter="instance")
    assert len(model.metrics.intermediates) == EPOCHS
    assert network.state_dict().keys() == expected.state_dict().keys()
    assert all(torch.equal(tensor, network.state_dict()[name]) for name, tensor in expected.state_dict().items())


@pytest.mark.parametrize("name", ["scaled", "l1", "uniform", "tpe[total=0.4]", "successive_halving[total=0.5,rungs=2]"])
def test_any_method_runs_on_the_space_and_exports_its_network_and_what_that_is(name: str, tmp_path: Path) -> None:
    space, method = make_space(), registry.method(name)
    held_out = list(digit_batches(9, 2))
    strategy = MethodStrategy(
        method,
        lambda epoch: digit_batches(epoch, STEPS),
        epochs=EPOCHS,
        steps_per_epoch=STEPS,
        metric=accuracy,
        optimizer=sgd,
        batch_size=16,
        held_out=held_out,
    )
    experiment = run(make_experiment(space, strategy, tmp_path))
    (model,) = experiment.export_top_models()
    (network,) = experiment.export_top_models(formatter="instance")
    (sample,) = experiment.export_top_models(formatter="dict")
    assert len(model.metrics.intermediates) == EPOCHS, "of its training, not of a search"
    assert model.metric == accuracy(network)
    again = space.freeze(dict(sample))
    assert [tensor.shape for tensor in again.state_dict().values()] == [
        tensor.shape for tensor in network.state_dict().values()
    ]


class Other(ModelSpace):
    """A model space of another kind."""


@pytest.mark.parametrize(("make", "form"), [(Other, "raw"), (make_space, "simplified")])
def test_what_cannot_be_grown_is_refused_in_one_line(make: type[ModelSpace], form: str, tmp_path: Path) -> None:
    experiment = make_experiment(make(), make_strategy(), tmp_path, form=form)
    with pytest.raises(UserError, match="GrowableSpace in NNI's raw format"):
        experiment.run()
    experiment.stop()
