"""Small experiments of NNI's neural architecture search: a space, an evaluator that trains, and running them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nni
import torch
from nni.nas.evaluator import FunctionalEvaluator
from nni.nas.experiment import NasExperiment, NasExperimentConfig
from nni.nas.nn.pytorch import ModelSpace
from nni.nas.strategy import Strategy
from tiny_networks import EXAMPLE, Residual, digit_batches, digits, seeded, sgd
from torch import nn
from torch.nn import functional as F

from nasbench_grow.growing.nni_space import GrowableSpace
from nasbench_grow.tasks.digits import Digits


def make_space(budget: float = 0.5) -> GrowableSpace:
    """Wide enough that a filter is a small part of its network."""
    return GrowableSpace(seeded(lambda: Residual(32)), EXAMPLE, budget)


def accuracy(network: nn.Module) -> float:
    """On the validation split."""
    return Digits().evaluate(network, digits().val)


def train_and_evaluate(network: nn.Module) -> None:
    """What NNI's strategies have done to each network that they draw."""
    optimizer = sgd(network.train())
    for inputs, targets in digit_batches(epoch=1, steps=3):
        optimizer.zero_grad()
        F.cross_entropy(network(inputs), targets).backward()
        optimizer.step()
    nni.report_final_result(accuracy(network))


def make_experiment(
    space: ModelSpace,
    strategy: Strategy,
    folder: Path,
    *,
    models: int | None = None,
    form: str = "raw",
    evaluate: Callable[[nn.Module], None] = train_and_evaluate,
    id: str | None = None,
) -> NasExperiment:
    """An experiment in this process that keeps its files in ``folder`` and ends after so many models."""
    config = NasExperimentConfig("sequential", form, max_trial_number=models)
    config.experiment_working_directory = str(folder)
    return NasExperiment(space, FunctionalEvaluator(evaluate), strategy, config, id=id)


def run(experiment: NasExperiment) -> NasExperiment:
    """The experiment, run to its end."""
    torch.manual_seed(0)
    experiment.run()
    experiment.stop()
    return experiment
