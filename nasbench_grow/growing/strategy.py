"""Growing as a strategy of NNI's neural architecture search: for ``nni.nas.experiment.NasExperiment``.

::

    space = GrowableSpace(timm.create_model("resnet18"), torch.zeros(1, 3, 224, 224))
    strategy = GrowingStrategy(batches, epochs=90, steps_per_epoch=5004, budget=0.5, optimizer=optimizer)
    experiment = NasExperiment(space, FunctionalEvaluator(evaluate), strategy, NasExperimentConfig("sequential", "raw"))
    experiment.run()
    (network,) = experiment.export_top_models(formatter="instance")

Growing trains one network once, so the experiment has one model: the network that is left. ``evaluate(network)``
measures and reports with ``nni.report_final_result``; it is called after every epoch (the result becomes an
intermediate one) and on the network that is left. The sequential engine runs all of it in this process and starts no
server.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from nni.mutable.exception import SampleValidationError
from nni.nas.evaluator import Evaluator
from nni.nas.execution import ExecutionEngine
from nni.nas.execution.event import IntermediateMetricEvent
from nni.nas.nn.pytorch import ModelSpace
from nni.nas.space import ExecutableModelSpace
from nni.nas.strategy import Strategy
from nni.runtime.trial_command_channel import (
    TrialCommandChannel,
    get_default_trial_command_channel,
    set_default_trial_command_channel,
)
from nni.typehint import ParameterRecord
from torch import Tensor, nn
from torch.nn import functional as F

from nasbench_grow.base.errors import UserError
from nasbench_grow.contract.task import Batch
from nasbench_grow.growing.grower import Grower
from nasbench_grow.growing.presets import Preset
from nasbench_grow.structure.discovery import discover
from nasbench_grow.structure.subnetwork import extract

Sample = dict[str, Any]
"""An architecture: for each channel group the indices of its filters, for each removable layer whether it is there."""


class GrowableSpace(ModelSpace):
    """All networks that are left of one when filters and layers are taken away (section 3.1).

    Args:
        model: the dense network; it stays as it is.
        example: one input with a batch axis, for discovery and for counting.
    """

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        super().__init__()
        self.dense = model
        self.example = example
        self.structures = discover(model, example)
        self._grown: list[tuple[Sample, nn.Module]] = []

    def check_contains(self, sample: Sample) -> SampleValidationError | None:
        """What is wrong with a sample, if anything."""
        labels = [*(group.name for group in self.structures.groups), *(layer.name for layer in self.structures.layers)]
        if set(sample) != set(labels):
            odd = ", ".join(sorted(set(sample) ^ set(labels)))
            return SampleValidationError(f"a sample names every channel group and removable layer; check {odd}")
        for group in self.structures.groups:
            if not sample[group.name] or not set(sample[group.name]) <= set(range(group.size)):
                return SampleValidationError(
                    f"{group.name}: {sample[group.name]!r} is not a choice of 1 to {group.size} filters, counted from 0"
                )
        return None

    def sample_of(self, present: Tensor) -> Sample:
        """The sample that says the same as a vector over all structures."""
        sample: Sample = {
            group.name: torch.nonzero(present[group.structures]).flatten().tolist() for group in self.structures.groups
        }
        for index, layer in enumerate(self.structures.layers):
            sample[layer.name] = self.structures.layer_present(present, index)
        return sample

    def keep(self, sample: Sample, network: nn.Module) -> None:
        """Let ``freeze(sample)`` give this trained network from now on."""
        self._grown = [(sample, network)]

    def freeze(self, sample: Sample) -> nn.Module:
        """The network of a sample: the grown one with its weights, or else the dense network cut to the sample."""
        self.validate(sample)
        for grown, network in self._grown:
            if grown == sample:
                return copy.deepcopy(network)
        present = torch.zeros(len(self.structures), dtype=torch.bool)
        for group in self.structures.groups:
            present[group.start + torch.tensor(sample[group.name])] = True
        for index, layer in enumerate(self.structures.layers):
            present[self.structures.filters + index] = sample[layer.name]
        return extract(self.structures, self.dense, present)


class GrowingStrategy(Strategy):
    """Grows the model of a :class:`GrowableSpace` to a budget while it trains.

    Args:
        batches: gives the training batches of epoch 1, 2, ...; the same ones again for the same epoch, so that an
            interrupted experiment can go on.
        epochs, steps_per_epoch: the length of the run.
        budget: MACs of the network to return as a share of the dense network's, in (0, 1].
        optimizer: makes an optimizer for a network.
        loss: ``loss(output, target)``, a scalar.
        learning_rate_at: learning rate of optimizer step 0, 1, ...; None keeps the optimizer's own.
        preset: ``"default"``, ``"paper"`` or a :class:`~nasbench_grow.growing.presets.Preset`.
        granularity: of the widths (:func:`nasbench_grow.structure.selection.allowed_width`); 1: any width.
        seed: of the sampling.
    """

    def __init__(
        self,
        batches: Callable[[int], Iterable[Batch]],
        *,
        epochs: int,
        steps_per_epoch: int,
        budget: float,
        optimizer: Callable[[nn.Module], torch.optim.Optimizer],
        loss: Callable[[Any, Tensor], Tensor] = F.cross_entropy,
        learning_rate_at: Callable[[int], float] | None = None,
        preset: str | Preset = "default",
        granularity: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.batches = batches
        self.epochs = epochs
        self.metrics: list[float] = []
        self._state: dict[str, Any] = {}
        self._make_grower = partial(
            Grower,
            budget=budget,
            epochs=epochs,
            steps_per_epoch=steps_per_epoch,
            loss=loss,
            optimizer=optimizer,
            learning_rate_at=learning_rate_at,
            preset=preset,
            granularity=granularity,
            seed=seed,
        )

    def _initialize(self, model_space: ExecutableModelSpace, engine: ExecutionEngine) -> ExecutableModelSpace:
        space = getattr(model_space, "model_space", None)
        if not isinstance(space, GrowableSpace):
            raise UserError(
                "GrowingStrategy needs a GrowableSpace in NNI's raw format: give one to NasExperiment, "
                "with NasExperimentConfig('sequential', 'raw')"
            )
        self.space = space
        self.grower = self._make_grower(copy.deepcopy(space.dense), space.example)
        self._remember()
        return model_space

    def _run(self) -> None:
        evaluator = self.model_space.evaluator
        for epoch in range(len(self.metrics) + 1, self.epochs + 1):
            self.grower.train(self.batches(epoch))
            metric = _measure(evaluator, self.grower.network())
            now = self.model_space.freeze(self.space.sample_of(self.grower.masks.present))
            self.engine.dispatch_model_event(IntermediateMetricEvent(now, metric))
            self.metrics.append(metric)
            self._remember()
        sample = self.space.sample_of(self.grower.masks.harden())
        self.space.keep(sample, self.grower.finish())
        model = self.model_space.freeze(sample)
        for metric in self.metrics:
            model.metrics.add_intermediate(metric)
        self.engine.submit_models(model)
        self.engine.wait_models(model)

    def _remember(self) -> None:
        # A copy, because NNI asks for the state when it is interrupted: in the middle of an epoch.
        self._state = copy.deepcopy({"metrics": self.metrics, "grower": self.grower.state_dict()})

    def state_dict(self) -> dict[str, Any]:
        """The state after the last finished epoch."""
        return self._state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after the epoch that ``state_dict`` was taken at; the arguments must be those of then."""
        state = copy.deepcopy(state_dict)
        self.metrics = state["metrics"]
        self.grower.load_state_dict(state["grower"])
        self._remember()


class _Listener(TrialCommandChannel):
    """Hears what an evaluator reports, in place of NNI."""

    def __init__(self) -> None:
        self.final: float | None = None

    def receive_parameter(self) -> ParameterRecord:
        return ParameterRecord(parameter_id=0, parameters={})

    def send_metric(self, type: str, parameter_id: int | None, trial_job_id: str, sequence: int, value: Any) -> None:
        if type == "FINAL":
            self.final = value["default"] if isinstance(value, dict) else value


def _measure(evaluator: Evaluator | None, network: nn.Module) -> float:
    """What the experiment's evaluator reports of a network as its final result."""
    if evaluator is None:
        raise UserError("GrowingStrategy needs an evaluator: give NasExperiment a FunctionalEvaluator(evaluate)")
    listener, channel = _Listener(), get_default_trial_command_channel()
    set_default_trial_command_channel(listener)
    try:
        evaluator.evaluate(network)
    finally:
        set_default_trial_command_channel(channel)
    if listener.final is None:
        raise UserError("the evaluator reported nothing: call nni.report_final_result(metric) in it")
    return float(listener.final)
