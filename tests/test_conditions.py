"""Models that run otherwise in training, by chance, in a precision of their own or in loops; what discovery leaves."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasbench_grow import UserError, count_macs, discover, extract, grow
from nasbench_grow.base.randomness import seed_all
from nasbench_grow.structure import dependencies, flow

EXAMPLE = torch.zeros(1, 4)
PAIRS = [(torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 3)] * 4


class Layers(nn.Module):
    """``run(model, inputs)`` is its forward pass through three linear layers, an extra one, and a GRU."""

    def __init__(self, run: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.run = run
        self.first, self.middle, self.last, self.extra = (
            nn.Linear(*size) for size in ((4, 16), (16, 16), (16, 3), (16, 3))
        )

    def forward(self, inputs: Tensor) -> Any:
        return self.run(self, inputs)


def grown(model: nn.Module, **changes: Any) -> Any:
    return grow(model, EXAMPLE, PAIRS, **{"epochs": 2, "progress": False, "granularity": 1, **changes})


def sizes(model: nn.Module, example: Any = EXAMPLE) -> dict[str, int]:
    return {group.name: group.size for group in discover(model, example).groups}


# --- training ---


def auxiliary(model: Any, inputs: Tensor) -> Any:
    hidden = model.first(inputs).relu()
    return model.last(hidden) + 0.3 * model.extra(hidden) if model.training else model.last(hidden)


def auxiliary_output(model: Any, inputs: Tensor) -> Any:
    hidden = model.first(inputs).relu()
    return {"logits": model.last(hidden), "extra": model.extra(hidden)} if model.training else model.last(hidden)


def both(output: Any, target: Tensor) -> Tensor:
    outputs = output.values() if isinstance(output, dict) else [output]
    return sum(F.cross_entropy(each, target) for each in outputs)  # type: ignore[return-value]


@pytest.mark.parametrize("run", [auxiliary, auxiliary_output])
def test_an_auxiliary_head_is_cut_along(run: Any) -> None:
    space = discover(Layers(run), EXAMPLE)
    assert ("extra.weight", 1) in space.owners
    result = grown(Layers(run), loss=both)
    assert result.network.extra.in_features == result.network.last.in_features < 16


def test_what_training_alone_mixes_is_fixed() -> None:
    def run(model: Any, inputs: Tensor) -> Tensor:
        hidden = model.first(inputs)
        return model.last((hidden - hidden.mean(1, keepdim=True) if model.training else hidden).relu())

    assert "mixes" in discover(Layers(run), EXAMPLE).fixed["first"]


def test_layers_behind_a_training_mode_that_cannot_be_examined_are_refused() -> None:
    def run(model: Any, inputs: Tensor) -> Tensor:
        if model.training:
            raise ValueError("give targets")
        return model.last(model.first(inputs).relu())

    with pytest.raises(UserError, match=r"middle, extra may run in training, .*give targets"):
        discover(Layers(run), EXAMPLE)


# --- chance ---


def choosing(chance: Callable[[], float]) -> Callable[[Any, Tensor], Tensor]:
    def run(model: Any, inputs: Tensor) -> Tensor:
        hidden = model.first(inputs).relu()
        return model.last(hidden + model.middle(hidden) if chance() < 0.4 else hidden)

    return run


def noisy(change: Callable[[Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    return lambda model, inputs: model.last(change(model.first(inputs).relu()))


RANDOM = {
    "dropout by function": noisy(lambda hidden: F.dropout(hidden, 0.3)),
    "noise": noisy(lambda hidden: hidden + torch.randn_like(hidden)),
    "reparametrised": noisy(lambda hidden: torch.normal(hidden, hidden.exp())),
    "dropped samples": noisy(lambda hidden: hidden * torch.bernoulli(torch.full((len(hidden), 1), 0.5))),
    "order": noisy(lambda hidden: hidden[torch.randperm(len(hidden))]),
    "depth by Python": choosing(random.random),
    "depth by NumPy": choosing(np.random.rand),
    "depth by torch": choosing(lambda: torch.rand(()).item()),
}


@pytest.mark.parametrize("kind", RANDOM)
def test_a_random_model_is_said_to_be_random_and_grows(kind: str) -> None:
    seed_all(0)
    with pytest.warns(UserWarning, match="random even in evaluation mode"):
        result = grown(Layers(RANDOM[kind]), epochs=4)
    assert result.network.first.out_features < 16
    for _ in range(20):  # whichever way it goes
        result.network(PAIRS[0][0])


def test_stochastic_depth_in_training_is_no_news() -> None:
    def run(model: Any, inputs: Tensor) -> Tensor:
        hidden = model.first(inputs).relu()
        return model.last(hidden if model.training and random.random() < 0.5 else hidden + model.middle(hidden))

    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*random", UserWarning)
        assert sizes(Layers(run)) == {"first": 16}
        grown(Layers(run), epochs=4)


# --- precision ---


class Recurrent(nn.Module):
    """A GRU that casts its inputs, or begins with a state of its own, as ``kind`` says."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.first = kind, nn.Linear(4, 16)
        self.recurrent, self.last = nn.GRU(16, 16, batch_first=True), nn.Linear(16, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        if self.kind == "float":
            inputs = inputs.float()
        elif self.kind == "to":
            inputs = inputs.to(torch.float32)
        elif self.kind == "type":
            inputs = inputs.type(torch.FloatTensor)
        state = torch.zeros(1, len(inputs), self.recurrent.hidden_size) if self.kind == "state" else None
        if self.kind == "state of a type":
            state = torch.zeros(1, len(inputs), self.recurrent.hidden_size, dtype=torch.float32)
        return self.last(self.recurrent(self.first(inputs).relu(), state)[0][:, -1])


@pytest.mark.parametrize("kind", ["plain", "float", "to", "type", "state", "state of a type"])
def test_models_with_a_precision_of_their_own(kind: str) -> None:
    assert sizes(Recurrent(kind), torch.zeros(1, 5, 4)) == {"first": 16, "recurrent": 16}


@pytest.mark.parametrize("kind", ["float", "type"])  # examined in double, and in single precision
def test_a_wrong_coupling_shows_in_either_precision(kind: str) -> None:
    def run(model: Any, inputs: Tensor) -> Tensor:
        hidden = model.first(inputs.float() if kind == "float" else inputs.type(torch.FloatTensor))
        return model.last((hidden - hidden.mean(1, keepdim=True)).relu())

    assert "mixes" in discover(Layers(run), EXAMPLE).fixed["first"]


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.double])
def test_models_of_another_precision(precision: torch.dtype) -> None:
    model = Layers(noisy(lambda hidden: hidden)).to(precision)
    pairs = [(inputs.to(precision), targets) for inputs, targets in PAIRS]
    result = grow(model, EXAMPLE.to(precision), pairs, epochs=2, progress=False, granularity=1)
    assert {parameter.dtype for parameter in result.network.parameters()} == {precision}
    assert torch.get_default_dtype() == torch.float


