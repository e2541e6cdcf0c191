"""A strategy of NNI's, asked for one network after the other.

NNI's strategies are loops of their own that hand models to an engine. Here the loop runs in a thread, and its engine
hands each model over to whoever asks (:meth:`Draws.next`), who trains it as and when it likes and gives back its score
(:meth:`Draws.tell`). The two take turns, so that with a seed of its own a strategy draws the same each time.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from queue import SimpleQueue
from typing import Any, TypeVar

from nni import NoMoreTrialError
from nni.nas.execution import ExecutionEngine
from nni.nas.execution.event import FinalMetricEvent, TrainingEndEvent
from nni.nas.space import ExecutableModelSpace, ModelStatus, RawFormatModelSpace
from nni.nas.strategy import TPE, Strategy

from nasbench_grow.growing.nni_space import GrowableSpace, Sample

PATIENCE = 20
"""A strategy that draws so many networks in a row that it has drawn before is at its end."""

Network = TypeVar("Network", bound=Hashable)


class Draws:
    """The samples that a strategy draws from a space, each to be given a score before the next; a context, at the end
    of which the strategy ends.

    Args:
        make_strategy: makes a strategy of multi-trial search.
        space: what it draws from.
    """

    def __init__(self, make_strategy: Callable[[], Strategy], space: GrowableSpace) -> None:
        self._engine = _HandingOver()
        self._model = RawFormatModelSpace(space, None)
        self._make_strategy = make_strategy

    def __enter__(self) -> Draws:
        self._log_level = logging.getLogger("nni").level
        logging.getLogger("nni").setLevel(logging.CRITICAL)  # it prints, which would stand among our own output
        self._thread = threading.Thread(target=self._run, name="NNI strategy", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._engine.answers.put(_END)
        self._thread.join()
        logging.getLogger("nni").setLevel(self._log_level)

    def next(self) -> Sample | None:
        """The next sample, brought to the budget; None: the strategy has no more."""
        drawn = self._engine.drawn.get()
        if isinstance(drawn, BaseException):
            raise drawn
        return drawn

    def tell(self, score: float | None) -> None:
        """Gives the score of the last sample (higher is better); None: it has none, because its training failed."""
        self._engine.answers.put(score)

    def untried(
        self, scores: Mapping[Network, float | None], which: Callable[[Sample], Network]
    ) -> Iterator[tuple[Network, Sample]]:
        """The networks that were not drawn before, each with its sample, until the strategy has no more or seems to be
        at its end (:data:`PATIENCE`).

        Args:
            scores: of the networks so far; the score of each is put here before the next is asked for, and is told to
                the strategy whenever it draws that network again.
            which: the network that a sample is.
        """
        known = 0
        while known < PATIENCE and (sample := self.next()) is not None:
            network = which(sample)
            known = known + 1 if network in scores else 0
            if not known:
                yield network, sample
            self.tell(scores[network])

    def _run(self) -> None:
        """Makes the strategy and runs it to its end, in its thread."""
        try:
            self._make_strategy()(self._model, self._engine)
            self._engine.drawn.put(None)
        except BaseException as error:
            self._engine.drawn.put(error)


class OrderedTPE(TPE):
    """NNI's TPE, told that the values of a dimension have an order: it models each by Gaussians around the places of
    the good ones.

    NNI 3.0 hands its tuner unordered choices. Over eight of them the tuner tries what it has seldom tried, so that its
    later samples are worse than random ones (``tests/test_multi_trial.py`` has it). Its loop also sleeps for a second
    after each model, which this one does not.
    """

    def _run(self) -> None:
        values = {label: sorted(dimension.values) for label, dimension in self.model_space.simplify().items()}
        fixed = {label: those[0] for label, those in values.items() if len(those) == 1}
        places = {label: [0, len(those) - 1, 1] for label, those in values.items() if label not in fixed}
        self.tuner.update_search_space(
            {label: {"_type": "quniform", "_value": range_} for label, range_ in places.items()}
        )
        while self.engine.budget_available():
            try:
                drawn = self.tuner.generate_parameters(self._model_count)
            except NoMoreTrialError:
                return
            sample = {label: values[label][int(drawn[label])] for label in places}
            model = self.model_space.freeze({**sample, **fixed})
            self._model_to_id[model] = self._model_count
            self._model_count += 1
            self.engine.submit_models(model)


_END = object()
"""The answer that there is none any more."""


class _HandingOver(ExecutionEngine):
    """NNI's side: one model is out at a time, and whoever asks for room waits until it is back."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn: SimpleQueue[Sample | BaseException | None] = SimpleQueue()
        self.answers: SimpleQueue[Any] = SimpleQueue()
        self._out: ExecutableModelSpace | None = None
        self._over = False
        self._history: list[ExecutableModelSpace] = []

    def submit_models(self, *models: ExecutableModelSpace) -> None:
        """Hands models over, one after the other."""
        for model in models:
            self.wait_models()
            if self._over:
                return
            assert model.sample is not None, "a model of a strategy has a sample"
            self._out, model.status = model, ModelStatus.Training
            self._history.append(model)
            self.drawn.put(dict(model.sample))

    def wait_models(self, *models: ExecutableModelSpace) -> None:
        """Waits for the answer to the model that is out and tells the strategy of it."""
        if self._out is None:
            return
        score, model = self.answers.get(), self._out
        self._out = None
        if score is _END:
            self._over, score = True, None
        if score is not None:
            self.dispatch_model_event(FinalMetricEvent(model, score))
        self.dispatch_model_event(TrainingEndEvent(model, ModelStatus.Failed if score is None else ModelStatus.Trained))

    def idle_worker_available(self) -> bool:
        """True, once no model is out."""
        self.wait_models()
        return True

    def budget_available(self) -> bool:
        """Whether another model may come, once none is out."""
        self.wait_models()
        return not self._over

    def list_models(self, status: ModelStatus | None = None) -> Iterable[ExecutableModelSpace]:
        """The models so far, all or those of a status."""
        return [model for model in self._history if status is None or model.status == status]
