"""Optimizers, schedulers and other arguments of one's own: carried right, or refused in one line before training."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import lr_scheduler as schedulers

import nasbench_grow
from nasbench_grow import ElasticModel, UserError, count_macs, discover, grow
from nasbench_grow.growing.api import Grown

EXAMPLE = torch.zeros(1, 4)
PAIRS = [(torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 3)] * 4


def network(width: int = 16) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 3))


def grown(model: nn.Module | None = None, **changes: Any) -> Grown:
    given = {"epochs": 3, "progress": False, "granularity": 1, **changes}
    return grow(network() if model is None else model, EXAMPLE, PAIRS, **given)


def refused(message: str, act: Callable[[], Any]) -> None:
    with pytest.raises(UserError, match=message) as caught:
        act()
    assert "\n" not in str(caught.value)


# --- optimizers ---


def of(name: str) -> Callable[[nn.Module], torch.optim.Optimizer]:
    return lambda net: getattr(torch.optim, name)(net.parameters(), lr=0.01)


PLAIN = ("Adafactor", "Adagrad", "Adam", "ASGD", "NAdam", "RAdam", "Adamax", "RMSprop", "Adadelta", "Rprop")
OPTIMIZERS = {name: of(name) for name in PLAIN} | {
    "fused": lambda net: torch.optim.Adam(net.parameters(), fused=True),
    "foreach": lambda net: torch.optim.AdamW(net.parameters(), foreach=True, amsgrad=True),
    "a part": lambda net: torch.optim.SGD(net[0].parameters(), lr=0.1, momentum=0.9),
    "a part, with steps counted": lambda net: torch.optim.Adam(net[0].parameters()),
}


def step(model: ElasticModel) -> None:
    loss = F.cross_entropy(model.network.train()(PAIRS[0][0]), PAIRS[0][1])
    model.optimizer.zero_grad()
    loss.backward()
    model.optimizer.step()


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_state_of_an_optimizer_follows_the_network(kind: str) -> None:
    dense = network()
    model = ElasticModel(dense, EXAMPLE, OPTIMIZERS[kind])
    present = model.space.full()
    present[8:] = False
    model.resize(present)
    step(model)
    before = dict(zip(dict(model.network.named_parameters()), map(dict, states(model)), strict=True))
    grown_back = present.clone()
    grown_back[8:12] = True
    model.resize(grown_back)
    after = dict(zip(dict(model.network.named_parameters()), map(dict, states(model)), strict=True))
    for name, state in before.items():
        assert after[name].keys() == state.keys()
        for key, value in state.items():
            if isinstance(value, Tensor) and value.numel() > 1:
                kept = after[name][key][tuple(slice(length) for length in value.shape)]
                assert torch.equal(kept, value), f"{key} of {name}"
    step(model)
    step(model)
    assert all(parameter.isfinite().all() for parameter in model.network.parameters())
    model.load_state_dict(model.state_dict())


def states(model: ElasticModel) -> list[dict[str, Any]]:
    return [model.optimizer.state.get(parameter, {}) for parameter in model.network.parameters()]


def test_newborn_entries_start_as_in_a_fresh_optimizer() -> None:
    model = ElasticModel(network(), EXAMPLE, lambda net: torch.optim.Rprop(net.parameters(), lr=0.02))
    present = model.space.full()
    present[8:] = False
    model.resize(present)
    step(model)
    model.resize(model.space.full())
    sizes = model.optimizer.state[model.network[0].weight]["step_size"]
    assert torch.equal(sizes[8:], torch.full_like(sizes[8:], 0.02))
    model.optimizer = torch.optim.Adagrad(model.network.parameters(), initial_accumulator_value=0.5)
    model.make_optimizer = lambda net: torch.optim.Adagrad(net.parameters(), initial_accumulator_value=0.5)
    model.resize(present)
    step(model)
    model.resize(model.space.full())
    sums = model.optimizer.state[model.network[0].weight]["sum"]
    assert torch.equal(sums[8:], torch.full_like(sums[8:], 0.5))


def test_a_seed_of_one_filter_keeps_the_shapes_of_factored_state() -> None:
    model = ElasticModel(network(), EXAMPLE, OPTIMIZERS["Adafactor"])
    model.resize(model.space.seed())
    step(model)
    model.resize(model.space.full())
    state = model.optimizer.state[model.network[0].weight]
    assert (state["row_var"].shape, state["col_var"].shape) == ((16, 1), (1, 4))
    step(model)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_every_optimizer_grows(kind: str) -> None:
    assert grown(optimizer=OPTIMIZERS[kind]).macs


def test_parameters_of_the_loss_go_on() -> None:
    class Margin(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

        def forward(self, output: Tensor, target: Tensor) -> Tensor:
            return F.cross_entropy(output * self.scale, target)

    loss, seen = Margin(), []

    def make(net: nn.Module) -> torch.optim.Optimizer:
        seen.append(torch.optim.SGD([*net.parameters(), *loss.parameters()], lr=0.1, momentum=0.9))
        return seen[-1]

    grown(loss=loss, optimizer=make)
    assert not torch.equal(loss.scale, torch.ones(3))
    assert loss.scale in seen[-1].state


class Unfollowing(torch.optim.SGD):
    """Keeps a matrix of the products of a parameter's entries."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["preconditioner"] = torch.eye(len(parameter.flatten()))
        super().step()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda net: torch.optim.LBFGS(net.parameters()), "LBFGS cannot be stepped .*closure"),
        (lambda net: Unfollowing(net.parameters(), lr=0.1), "'preconditioner' .* cannot follow the network"),
        (torch.optim.Adam, "the optimizer cannot be made: TypeError"),
        (torch.optim.Adam(network().parameters()), "the optimizer is a Adam"),
        (lambda net: None, r"optimizer\(network\) gives a NoneType"),
        (lambda net: (torch.optim.Adam(net.parameters()), "step"), "gives a str beside the optimizer"),
    ],
)
def test_what_cannot_train_is_refused_before_training(make: Any, said: str) -> None:
    def never(output: Tensor, target: Tensor) -> Tensor:
        raise AssertionError("a step was made")

    refused(said, lambda: grown(optimizer=make, loss=never))


