"""Methods that use all that the contract allows, killed at every moment, end with the bits of the run that was not.

A moment is before and after everything that a run writes of itself, not epochs alone.
"""

import random
from contextlib import suppress

import numpy as np
import pytest
import torch
from cells import METHODS, small_cell, use_methods
from killing import Killed, outcome
from torch import nn

from nasbench_grow import extract, recalibrate, select, uniform_keys
from nasbench_grow.base.errors import UserError
from nasbench_grow.contract import Callback, DivergedError, Method
from nasbench_grow.harness import registry
from nasbench_grow.harness.reproduce import run_one
from nasbench_grow.harness.store import Checkpoint, Store


def of_size(model, job, share):
    """Structures of the same share of every width."""
    return select(model.space, uniform_keys(model.space), share * job.dense_macs, 1)


class Nasty(Method):
    summary, family = "nasty", "search"


class ScoresInsideTraining(Nasty):
    """Judges the network after every epoch of its training, and keeps the scores in the callback."""

    name = "scores-inside"

    class Scores(Callback):
        def __init__(self):
            self.found = []

        def log(self, model):
            return {"scores": sum(self.found)}

        def state_dict(self):
            return {"found": self.found}

        def load_state_dict(self, state):
            self.found = list(state["found"])

    def run(self, job):
        model, scores = job.model(), self.Scores()
        for stage in job.fit(model, scores):
            yield stage
            scores.found.append(job.score(stage.network) + random.random())
        model.resize(of_size(model, job, 0.3 + 0.1 * sum(scores.found) / len(scores.found)))
        return model.network


class TwoModels(Nasty):
    """Trains two models in turn, one of them resized in between, with random numbers of every kind."""

    name = "two-models"

    def run(self, job):
        one, two = job.model(), job.model()
        for turn in range(2):
            yield from job.fit(one, epochs=0.5)
            share = 0.4 + 0.2 * random.random() + 0.2 * np.random.rand() + 0.1 * float(torch.rand(()))
            one.resize(of_size(one, job, share), newborn="zero")
            yield from job.fit(two, epochs=0.5, span=(turn / 2, (turn + 1) / 2))
            yield from job.fit(two, epochs=0)
            yield from job.fit(two, epochs=0.01)
        better = one if job.score(one.network) > job.score(two.network) else two
        yield from job.fit(better)
        return better.network


class TrainsOnAfterTrial(Nasty):
    """Trains a model further that it has tried before."""

    name = "after-trial"

    def run(self, job):
        model = job.model()
        yield from job.fit(model, epochs=1)
        model.resize(of_size(model, job, 0.5))
        first = yield from job.trial(model, epochs=1)
        second = yield from job.trial(model, Resizes(job), epochs=2)
        yield from job.fit(model, rate=1 + first + second)
        return model.network


class Rounds(Nasty):
    """Narrows a network round after round, to what its weights, a score and random numbers of its own say."""

    name = "rounds"

    class Draws(Callback):
        def __init__(self):
            self.generator = torch.Generator().manual_seed(0)

        def state_dict(self):
            return {"generator": self.generator.get_state()}

        def load_state_dict(self, state):
            self.generator.set_state(state["generator"])

    def run(self, job):
        model, draws = job.model(), self.Draws()

        def narrow(before):
            tried = yield from job.trial(model, Resizes(job), epochs=1)
            share = 0.9 - 0.1 * len(before) * float(torch.rand((), generator=draws.generator)) - 0.01 * tried
            model.resize(of_size(model, job, share * (1 - model.network.fc.weight.std().item())))
            yield from job.fit(model, epochs=0.6, span=(0, 1), searching=True)
            scores = [*before, job.score(model.network) + random.random()]
            return None if len(scores) == 3 else scores

        yield from job.fit(model, epochs=1)
        yield from job.rounds(model, narrow, [], draws)
        yield from job.fit(model)
        return model.network


class LetsGo(Nasty):
    """Is done with the worse of two models in the middle of its run, and with the other one later."""

    name = "lets-go"

    def run(self, job):
        present = job.model().space.full()
        ranked = []
        for _ in range(3):
            model = job.model(extract(job.model().space, job.build(), present))
            yield from job.fit(model, epochs=1, span=(0, 0.5), searching=True)
            ranked = sorted([*ranked, (job.score(model.network) + random.random(), model)], key=lambda each: each[0])
            if len(ranked) == 2:
                job.let_go(ranked.pop(0)[1])
            present = of_size(job.model(), job, 0.5 + 0.2 * random.random())
        best = ranked[0][1]
        yield from job.fit(best, epochs=1, span=(0.5, 1), searching=True)
        share = 0.4 + 0.1 * job.score(best.network)
        job.let_go(best)
        last = job.model()
        last.resize(of_size(last, job, share))
        yield from job.fit(last)
        return last.network


