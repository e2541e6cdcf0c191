"""Models that take and give tensors in any structure, and users' batches of any kind."""

from __future__ import annotations

from collections import OrderedDict, UserDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import DataLoader, TensorDataset

from nasbench_grow import RelaxationSettings, UserError, count_macs, discover, extract, grow
from nasbench_grow.base.calling import batch_length, call
from nasbench_grow.base.trees import leaves, map_tensors, tensors
from nasbench_grow.growing.api import Grown
from nasbench_grow.structure.exactness import masked

EXAMPLE = torch.zeros(1, 4)
INPUTS, TARGETS = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 3
PAIRS = [(INPUTS, TARGETS)] * 4


class Head(nn.Module):
    """Two linear layers; ``wrap`` makes the output of the logits."""

    def __init__(self, wrap: Callable[[Tensor], Any] = lambda logits: logits) -> None:
        super().__init__()
        self.first, self.last, self.wrap = nn.Linear(4, 16), nn.Linear(16, 3), wrap

    def forward(self, inputs: Tensor) -> Any:
        return self.wrap(self.last(self.first(inputs).relu()))


def grown(model: nn.Module, example: Any = EXAMPLE, loader: Any = PAIRS, **changes: Any) -> Grown:
    return grow(model, example, loader, **{"epochs": 2, "progress": False, "granularity": 1, **changes})


def refused(message: str, act: Callable[[], Any]) -> None:
    with pytest.raises(UserError, match=message) as caught:
        act()
    assert "\n" not in str(caught.value)


# --- outputs ---


@dataclass
class Output:
    logits: Tensor
    hidden: Any = None