def test_an_optimizer_of_another_network_is_refused() -> None:
    model = network()
    refused(
        "holds parameters of another network",
        lambda: grown(model, optimizer=lambda _: torch.optim.Adam(model.parameters())),
    )


def test_frozen_parts_stay_and_a_frozen_model_is_refused() -> None:
    model = network()
    model[0].requires_grad_(False)
    first = model[0].weight.detach().clone()
    result = grown(model).network
    assert [parameter.requires_grad for parameter in result.parameters()] == [False] * 2 + [True] * 4
    assert all(any(torch.equal(row, other) for other in first) for row in result[0].weight)
    refused("all parameters of Sequential are frozen", lambda: grown(network().requires_grad_(False)))


# --- schedulers ---


def test_a_scheduler_goes_on_from_network_to_network() -> None:
    rates: list[list[float]] = []

    class Noting(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            rates.append([group["lr"] for group in self.param_groups])
            super().step()

    def make(net: nn.Module) -> Any:
        groups = [{"params": net[0].parameters(), "lr": 0.1}, {"params": net[1:].parameters(), "lr": 0.01}]
        optimizer = Noting(groups, lr=0.1, momentum=0.9)
        return optimizer, schedulers.StepLR(optimizer, 1, 0.5)

    grown(optimizer=make, epochs=4)
    trained = rates[1:]  # the first is the trial
    assert len(trained) == 4 * len(PAIRS)
    for epoch in range(4):
        for rate in trained[4 * epoch : 4 * epoch + 4]:
            assert rate == pytest.approx([0.1 / 2**epoch, 0.01 / 2**epoch])


@pytest.mark.parametrize(
    "make",
    [
        lambda optimizer: schedulers.CosineAnnealingLR(optimizer, 4),
        lambda optimizer: schedulers.OneCycleLR(optimizer, 0.1, total_steps=10),
        lambda optimizer: schedulers.ReduceLROnPlateau(optimizer, patience=0),
        lambda optimizer: schedulers.LambdaLR(optimizer, lambda epoch: 0.9**epoch),
        lambda optimizer: schedulers.SequentialLR(
            optimizer, [schedulers.LinearLR(optimizer), schedulers.ExponentialLR(optimizer, 0.9)], [2]
        ),
    ],
    ids=["cosine", "one cycle", "plateau", "function", "sequence"],
)
def test_a_scheduler_moves_as_in_a_plain_loop(make: Any) -> None:
    used: list[torch.optim.Optimizer] = []

    def both(net: nn.Module) -> Any:
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        used.append(optimizer)
        return optimizer, make(optimizer)

    history = grown(optimizer=both, epochs=4).history
    plain = torch.optim.SGD(network().parameters(), lr=0.1)
    scheduler = make(plain)
    for entry in history:
        plain.step()
        scheduler.step(*[entry["loss"]] * isinstance(scheduler, schedulers.ReduceLROnPlateau))
    assert used[-1].param_groups[0]["lr"] == pytest.approx(plain.param_groups[0]["lr"])


def test_two_who_set_the_rate_are_refused() -> None:
    def make(net: nn.Module) -> Any:
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        return optimizer, schedulers.StepLR(optimizer, 1)

    refused("both set the rate", lambda: grown(optimizer=make, learning_rate_at=lambda progress: 0.1))


# --- arguments ---


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"budget": "half"}, "budget 'half' is no number"),
        ({"budget": float("nan")}, "budget nan is outside"),
        ({"budget_ms": -1}, "budget_ms -1 is no time"),
        ({"epochs": "3"}, "epochs '3' is no number"),
        ({"epochs": None}, "epochs None is no number"),
        ({"granularity": 0}, "granularity 0 is no whole number above 0"),
        ({"granularity": 2.5}, "granularity 2.5 is no whole number"),
        ({"seed": "a"}, "seed 'a' is no whole number"),
        ({"loss": 3}, r"loss is a int; give a function, called as loss\(output, target\)"),
        ({"step": "x"}, "step is a str; give a function"),
        ({"learning_rate_at": 0.1}, "learning_rate_at is a float; give a function"),
        ({"step": lambda net, batch: 0, "loss": F.mse_loss}, "loss has no effect beside it"),
    ],
)
def test_other_kinds_of_arguments_are_one_line(changes: dict[str, Any], said: str) -> None:
    refused(said, lambda: grown(**changes))


