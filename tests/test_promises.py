"""What :func:`nasbench_grow.grow` promises: the network that the model is without what is absent, at its budget."""

from __future__ import annotations

import copy
import dataclasses
import math
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tiny_networks import Plain, Residual, seeded, small_job
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from nasbench_grow import RelaxationSettings, SamplingSettings, ScalingSettings, UserError, grow, select, uniform_keys
from nasbench_grow.harness import registry
from nasbench_grow.structure.checking import check_returned
from nasbench_grow.structure.discovery import discover
from nasbench_grow.structure.subnetwork import extract

IMAGE = torch.zeros(1, 1, 8, 8)


def batches(count: int, size: int = 8, last: int | None = None) -> list[tuple[Tensor, Tensor]]:
    sizes = [size] * (count - 1) + [last or size]
    return [(torch.randn(each, 1, 8, 8), torch.randint(10, (each,))) for each in sizes]


def grown(loader: Any, model: nn.Module | None = None, **changes: Any) -> Any:
    arguments = {"epochs": 1, "granularity": 1, "progress": False, **changes}
    return grow(model or seeded(Plain), IMAGE, loader, **arguments)


@pytest.mark.parametrize("settings", [SamplingSettings(), ScalingSettings()], ids=["sampling", "scaling"])
def test_a_short_run_ends_at_its_budget_or_says_so(settings: Any) -> None:
    for steps in (1, 2, 3, 4, 8):
        try:
            found = grown(batches(steps), settings=settings)
        except UserError as error:
            assert f"the run of {steps} steps is too short for budget 0.5" in str(error) and "\n" not in str(error)
            assert steps < 3
        else:
            assert 0.48 <= found.macs / found.dense_macs <= 0.5


@pytest.mark.parametrize("settings", [SamplingSettings(), ScalingSettings()], ids=["sampling", "scaling"])
def test_a_network_whose_next_filter_costs_more_than_a_step_grows_all_the_same(settings: Any) -> None:
    class Narrow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 2), nn.Linear(2, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x.mean(1).flatten(1)[:, :8]).relu())

    found = grown(batches(12), Narrow(), budget=1.0, settings=settings)
    assert found.macs == found.dense_macs


def test_a_network_off_its_budget_is_spoken_of() -> None:
    class Coarse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(64, 3), nn.Linear(3, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x.flatten(1)).relu())

    with pytest.warns(UserWarning, match=r"costs 0.333 of the dense one where the budget is 0.5"):
        grown(batches(8), Coarse())
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*costs")
        grown(batches(8), Coarse(), budget=0.34)


def test_a_loader_that_promises_more_than_it_gives_is_an_error() -> None:
    class Stream(IterableDataset):
        def __len__(self) -> int:
            return 8000

        def __iter__(self) -> Iterator[Any]:
            return iter([(torch.randn(1, 8, 8), 1)] * 80)

    with pytest.raises(UserError, match="end after 10 of the 1000 batches"):
        grown(DataLoader(Stream(), 8))


def test_training_is_billed_for_the_inputs_that_ran() -> None:
    """The last batch is smaller, and the network of every step known: it is dense from the first one on."""
    found = grown(batches(5, 8, last=3), budget=1.0, settings=ScalingSettings(structures="layers"), model=Residual())
    assert found.dense_train_macs == 3 * found.dense_macs * 35
    assert found.macs == found.dense_macs and found.train_macs <= found.dense_train_macs