Pair = namedtuple("Pair", ["logits", "other"])
OUTPUTS: dict[str, tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]] = {
    "dict": (lambda x: {"logits": x, "nothing": None, "word": "w"}, lambda output: output["logits"]),
    "tuple": (lambda x: (x, None, 3), lambda output: output[0]),
    "nested list": (lambda x: [[x], {"twice": 2 * x}], lambda output: output[0][0]),
    "named tuple": (lambda x: Pair(x, None), lambda output: output.logits),
    "dataclass": (lambda x: Output(x, (x, None)), lambda output: output.logits),
    "mapping": (lambda x: UserDict(logits=x), lambda output: output["logits"]),
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_an_output_of_any_structure_is_found_and_grown(kind: str) -> None:
    wrap, logits = OUTPUTS[kind]
    model = Head(wrap)
    space = discover(model, EXAMPLE)
    assert [(group.name, group.size) for group in space.groups] == [("first", 16)]
    assert list(space.fixed) == ["last"]
    result = grown(model, loss=lambda output, target: F.cross_entropy(logits(output), target))
    assert result.macs / result.dense_macs == pytest.approx(0.5)
    assert type(result.network(EXAMPLE)) is type(wrap(EXAMPLE))


def test_what_is_given_beside_the_logits_is_held_to_the_definition() -> None:
    class Mixing(Head):
        def forward(self, inputs: Tensor) -> Any:
            hidden = self.first(inputs).relu()
            return {"logits": self.last(hidden), "mean": hidden.mean(1)}  # a mean over fewer channels is another

    assert discover(Mixing(), EXAMPLE).fixed["first"].startswith("a part of the network mixes")


def test_features_that_are_given_stay_whole() -> None:
    class Features(Head):
        def forward(self, inputs: Tensor) -> Any:
            hidden = self.first(inputs).relu()
            return [hidden, self.last(hidden)]

    assert discover(Features(), EXAMPLE).fixed == dict.fromkeys(
        ["first", "last"], "its channels are the model's output"
    )


def test_a_structure_without_a_loss_of_ones_own_is_one_line() -> None:
    refused("the model gives a dict with logits, nothing, word, and no tensor", lambda: grown(Head(OUTPUTS["dict"][0])))


# --- inputs ---


class Two(nn.Module):
    """Takes two tensors, by position or keyword, and perhaps more that are none."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.last = nn.Linear(4, 16), nn.Linear(5, 16), nn.Linear(16, 3)

    def forward(self, one: Tensor, other: Any, scale: float = 1.0) -> Tensor:
        other = other["inside"] if isinstance(other, dict) else other
        return scale * self.last((self.one(one) + self.other(other)).relu())


OTHER = torch.randn(8, 5, generator=torch.Generator().manual_seed(1))
INPUT_KINDS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "tuple": lambda one, other: (one, other),
    "list": lambda one, other: [one, other, 0.5],
    "keywords": lambda one, other: {"other": other, "one": one, "scale": 2.0},
    "nested": lambda one, other: (one, {"inside": other}),
}


@pytest.mark.parametrize("kind", INPUT_KINDS)
@pytest.mark.parametrize("ways", [None, RelaxationSettings()], ids=["sampling", "relaxation"])
def test_several_inputs_by_position_or_keyword(kind: str, ways: Any) -> None:
    arranged = INPUT_KINDS[kind]
    example = arranged(EXAMPLE, torch.zeros(1, 5))
    space = discover(Two(), example)
    assert [group.size for group in space.groups] == [16]
    assert count_macs(Two(), example) == space.macs(space.full()) == 16 * (4 + 5 + 3)
    result = grown(Two(), example, [(arranged(INPUTS, OTHER), TARGETS)] * 4, settings=ways)
    assert result.macs == count_macs(result.network, example) < result.dense_macs
    assert result.dense_train_macs == 3 * result.dense_macs * 8 * 4 * 2


def test_a_mask_of_truth_values_goes_along_with_the_numbers() -> None:
    class Masked(Head):
        def forward(self, inputs: Tensor, mask: Tensor) -> Any:
            return super().forward(inputs.masked_fill(mask, 0.0))

    space = discover(Masked(), (EXAMPLE, torch.zeros(1, 4, dtype=torch.bool)))
    assert [group.size for group in space.groups] == [16]


@given(st.integers(0, 2**20), st.sampled_from(list(OUTPUTS)), st.sampled_from(list(INPUT_KINDS)))
@settings(max_examples=15, deadline=None)
def test_an_extracted_network_equals_the_masked_one_in_every_structure(chance: int, made: str, taken: str) -> None:
    class Wrapped(Two):
        def forward(self, *inputs: Any, **keywords: Any) -> Any:
            return OUTPUTS[made][0](super().forward(*inputs, **keywords))

    generator = torch.Generator().manual_seed(chance)
    model = Wrapped().double()
    inputs = map_tensors(torch.Tensor.double, INPUT_KINDS[taken](INPUTS, OTHER))
    space = discover(model, inputs)
    present = torch.rand(len(space), generator=generator) < 0.5
    present[int(torch.randint(len(space), (), generator=generator))] = True
    found, wanted = (
        tensors(output)
        for output in (call(extract(space, model, present), inputs), masked(space, model, present, inputs))
    )
    assert found and all(torch.allclose(one, other, atol=1e-12) for one, other in zip(found, wanted, strict=True))


# --- structures ---

trees = st.recursive(
    st.sampled_from(["word", None, 3.0]) | st.integers(1, 3).map(torch.zeros),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
        | st.tuples(inner, inner)
        | st.builds(Pair, inner, inner)
        | st.builds(Output, inner, inner)
        | st.lists(st.tuples(st.sampled_from("abc"), inner), max_size=2).map(OrderedDict)
    ),
    max_leaves=8,
)


@given(trees)
def test_a_mapped_structure_is_the_same_structure(tree: Any) -> None:
    before = [leaf + 0 if isinstance(leaf, Tensor) else leaf for leaf in leaves(tree)]
    mapped = map_tensors(lambda tensor: tensor + 1, tree)
    assert type(mapped) is type(tree)
    assert len(leaves(mapped)) == len(before)
    for old, new in zip(before, leaves(mapped), strict=True):
        assert torch.equal(new, old + 1) if isinstance(old, Tensor) else new is old
    assert all(torch.equal(one, other) for one, other in zip(tensors(tree), tensors(before), strict=True))


@pytest.mark.parametrize(
    ("inputs", "samples"),
    [
        (torch.zeros(5, 2), 5),
        ((torch.zeros(5, 2), torch.zeros(7)), 5),
        ({"scale": torch.tensor(2.0), "x": torch.zeros(3, 2)}, 3),
        (([torch.zeros(3, 8, 8), torch.zeros(3, 6, 6)], "targets"), 2),  # images of detectors
        (([torch.zeros(4, 3, 8, 8), torch.zeros(4, 3, 4, 4)],), 4),  # batches of features
        (pack_sequence([torch.zeros(3, 2), torch.zeros(2, 2)]), 2),
    ],
)
def test_the_samples_of_inputs_are_counted(inputs: Any, samples: int) -> None:
    assert batch_length(inputs) == samples


# --- batches ---


def test_a_step_of_ones_own_brings_its_loss() -> None:
    batches = [{"x": INPUTS, "y": TARGETS}] * 4
    steps: list[bool] = []

    def step(network: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        steps.append(network.training)
        return F.cross_entropy(network(batch["x"]), batch["y"])

    by_step, by_loss = grown(seeded_head(), loader=batches, step=step), grown(seeded_head())
    assert all(steps)
    assert by_step.history == by_loss.history  # the very same run
    assert by_step.train_macs == by_loss.train_macs


def seeded_head() -> Head:
    torch.manual_seed(0)
    return Head()


@pytest.mark.parametrize("ways", [None, RelaxationSettings()], ids=["sampling", "relaxation"])
def test_every_input_that_a_step_runs_is_billed(ways: Any) -> None:
    def two_views(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(network(batch[0]), batch[1]) + F.cross_entropy(network(batch[0][:3]), batch[1][:3])

    result = grown(Head(), step=two_views, settings=ways)
    assert result.dense_train_macs == 3 * result.dense_macs * (8 + 3) * 4 * 2


def test_a_step_that_calls_parts_is_billed_for_its_batch() -> None:
    def parts(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(network.last(network.first(batch[0]).relu()), batch[1])

    result = grown(Head(), step=parts)
    assert result.dense_train_macs == 3 * result.dense_macs * 8 * 4 * 2


def test_arrays_and_targets_of_any_structure() -> None:
    batches = [(INPUTS.double().numpy(), {"class": np.arange(8) % 3, "names": ["a", "b"]})] * 4
    result = grown(seeded_head(), loader=batches, loss=lambda output, target: F.cross_entropy(output, target["class"]))
    assert result.history == grown(seeded_head()).history


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        ({"x": INPUTS, "y": TARGETS}, "a dict with x, y"),
        ((INPUTS, TARGETS, "names"), "a tuple of 3"),
        ([INPUTS], "a list of 1"),
        (INPUTS[:2], "a Tensor"),  # of two rows, which would pass for a pair
    ],
)
def test_a_batch_that_is_no_pair_asks_for_a_step(batch: Any, said: str) -> None:
    refused(
        f"the loader gives {said}, and no .inputs, targets. pair; .*step=lambda", lambda: grown(Head(), loader=[batch])
    )


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (lambda output, target: 1.0, r"loss\(output, target\) gives a float; return a scalar"),
        (lambda output, target: output, r"gives a Tensor of shape \(8, 3\); return a scalar"),
        (lambda output, target: output.detach().sum(), "does not depend on the network's weights"),
    ],
)
def test_a_loss_that_is_none_is_one_line(loss: Any, said: str) -> None:
    refused(said, lambda: grown(Head(), loss=loss))


def test_a_last_batch_of_one_sample_is_refused_before_training() -> None:
    data = TensorDataset(torch.randn(9, 4), torch.arange(9) % 3)
    normed = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
    weights = {name: tensor.clone() for name, tensor in normed.state_dict().items()}
    refused("a batch of one sample .* drop_last=True", lambda: grown(normed, loader=DataLoader(data, 8)))
    assert all(torch.equal(weights[name], tensor) for name, tensor in normed.state_dict().items())
    assert grown(Head(), loader=DataLoader(data, 8)).macs  # which can be trained on one
    assert grown(normed, loader=DataLoader(data, 8, drop_last=True), epochs=8).macs


def test_other_kinds_of_loader_are_one_line() -> None:
    for loader in (None, 3, "words", torch.zeros(4, 2, 4), SimpleNamespace(), DataLoader):
        refused("the loader is a .*; give a DataLoader or a list", lambda loader=loader: grown(Head(), loader=loader))