@pytest.mark.parametrize("model", [None, 3, "resnet", nn.Linear, network])
def test_what_is_no_model_is_one_line(model: Any) -> None:
    for act in (discover, count_macs, lambda model, example: grow(model, example, PAIRS)):
        refused("the model is .*; give an instance of nn.Module", lambda act=act: act(model, EXAMPLE))


@pytest.mark.parametrize("example", [None, 3, "image", torch.zeros(1, 4).numpy(), [], torch.zeros(0, 4)])
def test_what_is_no_example_is_one_line(example: Any) -> None:
    for act in (discover, count_macs, lambda model, example: grow(model, example, PAIRS)):
        refused("the example (is a|has a tensor)", lambda act=act: act(network(), example))


def test_a_layer_alone_and_a_lazy_one_are_one_line() -> None:
    refused("nothing in this model can be grown: a Linear alone", lambda: discover(nn.Linear(4, 3), EXAMPLE))
    refused("0 is a LazyLinear without sizes yet", lambda: discover(nn.Sequential(nn.LazyLinear(3)), EXAMPLE))


def test_a_model_prepared_for_quantisation_is_one_line() -> None:
    from torch.ao.quantization import MinMaxObserver

    model = nn.Sequential(nn.Linear(4, 16), MinMaxObserver(), nn.Linear(16, 3))
    refused("1 is a MinMaxObserver, of a model prepared for quantisation", lambda: discover(model, EXAMPLE))


