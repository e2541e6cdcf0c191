"""Any method of this suite as a strategy of NNI's neural architecture search, beside NNI's own on the same space.

::

    space = GrowableSpace(timm.create_model("resnet18"), torch.zeros(1, 3, 224, 224), budget=0.5)
    strategy = GrowingStrategy(batches, epochs=90, steps_per_epoch=5004, metric=accuracy, optimizer=optimizer)
    experiment = NasExperiment(space, evaluator, strategy, NasExperimentConfig("sequential", "raw"))
    experiment.run()
    (network,) = experiment.export_top_models(formatter="instance")

NNI's strategies draw networks, and the experiment's evaluator trains and measures each. A method trains by itself, so
the experiment has one model, the network that it returns, and never calls that evaluator. The sequential engine runs
all of it in this process and starts no server.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Iterator
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
from nasbench_grow.contract import Batch, Job, Method, Split, TrainSplit
from nasbench_grow.growing.beginning import Settings
from nasbench_grow.growing.method import GrowingMethod
from nasbench_grow.growing.nni_space import GrowableSpace
from nasbench_grow.growing.own import OwnBatches, OwnRecipe
from nasbench_grow.growing.sampling import SamplingSettings


class MethodStrategy(Strategy):
    """Runs a method on the model of a :class:`GrowableSpace`, at the space's budget and granularity.

    Args:
        method: any that begins with no other cell's result, e.g. ``registry.method("l1[dense_share=0.25]")``.
        batches: gives the training batches of epoch 1, 2, ...; the same ones again for the same epoch, so that an
            interrupted experiment can go on.
        epochs, steps_per_epoch: the length of the run.
        metric: measures a network, higher is better, and does not train it: called on a copy of the network after
            every epoch of its training (an intermediate result) and on the one that is left (the final result). A
            method that searches judges its candidates by it, as NNI's own strategies do.
        optimizer: makes an optimizer for a network.
        loss: ``loss(output, target)``, a scalar.
        learning_rate_at: learning rate for the share of the run that is done, in (0, 1]; None: the optimizer's own.
        batch_size: samples of a batch.
        held_out: batches that are not trained on, from which a method may learn an architecture (DARTS).
        seed: of everything random.
    """

    def __init__(
        self,
        method: Method,
        batches: Callable[[int], Iterable[Batch]],
        *,
        epochs: int,
        steps_per_epoch: int,
        metric: Callable[[nn.Module], float],
        optimizer: Callable[[nn.Module], torch.optim.Optimizer],
        loss: Callable[[Any, Tensor], Tensor] = F.cross_entropy,
        learning_rate_at: Callable[[float], float] | None = None,
        batch_size: int = 1,
        held_out: Collection[Batch] = (),
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.method, self.metric = method, metric
        self.metrics: list[float] = []
        self._journal = _Journal()
        self._make_job = partial(
            Job,
            seed=seed,
            epochs=epochs,
            recipe=OwnRecipe(batch_size=batch_size, make=optimizer, rate=learning_rate_at),
            loss=loss,
            train=_Batches(batches, steps_per_epoch, batch_size, held_out),
            score=lambda network, _: float(self.metric(copy.deepcopy(network))),
            storage=self._journal,
            ambient=_Metrics(self),
        )

    def _initialize(self, model_space: ExecutableModelSpace, engine: ExecutionEngine) -> ExecutableModelSpace:
        space = getattr(model_space, "model_space", None)
        if not isinstance(space, GrowableSpace):
            raise UserError(
                f"{type(self).__name__} needs a GrowableSpace in NNI's raw format: give one to NasExperiment, "
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
        model.model_space = network = self._train(job, model)
        model.sample, model.status = space.sample_of_network(network), ModelStatus.Frozen
        self.engine.submit_models(model)
        self.engine.wait_models(model)

    def _train(self, job: Job, model: ExecutableModelSpace) -> nn.Module:
        """The network that the method returns; NNI is told the metric of every epoch of its training."""
        stages = self.method.run(job)
        while True:
            try:
                stage = next(stages)
            except StopIteration as end:
                return end.value
            if stage.purpose == "training":
                metric = float(self.metric(copy.deepcopy(stage.network)))
                self.engine.dispatch_model_event(IntermediateMetricEvent(model, metric))
                self.metrics.append(metric)

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


class GrowingStrategy(MethodStrategy):
    """Grows the model of a :class:`GrowableSpace` to the space's budget while it trains.

    Args:
        batches: as for :class:`MethodStrategy`, like the other arguments.
        settings: of growing; None: the defaults.
        arguments: those of :class:`MethodStrategy`.
    """

    def __init__(
        self, batches: Callable[[int], Iterable[Batch]], *, settings: Settings | None = None, **arguments: Any
    ) -> None:
        super().__init__(GrowingMethod(settings or SamplingSettings()), batches, **arguments)


class _Batches(OwnBatches):
    """A user's batches, and others to judge a search on.

    Args:
        batches, count: as for :class:`OwnBatches`.
        size: samples of a batch.
        held_out: the others.
    """

    def __init__(
        self, batches: Callable[[int], Iterable[Batch]], count: int, size: int, held_out: Collection[Batch]
    ) -> None:
        super().__init__(batches, count)
        self._size, self._held_out = size, held_out

    def __len__(self) -> int:
        """Samples of an epoch."""
        return self._count * self._size

    def hold_out(self, share: float, batch_size: int = 1) -> tuple[TrainSplit, Split]:
        """All batches, and those that were held out already."""
        return self, _HeldOut(self._held_out)


class _HeldOut:
    """Batches as a split."""

    def __init__(self, given: Collection[Batch]) -> None:
        self._given = given

    def __len__(self) -> int:
        """Number of samples."""
        return sum(len(targets) for _, targets in self._given)

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """The batches as they were given."""
        if not self._given:
            raise UserError("this method learns from batches that it does not train on; give some as held_out")
        return iter(self._given)


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

    def __init__(self, strategy: MethodStrategy) -> None:
        self.strategy = strategy

    def state_dict(self) -> dict[str, Any]:
        return {"metrics": list(self.strategy.metrics)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.strategy.metrics = list(state["metrics"])