class EndsWithTrial(Nasty):
    """Tries something after its last training."""

    name = "ends-with-trial"

    def run(self, job):
        model = job.model()
        yield from job.fit(model)
        other = job.model()
        yield from job.trial(other, epochs=1)
        return model.network


class Resizes(Callback):
    """Changes the structure in the middle of an epoch, and after it."""

    def __init__(self, job):
        self.job, self.steps, self.draws = job, 0, torch.Generator().manual_seed(job.seed)

    def share(self):
        return 0.4 + 0.5 * float(torch.rand((), generator=self.draws))

    def newborn(self, model, before, after):
        for parameter in model.dense.parameters():
            parameter.detach().add_(0.01 * torch.randn(parameter.shape))

    def before_step(self, model, step, steps):
        if step % 2:
            model.resize(of_size(model, self.job, self.share()), newborn=self.newborn)

    def after_backward(self, model):
        self.steps += 1

    def after_epoch(self, model):
        model.resize(of_size(model, self.job, self.share()))

    def state_dict(self):
        return {"steps": self.steps, "draws": self.draws.get_state()}

    def load_state_dict(self, state):
        self.steps = state["steps"]
        self.draws.set_state(state["draws"])


class ResizesAlways(Nasty):
    name = "resizes"

    def run(self, job):
        model = job.model()
        yield from job.fit(model, Resizes(job), epochs=1.5)
        yield from job.fit(model, Resizes(job))
        return model.network


class LazyTeacher(Nasty):
    """Fetches its source from inside a training, and again between trainings."""

    name, source, takes = "lazy-teacher", "dense", "network"

    class Asks(Callback):
        def __init__(self, job):
            self.job = job

        def loss(self, model, network, inputs, targets, loss):
            with torch.no_grad():
                wanted = self.job.source.network()(inputs)
            return nn.functional.mse_loss(self.forward(model, network, inputs), wanted)

    def run(self, job):
        model = job.model()
        yield from job.fit(model, self.Asks(job), epochs=2)
        model = job.model(job.source.network())
        model.resize(of_size(model, job, 0.5))
        yield from job.fit(model, self.Asks(job))
        return model.network


class Calibrates(Nasty):
    """Random numbers in passes between trainings."""

    name = "calibrates"

    def run(self, job):
        model = job.model()
        yield from job.fit(model, epochs=1)
        with torch.no_grad():
            for inputs, _ in job.calibrate(model.network, 40):
                model.network(nn.functional.dropout(inputs))
        candidate = extract(model.space, model.dense, of_size(model, job, 0.5))
        recalibrate(candidate, (inputs for inputs, _ in job.calibrate(candidate, 40)))
        job.score(candidate)
        model = job.model(candidate)
        yield from job.fit(model)
        return model.network


class Freezes(Nasty):
    """Trains only the classifier of a smaller network, by an optimizer of its own."""

    name = "freezes"

    def run(self, job):
        model = job.model(optimizer=lambda network: torch.optim.Adam(network.parameters()))
        yield from job.fit(model, epochs=1, rate=0.01)
        model.resize(of_size(model, job, 0.5))
        for name, parameter in model.network.named_parameters():
            parameter.requires_grad_("conv" not in name)
        yield from job.fit(model, rate=0.01)
        return model.network


class OutlivesDivergence(Nasty):
    """Goes on where one of its trials does not."""

    name = "outlives-divergence"

    class Explodes(Callback):
        def before_step(self, model, step, steps):
            self.late = step > 0

        def loss(self, model, network, inputs, targets, loss):
            found = super().loss(model, network, inputs, targets, loss)
            return found * torch.nan if self.late else found

    def run(self, job):
        model = job.model()
        first = yield from job.trial(model, epochs=1)
        with suppress(DivergedError):
            yield from job.trial(model, self.Explodes(), epochs=2)
        yield from job.fit(model, rate=1 + first)
        return model.network