def test_what_has_no_values_is_one_line() -> None:
    with torch.device("meta"):
        model = network()
    refused("0 has parameters on the device 'meta'", lambda: discover(model, EXAMPLE))
    refused("the example is on the device 'meta'", lambda: discover(network(), EXAMPLE.to("meta")))


def test_tables_with_sparse_gradients_grow_by_the_default_recipe() -> None:
    model = nn.Sequential(nn.EmbeddingBag(9, 16, sparse=True), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    data = [(torch.randint(9, (4, 5)), torch.arange(4) % 3)] * 8
    grown = nasbench_grow.grow(model, torch.zeros(1, 5, dtype=torch.long), data, epochs=1, progress=False)
    assert 0.3 < grown.macs / grown.dense_macs <= 0.5


def test_every_public_function_says_what_it_takes() -> None:
    model = network()
    space = discover(model, EXAMPLE)
    full, other = space.full(), nn.Sequential(nn.Linear(4, 8))
    ng = nasbench_grow
    for act, said in (
        (lambda: ng.extract(space, other, full), r"another model: 0.weight has shape \(16, 4\) there, and \(8, 4\)"),
        (lambda: ng.extract(None, model, full), "the space is a NoneType"),
        (lambda: ng.extract(space, model, full[:3]), r"give a bool tensor of shape \(16,\)"),
        (lambda: ng.extract(space, model, full.float()), "present is a torch.float32"),
        (lambda: ng.absorb(space, model, [True], model), "present is a list"),
        (lambda: ng.widen(space, model, [1]), "widths is a list"),
        (lambda: ng.widen(3, model, {}), "the space is a int"),
        (lambda: ng.select(space, None, 3), "keys is a NoneType"),
        (lambda: ng.share_keys(space, torch.zeros(2)), "importance is a tensor of shape"),
        (lambda: ng.uniform_keys(3), "the space is a int"),
        (lambda: ng.SharedWeights(space, 3), "the model is a int"),
        (lambda: ng.GatedNetwork(space, None, model), "present is a NoneType"),
        (lambda: ng.recalibrate(3, []), "the model is a int"),
        (lambda: ng.describe(model, 3), "the model is a int"),
        (lambda: ng.rebuild(3), "is not an architecture"),
        (lambda: ng.save(3, "", "x"), "the model is a int"),
        (lambda: ng.save(model, "", 3), "the path is a int"),
        (lambda: ng.load(None), "the path is a NoneType"),
    ):
        refused(said, act)


def test_a_budget_below_the_seed_names_what_holds_it_up() -> None:
    class Held(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.middle, self.last = nn.Linear(4, 16), nn.Linear(16, 16), nn.Linear(16, 3)

        def forward(self, inputs: Tensor) -> Tensor:
            hidden = self.first(inputs)
            return self.last(self.middle(hidden - hidden.mean(1, keepdim=True)).relu())

    refused(
        r"budget 0.01 is below the seed.*of its MACs most go to first 0.17 \(a part of the network mixes",
        lambda: grown(Held(), budget=0.01),
    )


def test_the_snippets_of_the_page_run() -> None:
    page = (Path(__file__).parents[1] / "docs" / "own-training.md").read_text(encoding="utf-8")
    shown: dict[str, Any] = {}
    for code in re.findall(r"```python\n(.*?)```", page, re.S):
        exec(code, shown)
    assert shown["grown"].macs <= 0.5 * shown["grown"].dense_macs
    assert set(shown["space"].owners) >= {("image.weight", 0), ("head.weight", 1)}