def test_inputs_of_another_shape_than_the_example_are_spoken_of() -> None:
    larger = [(torch.randn(8, 1, 12, 12), torch.randint(10, (8,))) for _ in range(4)]
    with pytest.warns(UserWarning, match=r"inputs have the shape \(1, 12, 12\), the example \(1, 8, 8\)"):
        grown(larger)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        *(
            ({"granularity": value}, f"granularity {value!r} is no whole number above 0")
            for value in (0, 2.5, "8", True)
        ),
        ({"granularity": math.nan}, "granularity nan is no whole number above 0"),
        *(({"budget": value}, f"budget {value!r} is no number") for value in ("abc", None, True)),
        *(({"budget": value}, f"budget {value} is outside (0, 1]") for value in (math.nan, 0, -1, 1.5, math.inf)),
        *(({"seed": value}, f"seed {value!r} is no whole number") for value in (1.5, "1", True, None, 2**64)),
    ],
)
def test_a_number_outside_its_domain_is_refused_in_one_line(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        grown(batches(2), **change)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_granularity_is_checked_wherever_it_can_be_given() -> None:
    space = discover(seeded(Plain), IMAGE)
    for value in (0, -8, 2.5, "8", math.nan, True):
        with pytest.raises(UserError, match="granularity"):
            select(space, uniform_keys(space), 1e5, value)
        for kind in (SamplingSettings, ScalingSettings):
            with pytest.raises(UserError, match="granularity"):
                kind(granularity=value)


SETTINGS = {
    "sampling": SamplingSettings,
    "scaling": ScalingSettings,
    "relaxation": RelaxationSettings,
    **{name: method.Settings for name, method in registry.methods().items()},
}
WRONG: dict[str, list[Any]] = {
    "int": ["8", 2.5, math.nan, math.inf, True, -1, 0, [3]],
    "float": ["0.5", math.nan, math.inf, -math.inf, True, None, [0.5]],
    "bool": ["yes", 1, 0.0, None],
    "word": ["elsewhere", 3, None, True],
}
GOES = [("random", "draw", 0), *((name, "least_search", 0) for name in ("sampling", "grow", "placebo"))]
"""What is no mistake although it looks like one."""


def kind_of(default: Any) -> str:
    return "bool" if isinstance(default, bool) else type(default).__name__.replace("str", "word")


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_refuses_what_is_no_value_of_it(name: str) -> None:
    kind = SETTINGS[name]
    for field in dataclasses.fields(kind):
        likes = {"NoneType": "float" if field.name == "freeze" else "int"}
        sort = kind_of(field.default)
        sort = likes.get(sort, sort)
        for value in WRONG[sort]:
            if (name, field.name, value) in GOES or (field.default is None and value is None):
                continue
            if field.name == "of" and isinstance(value, str):
                continue  # names a method, which the registry knows
            with pytest.raises(UserError) as caught:
                kind(**{field.name: value})
            assert field.name in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_returned_is_held_against_the_definition() -> None:
    model = seeded(Residual).eval()
    space = discover(model, IMAGE)
    present = select(space, uniform_keys(space), 0.5 * space.macs(space.full()))
    network = extract(space, model, present)
    inputs = torch.randn(20, 1, 8, 8)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    check_returned(space, model, present, network, inputs)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())

    wrong = copy.deepcopy(network)
    wrong.norm.register_forward_hook(lambda module, arguments, output: output + 0.1 * output.mean(1, keepdim=True))
    with pytest.raises(UserError, match=r"Residual that was trained is no sub-network: it differs .* by"):
        check_returned(space, model, present, wrong, inputs)


def test_a_network_in_its_own_precision_is_compared_in_it() -> None:
    class Cast(Plain):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.float())

    model = seeded(Plain).eval()
    space = discover(model, IMAGE)
    present = select(space, uniform_keys(space), 0.5 * space.macs(space.full()))
    model.__class__ = Cast
    network = extract(space, model, present)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_returned(space, model, present, network, torch.randn(4, 1, 8, 8))


def test_a_run_whose_network_is_another_than_it_says_ends_with_an_error() -> None:
    """A skip connection that the model has no longer once it trains: nothing of it shows before."""

    class Turncoat(Plain):
        def forward(self, x: Tensor) -> Tensor:
            y = self.conv1(x)
            turned = self.conv1.bias is None and self.fc.weight.requires_grad and not self.training and self.late
            x = torch.relu(self.bn1(y - y.mean(1, keepdim=True) if turned else y))
            return self.fc(torch.relu(self.bn3(self.conv3(torch.relu(self.bn2(self.conv2(x)))))).mean((2, 3)))

    Turncoat.late = False
    model = seeded(Turncoat)

    def loss(output: Tensor, target: Tensor) -> Tensor:
        Turncoat.late = True
        return nn.functional.cross_entropy(output, target)

    with pytest.raises(UserError, match="is no sub-network"):
        grown(batches(8), model, loss=loss)


def test_a_network_that_a_method_returns_is_checked_by_its_job() -> None:
    job = small_job(Plain)
    model = job.model()
    model.resize(select(model.space, uniform_keys(model.space), 0.5 * job.dense_macs))
    inputs = torch.randn(8, 1, 8, 8)
    job.check_returned(model.network, inputs)
    job.check_returned(Plain(3), inputs)  # of another origin: nothing is known of it
    model.network.bn1.register_forward_hook(lambda module, arguments, output: output + output.mean(1, keepdim=True))
    with pytest.raises(UserError, match="is no sub-network"):
        job.check_returned(model.network, inputs)