# --- what is left as it was ---


@pytest.mark.parametrize("act", [discover, count_macs])
@pytest.mark.parametrize("kind", [*RANDOM, "plain"])
def test_model_and_generators_are_left_as_they_were(act: Any, kind: str) -> None:
    model = Layers(RANDOM.get(kind, noisy(lambda hidden: hidden)))
    model.add_module("norm", nn.BatchNorm1d(3).eval())
    model.train().norm.eval()
    model.first.weight.requires_grad_(False)
    model(PAIRS[0][0]).sum().backward()
    hook = model.middle.register_forward_hook(lambda *_: None)

    def state() -> Iterator[Any]:
        yield from (tensor.clone() for tensor in model.state_dict().values())
        yield [module.training for module in model.modules()]
        yield [(parameter.requires_grad, parameter.grad is None) for parameter in model.parameters()]
        yield from (parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None)
        yield list(model.middle._forward_hooks) == [hook.id]
        yield random.getstate()
        yield torch.get_rng_state()
        yield torch.from_numpy(np.random.get_state()[1].astype(np.int64))

    before = list(state())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        act(model, EXAMPLE)
    for one, other in zip(before, state(), strict=True):
        assert torch.equal(one, other) if isinstance(one, Tensor) else one == other


def test_a_wrapped_model_is_grown_inside_out_and_a_wrapped_part_is_one_line() -> None:
    plain = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
    assert type(grown(nn.DataParallel(plain)).network) is nn.Sequential
    assert count_macs(nn.DataParallel(plain), EXAMPLE) == count_macs(plain, EXAMPLE)
    with pytest.raises(UserError, match=r"the model is wrapped in DataParallel; give what is inside \(.module\)"):
        discover(nn.DataParallel(plain), EXAMPLE)
    with pytest.raises(UserError, match="0 is wrapped in DataParallel"):
        grown(nn.Sequential(nn.DataParallel(nn.Linear(4, 16)), nn.Linear(16, 3)))