class StopsEarly(Nasty):
    """Leaves a training before its end."""

    name = "stops-early"

    def run(self, job):
        model = job.model()
        for stage in job.fit(model, searching=True):
            yield stage
            if stage.loss < 100:
                break
        job.score(model.network)
        yield from job.fit(model)
        return model.network


class Bilevel(Nasty):
    """Learns the scale of its output on samples that its weights do not learn from, as DARTS does."""

    name = "bilevel"

    class Scale(Callback):
        def __init__(self, job):
            self.job, self.steps = job, 0
            self.scale = torch.ones((), requires_grad=True)
            self.optimizer = torch.optim.SGD([self.scale], lr=0.1, momentum=0.9)
            self.batches = job.search_batches()

        def forward(self, model, network, inputs):
            return self.scale * network(inputs)

        def before_step(self, model, step, steps):
            inputs, targets = next(self.batches)
            self.optimizer.zero_grad()
            self.job.loss(self.forward(model, model.network, inputs), targets).backward()
            self.optimizer.step()
            self.job.meter.step(model.macs, len(inputs))
            self.steps += 1

        def after_step(self, model):
            with torch.no_grad():
                model.network.fc.weight.clamp_(-0.1, 0.1)

        def state_dict(self):
            return {"steps": self.steps, "scale": self.scale.detach(), "optimizer": self.optimizer.state_dict()}

        def load_state_dict(self, state):
            self.steps = state["steps"]
            self.batches = self.job.search_batches(first=self.steps)
            self.optimizer.load_state_dict(state["optimizer"])
            with torch.no_grad():
                self.scale.copy_(state["scale"])

    def run(self, job):
        model = job.model()
        scale = self.Scale(job)
        yield from job.fit(model, scale, epochs=2, searching=True)
        model.resize(of_size(model, job, min(1, 0.5 * abs(float(scale.scale)))))
        yield from job.fit(model)
        return model.network


NASTY = [cls for cls in globals().values() if isinstance(cls, type) and issubclass(cls, Nasty) and cls is not Nasty]


@pytest.fixture(autouse=True)
def methods(monkeypatch):
    known = {**METHODS, **{cls.name: cls for cls in NASTY}}
    monkeypatch.setattr(registry, "methods", lambda: known)
    registry.method.cache_clear()
    yield
    registry.method.cache_clear()


class Deaths:
    """Ends a run before and after every state that it writes, and after it forgets any, each time once."""

    def __init__(self, monkeypatch):
        self.died, self.written = set(), None
        write, forget = Checkpoint.write, Checkpoint.forget

        def deadly_write(checkpoint, name, state):
            self.written = name, state.get("step"), state["done"]
            self.here("before")
            write(checkpoint, name, state)
            self.here("after")

        def deadly_forget(checkpoint, prefix):
            forget(checkpoint, prefix)
            self.here(f"forgot {prefix}")

        monkeypatch.setattr(Checkpoint, "write", deadly_write)
        monkeypatch.setattr(Checkpoint, "forget", deadly_forget)

    def here(self, moment):
        if (self.written, moment) not in self.died:
            self.died.add((self.written, moment))
            raise Killed


@pytest.mark.parametrize("cls", NASTY, ids=lambda cls: cls.name)
def test_killed_at_every_moment_it_goes_on_to_the_same_bits(tmp_path, monkeypatch, cls):
    cell = small_cell(method=cls.name, budget=0.5, epochs=3, backbone="tiny_residual")
    whole = run_one(cell, Store(tmp_path / "whole"))
    assert whole["status"] == "ok", whole["error"]
    pieces = Store(tmp_path / "pieces")
    if cell.source() is not None:
        run_one(cell.source(), pieces)
    deaths = Deaths(monkeypatch)
    record = None
    while record is None:
        with suppress(Killed):
            record = run_one(cell, pieces)
    assert len(deaths.died) >= 2 * 3, "before and after each of three epochs at least"
    assert outcome(record) == outcome(whole)


def test_two_trainings_stage_by_stage_are_refused(tmp_path, monkeypatch):
    class Zipped(Nasty):
        name = "zipped"

        def run(self, job):
            one, two = job.model(), job.model()
            for stages in zip(job.fit(one), job.fit(two, span=(0, 1)), strict=True):
                yield from stages
            return one.network

    use_methods(monkeypatch, Zipped)
    with pytest.raises(UserError, match="take turns stage by stage"):
        run_one(small_cell(method="zipped", budget=0.5), Store(tmp_path))
