"""All that a method may know of the cell it runs and do with its data: each of it counted and resumable."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Generator, Iterator
from functools import cached_property
from itertools import chain, count, islice
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from nasbench_grow.base import randomness
from nasbench_grow.base.calling import batch_length
from nasbench_grow.base.errors import UserError
from nasbench_grow.base.trees import device_of
from nasbench_grow.contract.callback import Callback
from nasbench_grow.contract.clock import Clock
from nasbench_grow.contract.journal import Journal, Memory, Step, Storage
from nasbench_grow.contract.runtime import Runtime
from nasbench_grow.contract.schedule import Schedule
from nasbench_grow.contract.source import Source
from nasbench_grow.contract.stage import DivergedError, Restructuring, Stage
from nasbench_grow.contract.task import Batch, Recipe, Split, TrainSplit
from nasbench_grow.cost.macs import count_macs
from nasbench_grow.cost.meter import TrainingMeter
from nasbench_grow.structure.checking import check_returned
from nasbench_grow.structure.elastic import ElasticModel
from nasbench_grow.structure.space import Space
from nasbench_grow.structure.widths import output_channels

SEARCH_SHARE = 0.1
"""Share of the training samples that a search is judged on, and does not train on."""

Price = Callable[[Space, nn.Module], Callable[[Tensor], float]]
"""Makes, for a space and its dense model, the function that gives the seconds of a training step of structures."""


class Job:
    """One cell, as a method sees it.

    Args:
        budget: inference MACs of the network to return, as a share of the dense network's, in (0, 1].
        seed: of everything random.
        epochs: length of the run's schedule.
        granularity: widths are rounded to multiples of this (smaller ones as
            :func:`nasbench_grow.structure.selection.allowed_width` says); 1: no rounding.
        example: one input with a batch axis of 1, on the device of the run.
        recipe: how every method trains on this task.
        loss: ``loss(output, target)``, a scalar.
        build: gives a fresh dense backbone on the device of the run, with the same initial weights at each call.
        train: the training split.
        score: judges a network on a split; higher is better. None: nothing can be judged.
        source: the cell whose result this one begins with, if the method named one.
        runtime: how steps are run; None: as they come.
        meter: counts the MACs; None: a fresh one.
        storage: keeps the journal; None: nothing is kept.
        price: makes the cost in seconds; None: there is none.
        ambient: what else must go on where a run is resumed (an object with ``state_dict`` and ``load_state_dict``).
    """

    def __init__(
        self,
        *,
        budget: float,
        seed: int,
        epochs: int,
        granularity: int,
        example: Any,
        recipe: Recipe,
        loss: Callable[[Any, Tensor], Tensor],
        build: Callable[[], nn.Module],
        train: TrainSplit,
        score: Callable[[nn.Module, Split], float] | None = None,
        source: Source | None = None,
        runtime: Runtime | None = None,
        meter: TrainingMeter | None = None,
        storage: Storage | None = None,
        price: Price | None = None,
        ambient: Any = None,
    ) -> None:
        self.budget, self.seed, self.epochs, self.granularity = budget, seed, epochs, granularity
        self.example, self.recipe, self.loss, self.build = example, recipe, loss, build
        self.train, self.price = train, price
        self.meter = meter or TrainingMeter()
        self.runtime = runtime or Runtime()
        self.clock = Clock()
        self._journal = Journal(storage or Memory())
        self._score, self._source, self._ambient = score, source, ambient
        self._dense_macs: int | None = None
        self._accelerated: tuple[nn.Module, nn.Module] | None = None
        self._trainings: WeakKeyDictionary[ElasticModel, list[str]] = WeakKeyDictionary()  # names of their steps
        self._latest: ElasticModel | None = None
        self.sampled: nn.Module | None = None
        """The network of the last stage of training, search apart, also where the run was taken up again after it."""

    @property
    def steps_per_epoch(self) -> int:
        """Batches of the recipe's size in an epoch."""
        return self.train.steps_per_epoch(self.recipe.batch_size)

    @property
    def total_steps(self) -> int:
        """Steps of the run's schedule."""
        return self.epochs * self.steps_per_epoch

    @property
    def dense_macs(self) -> int:
        """Forward MACs of the dense backbone for one input."""
        if self._dense_macs is None:
            self._dense_macs = count_macs(self.build(), self.example)
        return self._dense_macs

    @property
    def dense_train_macs(self) -> int:
        """MACs that training the dense backbone by the whole recipe is billed."""
        return 3 * self.dense_macs * self.total_steps * min(self.recipe.batch_size, len(self.train))

    def trial_macs(self, macs: int, epochs: float) -> int:
        """MACs that a :meth:`trial` of a network is billed: so is a part of a training (:meth:`fit` with ``searching``)
        and one :meth:`score`, of as many epochs together.

        Args:
            macs: forward MACs of the network for one input.
            epochs: of the training.
        """
        rest, judged = self.search_splits
        size = self.recipe.batch_size
        return macs * (3 * round(epochs * rest.steps_per_epoch(size)) * min(size, len(rest)) + len(judged))

    @property
    def source(self) -> Source:
        """What the cell named by ``Method.source`` arrived at; what is taken of it is billed."""
        if self._source is None:
            raise UserError("this job has no source cell; name one in the method's `source`")
        return self._source

    def model(
        self, network: nn.Module | None = None, *, optimizer: Callable[[nn.Module], torch.optim.Optimizer] | None = None
    ) -> ElasticModel:
        """A model to train: a fresh dense backbone, or ``network``, with the recipe's optimizer.

        ``optimizer`` makes another one, for a method that consists in it. Its first group still learns at the recipe's
        rate times the ``rate`` of :meth:`fit`; the others keep their ratio to it.
        """
        self._latest = None  # one is enough to hold
        self._latest = ElasticModel(
            self.build() if network is None else network, self.example, optimizer or self.recipe.optimizer
        )
        return self._latest

    def check_returned(self, network: nn.Module, inputs: Any) -> None:
        """Raise UserError if what a method returns is a sub-network of its latest model by its shapes, and does not
        compute or cost what that sub-network does.

        Args:
            network: what the method returned.
            inputs: a batch of data.
        """
        model = self._latest
        if model is None or model.present is None:
            return
        shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
        if shapes != dict(model.space.sizes(model.present)):
            return
        check_returned(model.space, model.dense, model.present, network, inputs)
        said, counted = model.space.macs(model.present), count_macs(network, self.example)
        if said != counted:
            raise UserError(
                f"the {type(network).__name__} that was trained takes {counted} MACs where {said} were aimed at; give "
                "a model whose forward pass does the same operations whatever its widths"
            )

    def fit(
        self,
        model: ElasticModel,
        callback: Callback | None = None,
        *,
        epochs: float | None = None,
        span: tuple[float, float] | None = None,
        rate: float = 1.0,
        searching: bool = False,
    ) -> Generator[Stage, None, None]:
        """Trains a model: ``yield from job.fit(model)`` in a method's ``run``.

        Code that a method writes into a loop over the stages runs once an epoch; what it must remember from one epoch
        to the next belongs into the callback's state.

        Args:
            model: trained in place.
            callback: what is not plain about it; None: nothing.
            epochs: passes over the training samples, whole or not; None: what is left of the run's schedule, or with a
                ``span`` as many as the job has.
            span: the part of the recipe's schedule to go through, e.g. (0, 1): all of it, warm-up included. None: go on
                in the run's own, which is ``epochs`` of the job long. Trainings of one model by spans go on from each
                other's samples.
            rate: factor on the recipe's learning rate.
            searching: train on what the search split leaves, by a schedule of the training's own (``span``, or all of
                the recipe's), and count it as search.

        Raises:
            DivergedError: the loss is no longer a finite number.
            UserError: the training samples are fewer than they said, or more epochs are asked for than are left.
        """
        callback = callback or Callback()
        if epochs is None and (span is not None or searching):
            epochs = self.epochs
        if not searching:
            schedule = self._schedule(model, self.train, epochs, span, rate)
            yield from self._fit(model, callback, schedule, self.train, "training")
            return
        rest, _ = self.search_splits
        with self.meter.spending_on("search"):
            schedule = self._schedule(model, rest, epochs, span or (0.0, 1.0), rate)
            yield from self._fit(model, callback, schedule, rest, "search")

    def trial(
        self,
        model: ElasticModel,
        callback: Callback | None = None,
        *,
        epochs: float,
        span: tuple[float, float] | None = None,
        rate: float = 1.0,
    ) -> Generator[Stage, None, float]:
        """Trains a model only to judge it; returns its :meth:`score`.

        The samples that it is judged on are left out of the training. Everything counts as search. Afterwards ``model``
        is as it was before, and only the callback has changed. To go on with what was tried, use :meth:`fit` with
        ``searching``, which trains on the same samples again, or that and :meth:`score` in place of this.

        Args:
            model, callback, epochs, span, rate: as in :meth:`fit`; without a ``span`` the training goes through the
                whole of the recipe's schedule.
        """
        callback = callback or Callback()
        with self._journal.step("trial") as step:
            if step.done:
                assert step.state is not None
                callback.load_state_dict(step.state["callback"])
                return self._given(step)
            before = copy.deepcopy(model.state_dict())
            try:
                yield from self.fit(model, callback, epochs=epochs, span=span, rate=rate, searching=True)
                return self._result(step, self.score(model.network), callback=callback.state_dict())
            finally:
                model.load_state_dict(before)

    def rounds(
        self,
        model: ElasticModel,
        once: Callable[[Any], Generator[Stage, None, Any]],
        carried: Any,
        callback: Callback | None = None,
    ) -> Generator[Stage, None, None]:
        """Repeats a part of a search that trains one model on: of all rounds the run keeps only where the last one
        ended, and is taken up in the round after it.

        Args:
            model: what the rounds train and change.
            once: a round, with trainings (``searching``), trials and scores of its own. It takes what the one before
                handed on, and gives what it hands on itself (numbers, strings, tensors, lists, dicts); None: it was
                the last.
            carried: what the first round is handed.
            callback: what else changes from round to round.
        """
        callback = callback or Callback()
        with self._journal.step("series of rounds") as step:
            if step.state is not None:
                model.load_state_dict(step.state["model"])
                callback.load_state_dict(step.state["callback"])
                self._go_on(step)
                carried, self._journal.next = step.state["carried"], step.state["next"]
            while carried is not None:
                carried = yield from once(carried)
                state = {"model": model.state_dict(), "callback": callback.state_dict(), **self._surroundings()}
                step.keep({**state, "carried": carried, "next": self._journal.next}, done=carried is None)

    def let_go(self, model: ElasticModel) -> None:
        """Says that a method is done with a model: what its trainings arrived at is not kept any longer.

        A run that is taken up passes over them and leaves the model as it was made. So only its scores may have been
        used, nothing that the method worked out of its weights by itself.
        """
        for name in self._trainings.pop(model, []):
            self._journal.thin(name, ("model", "callback"))

    def score(self, network: nn.Module) -> float:
        """How good a network is on the search split: part of the training samples, neither validation nor test.

        Higher is better, whatever the task's metric. Counts as search.
        """
        with self._journal.step("score") as step:
            if step.done:
                return self._given(step)
            if self._score is None:
                raise UserError("this job cannot judge networks: it was made without a score")
            _, judged = self.search_splits
            with self.meter.spending_on("search"), self.runtime.autocast():
                found = self._score(network, judged)
                self.meter.add(count_macs(network, self.example) * len(judged))
            return self._result(step, found)

    def calibrate(self, network: nn.Module, samples: int, *, backward: bool = False) -> Iterator[Batch]:
        """Training samples in a fixed order, not augmented, to gather statistics of ``network`` with.

        Args:
            network: what will be run on them, once a sample.
            samples: how many to give, at most all.
            backward: whether gradients are taken, too, which costs three times as much.
        """
        macs = (3 if backward else 1) * count_macs(network, self.example)
        left = min(samples, len(self.train))
        for inputs, targets in self.train.batches(self.recipe.batch_size):
            if left <= 0:
                return
            inputs, targets = inputs[:left], targets[:left]
            with self.meter.spending_on("calibration"):
                self.meter.add(macs * len(inputs))  # of several processes each sees all of them: one count
            yield inputs, targets
            left -= len(inputs)

    def search_batches(self, first: int = 0) -> Iterator[Batch]:
        """Batches of the samples that a search is judged on, over and over, for what it learns from them itself, as
        DARTS does its architecture. Whoever runs a network on them counts that in ``job.meter``.

        Args:
            first: number of the batch to begin with, for a run that is taken up again.
        """
        _, judged = self.search_splits
        rounds = (judged.batches(self.recipe.batch_size) for _ in count())
        return islice(chain.from_iterable(rounds), first, None)

    @cached_property
    def search_splits(self) -> tuple[TrainSplit, Split]:
        """What a search trains on, and what it is judged on: their lengths say what a search will cost."""
        return self.train.hold_out(SEARCH_SHARE, self.recipe.batch_size)

    def _schedule(
        self,
        model: ElasticModel,
        train: TrainSplit,
        epochs: float | None,
        span: tuple[float, float] | None,
        rate: float,
    ) -> Schedule:
        """What a training goes through: what is left of the run's schedule, part of that, or a schedule of its own.

        Raises:
            UserError: more epochs are asked for than are left of the run's.
        """
        per_epoch = train.steps_per_epoch(self.recipe.batch_size)
        steps = None if epochs is None else round(epochs * per_epoch)
        if span is not None:
            assert steps is not None
            return Schedule(self.recipe, steps, steps, per_epoch, span, rate, model.epochs)
        left = self.total_steps - self.clock.end
        if steps is not None and steps > left + 1:  # one too many may come of rounding
            raise UserError(
                f"{epochs:g} epochs cannot be trained, because {left / per_epoch:g} of the run's {self.epochs} are "
                "left; train fewer, or give a span of the schedule"
            )
        last = self.total_steps if steps is None else min(self.total_steps, self.clock.end + steps)
        return Schedule(self.recipe, last, self.total_steps, per_epoch, rate=rate, clock=self.clock)

    def _fit(
        self, model: ElasticModel, callback: Callback, schedule: Schedule, train: TrainSplit, purpose: str
    ) -> Generator[Stage, None, None]:
        """One training, taken up where the journal says that it stands."""
        clock = schedule.clock
        with self._journal.step("fit") as step:
            self._trainings.setdefault(model, []).append(step.name)
            if step.state is not None:
                self._take_up(step, model, callback, clock)
                if purpose == "training":
                    self.sampled = callback.evaluated(model)
            while clock.end < schedule.last and not step.done:
                end = schedule.end_of_epoch()
                loss, restructurings = self._epoch(model, callback, schedule, end, train)
                if not math.isfinite(loss):
                    epoch = math.ceil(end / schedule.per_epoch)
                    raise DivergedError(f"the training loss became {loss} in epoch {epoch}")
                callback.after_epoch(model)
                network = callback.evaluated(model)
                if purpose == "training":
                    self.sampled = network
                rate, log = schedule.learning_rate(end - 1), callback.log(model)
                yield Stage(network, loss, rate, log, purpose, restructurings)
                done = end == schedule.last
                if done and clock is not self.clock:
                    model.epochs = schedule.seen + math.ceil(end / schedule.per_epoch)
                self._keep(step, model, callback, clock, done=done)

    def _epoch(
        self, model: ElasticModel, callback: Callback, schedule: Schedule, end: int, train: TrainSplit
    ) -> tuple[float, list[Restructuring]]:
        """Trains up to step ``end``, which is within one epoch; returns the mean loss over its batches, and how the
        structure changed meanwhile."""
        clock, size = schedule.clock, self.recipe.batch_size
        number, skipped = divmod(clock.end, schedule.per_epoch)
        steps = end - clock.end
        drawn = islice(train.epoch(schedule.seen + number + 1, size, self.seed), skipped, skipped + steps)
        batches = self.runtime.batches(drawn, clock, model, steps, steps * min(size, len(train)))
        model.network.train()
        losses, restructurings = [], []
        while clock.end < end:
            before = model.network
            callback.before_step(model, clock.end, schedule.total)
            if model.network is not before:
                at = clock.end / schedule.per_epoch - number
                restructurings.append(Restructuring(at, model.macs, output_channels(model.network)))
            batch = next(batches, None)
            if batch is None:
                raise UserError(
                    f"the training data end after {clock.end - number * schedule.per_epoch} of the "
                    f"{schedule.per_epoch} batches that epoch {number + 1} should have; give data of the length that "
                    "they say they have"
                )
            losses.append(self._step(model, callback, *batch, clock.scale * schedule.learning_rate(clock.start)))
        return self.runtime.mean(float(torch.stack(losses).mean())), restructurings

    def _step(self, model: ElasticModel, callback: Callback, inputs: Any, targets: Any, rate: float) -> Tensor:
        """One optimizer step; returns the loss, which stays on the device: reading it would stall a GPU."""
        network = self._fast(model)
        self.recipe.set_rate(model.optimizer, rate)
        model.optimizer.zero_grad()
        with self.runtime.autocast():
            loss = callback.loss(model, network, inputs, targets, self.loss)
            penalty = callback.penalty(model)
        (loss if penalty is None else loss + penalty).backward()
        callback.after_backward(model)
        model.optimizer.step()
        model.unchanged += 1
        self.meter.step(callback.step_macs(model), batch_length(inputs))
        callback.after_step(model)
        return loss.detach()

    def _fast(self, model: ElasticModel) -> nn.Module:
        """What computes the model's network: the set-up's faster form once its structure has stood for an epoch."""
        if model.present is not None and model.unchanged < self.steps_per_epoch:
            return model.network
        if self._accelerated is None or self._accelerated[0] is not model.network:
            self._accelerated = model.network, self.runtime.accelerate(model.network)
        return self._accelerated[1]

    def _keep(self, step: Step, model: ElasticModel, callback: Callback, clock: Clock, *, done: bool) -> None:
        step.keep(
            {
                "model": model.state_dict(),
                "callback": callback.state_dict(),
                "step": clock.end,
                **self._surroundings(),
            },
            done=done,
        )

    def _take_up(self, step: Step, model: ElasticModel, callback: Callback, clock: Clock) -> None:
        assert step.state is not None
        if not step.done:
            step.forget_inside()
        if "model" in step.state:  # else it was let go
            model.load_state_dict(step.state["model"])
            callback.load_state_dict(step.state["callback"])
        self._go_on(step)
        clock.move_to(step.state["step"])

    def _result(self, step: Step, score: float, **more: Any) -> float:
        """Keeps the score that ends a step."""
        step.keep({"score": score, **more, **self._surroundings()}, done=True)
        return score

    def _given(self, step: Step) -> float:
        """The score of a step that was taken before."""
        assert step.state is not None
        self._go_on(step)
        return float(step.state["score"])

    def _surroundings(self) -> dict[str, Any]:
        """All that a run depends on beside its models."""
        return {
            "meter": self.meter.state_dict(),
            "clock": self.clock.end,
            "random": randomness.states(device_of(self.example)),
            "ambient": {} if self._ambient is None else self._ambient.state_dict(),
        }

    def _go_on(self, step: Step) -> None:
        """Everything around is as it was when the step was kept."""
        assert step.state is not None
        self.meter.load_state_dict(step.state["meter"])
        self.clock.move_to(step.state["clock"])
        randomness.put_back(step.state["random"], device_of(self.example))
        if self._ambient is not None:
            self._ambient.load_state_dict(step.state["ambient"])