# --- discovery ends ---


class Loop(nn.Module):
    """A cell over so many steps; by ``joined``, one that takes what it made before beside itself."""

    def __init__(self, cell: Callable[[int, int], nn.Module], steps: int) -> None:
        super().__init__()
        self.steps, self.first, self.cell, self.last = steps, nn.Linear(4, 8), cell(8, 8), nn.Linear(8, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        state: Any = None
        for _ in range(self.steps):
            state = self.cell(self.first(inputs), state)
        return self.last(state[0] if isinstance(state, tuple) else state)


class Rejoining(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.both = nn.Linear(inputs + outputs, outputs)

    def forward(self, inputs: Tensor, state: Tensor | None) -> Tensor:
        state = torch.zeros_like(inputs) if state is None else state
        return self.both(torch.cat([inputs, state.roll(1, -1)], 1)).tanh()


@pytest.mark.parametrize("cell", [nn.RNNCell, nn.GRUCell, nn.LSTMCell, Rejoining])
@pytest.mark.parametrize("steps", [2, 7])
def test_a_cell_over_several_steps_is_discovered(cell: Any, steps: int) -> None:
    model = Loop(cell, steps).double()
    space = discover(model, EXAMPLE.double())
    assert space.groups or space.fixed["first"]
    extract(space, model, space.seed())(EXAMPLE.double())  # what was found can be lived with


def test_a_residual_loop_grows() -> None:
    def run(model: Any, inputs: Tensor) -> Tensor:
        hidden = model.first(inputs)
        for _ in range(30):
            hidden = hidden + model.middle(hidden).tanh()
        return model.last(hidden)

    assert sizes(Layers(run)) == {"first": 16}


def test_limits_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def joins(model: Any, inputs: Tensor) -> Tensor:
        hidden = model.first(inputs).relu()
        return model.last(torch.stack([hidden] * 4, 1).sum(1))

    monkeypatch.setattr(dependencies, "MOST_JOINED", 3)
    assert sizes(Layers(joins)) == {"first": 16}  # the operations can still be followed
    for module in (dependencies, flow):
        monkeypatch.setattr(module, "MOST_OPERATIONS", 3)
    with pytest.raises(UserError, match=r"more than 3 .*give a shorter one"):
        discover(Layers(joins), EXAMPLE)
    monkeypatch.setattr(dependencies, "MOST_OPERATIONS", 20_000)
    monkeypatch.setattr(dependencies, "MOST_JOINED", 300)
    monkeypatch.setattr(dependencies, "MOST_ENTRIES", 10)
    assert "more others than can be followed" in discover(Layers(joins), EXAMPLE).fixed["first"]
