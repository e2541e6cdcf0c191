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
from nasbench_grow.contract.task import Batch
from nasbench_grow.growing.grower import Grower
from nasbench_grow.growing.nni_space import GrowableSpace
from nasbench_grow.growing.presets import Preset


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
        learning_rate_at: learning rate of optimizer step 0, 1, ...; None keeps the optimizer's own.
        preset: ``"default"``, ``"paper"`` or a :class:`~nasbench_grow.growing.presets.Preset`.
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
        learning_rate_at: Callable[[int], float] | None = None,
        preset: str | Preset = "default",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.batches, self.epochs, self.metric = batches, epochs, metric
        self.metrics: list[float] = []
        self._state: dict[str, Any] = {}
        self._make_grower = partial(
            Grower,
            epochs=epochs,
            steps_per_epoch=steps_per_epoch,
            loss=loss,
            optimizer=optimizer,
            learning_rate_at=learning_rate_at,
            preset=preset,
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
        dense = copy.deepcopy(space.dense)
        self.grower = self._make_grower(dense, space.example, budget=space.budget, granularity=space.granularity)
        self._remember()
        return model_space

    def _run(self) -> None:
        # As with NNI's one-shot strategies, the model is given the network itself; the metric measures it.
        model = RawFormatModelSpace(self.space, FunctionalEvaluator(self._report))
        for metric in self.metrics:
            model.metrics.add_intermediate(metric)
        for epoch in range(len(self.metrics) + 1, self.epochs + 1):
            self.grower.train(self.batches(epoch))
            metric = float(self.metric(self.grower.network()))
            self.engine.dispatch_model_event(IntermediateMetricEvent(model, metric))
            self.metrics.append(metric)
            self._remember()
        model.sample = self.space.sample_of(self.grower.masks.harden())
        model.model_space, model.status = self.grower.finish(), ModelStatus.Frozen
        self.engine.submit_models(model)
        self.engine.wait_models(model)

    def _report(self, network: nn.Module) -> None:
        """The final result of the network that is left."""
        nni.report_final_result(float(self.metric(network)))

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
