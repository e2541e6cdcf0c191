"""Growing as a strategy of NNI's neural architecture search, beside NNI's own on the same space and engine.

::

    space = GrowableSpace(timm.create_model("resnet18"), torch.zeros(1, 3, 224, 224), budget=0.5)
    strategy = GrowingStrategy(batches, epochs=90, steps_per_epoch=5004, metric=accuracy, optimizer=optimizer)
    experiment = NasExperiment(space, evaluator, strategy, NasExperimentConfig("sequential", "raw"))
    experiment.run()
    (network,) = experiment.export_top_models(formatter="instance")

NNI's strategies draw networks, and the experiment's evaluator trains and measures each. Growing trains one network
itself, while its architecture changes, so it has one model, the network that is left, and never calls that evaluator.
The sequential engine runs all of it in this process and starts no server.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import nni
import torch
from nni.nas.evaluator import FunctionalEvaluator
from nni.nas.execution import ExecutionEngine
from nni.nas.execution.event import IntermediateMetricEvent
from nni.nas.space import ExecutableModelSpace, ModelStatus, RawFormatModelSpace
from nni.nas.strategy import Strategy
from torch import Tensor, nn
from torch.nn import functional as F

from nasbench_grow.base.errors import UserError
from nasbench_grow.contract import Batch, Job
from nasbench_grow.growing.beginning import Settings, begin
from nasbench_grow.growing.nni_space import GrowableSpace
from nasbench_grow.growing.own import OwnBatches, OwnRecipe
from nasbench_grow.growing.sampling import SamplingSettings


class GrowingStrategy(Strategy):
    """Grows the model of a :class:`GrowableSpace` to the space's budget while it trains.

    Args:
        batches: gives the training batches of epoch 1, 2, ...; the same ones again for the same epoch, so that an
            interrupted experiment can go on.
        epochs, steps_per_epoch: the length of the run.
        metric: measures a network, higher is better, and does not train it: called on a copy of the growing one after
            every epoch (an intermediate result) and on the network that is left (the final result).
        optimizer: makes an optimizer for a network.
        loss: ``loss(output, target)``, a scalar.
        learning_rate_at: learning rate for the share of the run that is done, in (0, 1]; None: the optimizer's own.
        settings: of growing; None: the defaults.
        seed: of the sampling.
    """

    def __init__(
        self,
        batches: Callable[[int], Iterable[Batch]],
        *,
        epochs: int,
        steps_per_epoch: int,
        metric: Callable[[nn.Module], float],
        optimizer: Callable[[nn.Module], torch.optim.Optimizer],
        loss: Callable[[Any, Tensor], Tensor] = F.cross_entropy,
        learning_rate_at: Callable[[float], float] | None = None,
        settings: Settings | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.metric, self.settings = metric, settings or SamplingSettings()
        self.metrics: list[float] = []
        self._journal = _Journal()
        self._make_job = partial(
            Job,
            seed=seed,
            epochs=epochs,
            recipe=OwnRecipe(make=optimizer, rate=learning_rate_at),
            loss=loss,
            train=OwnBatches(batches, steps_per_epoch),
            storage=self._journal,
            ambient=_Metrics(self),
        )

    def _initialize(self, model_space: ExecutableModelSpace, engine: ExecutionEngine) -> ExecutableModelSpace:
        space = getattr(model_space, "model_space", None)
        if not isinstance(space, GrowableSpace):
            raise UserError(
                "GrowingStrategy needs a GrowableSpace in NNI's raw format: give one to NasExperiment, "
                "with NasExperimentConfig('sequential', 'raw')"
            )
        self.space = space
        return model_space

    def _run(self) -> None:
        # As with NNI's one-shot strategies, the model is given the network itself; the metric measures it.
        model = RawFormatModelSpace(self.space, FunctionalEvaluator(self._report))
        for metric in self.metrics:
            model.metrics.add_intermediate(metric)
        space = self.space
        job = self._make_job(
            budget=space.budget,
            granularity=space.granularity,
            example=space.example,
            build=lambda: copy.deepcopy(space.dense),
        )
        grown, growing = begin(job, self.settings)
        for stage in job.fit(grown, growing):
            metric = float(self.metric(copy.deepcopy(stage.network)))
            self.engine.dispatch_model_event(IntermediateMetricEvent(model, metric))
            self.metrics.append(metric)
        model.model_space = growing.finish(grown)
        model.sample, model.status = space.sample_of(grown.structures), ModelStatus.Frozen
        self.engine.submit_models(model)
        self.engine.wait_models(model)

    def _report(self, network: nn.Module) -> None:
        """The final result of the network that is left."""
        nni.report_final_result(float(self.metric(network)))

    def state_dict(self) -> dict[str, Any]:
        """The state after the last finished epoch."""
        return copy.deepcopy(self._journal.states)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after the epoch that ``state_dict`` was taken at; the arguments must be those of then."""
        self._journal.states = copy.deepcopy(state_dict)
        for state in state_dict.values():
            self.metrics = list(state["ambient"]["metrics"])


class _Journal:
    """Keeps a run's states in memory, as copies: NNI asks for them in the middle of an epoch, if interrupted."""

    def __init__(self) -> None:
        self.states: dict[str, Any] = {}

    def read(self, name: str) -> dict[str, Any] | None:
        return copy.deepcopy(self.states.get(name))

    def write(self, name: str, state: dict[str, Any]) -> None:
        self.states[name] = copy.deepcopy(state)

    def forget(self, prefix: str) -> None:
        self.states = {name: state for name, state in self.states.items() if not name.startswith(prefix)}


class _Metrics:
    """The metrics of the epochs so far, which are part of a run's state."""

    def __init__(self, strategy: GrowingStrategy) -> None:
        self.strategy = strategy

    def state_dict(self) -> dict[str, Any]:
        return {"metrics": list(self.strategy.metrics)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.strategy.metrics = list(state["metrics"])
