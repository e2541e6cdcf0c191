"""Nothing hides from discovery: what it finds holds for whatever the network becomes by training."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from families import randomise, seeds, shares, structure
from hypothesis import given, settings
from torch import Tensor, nn

from nasbench_grow.structure.discovery import discover
from nasbench_grow.structure.exactness import masked
from nasbench_grow.structure.probing import SAMPLES, random_batch, randomised
from nasbench_grow.structure.space import Space
from nasbench_grow.structure.subnetwork import extract

IMAGE = torch.zeros(1, 3, 6, 6)
WORDS = torch.zeros(1, 5, dtype=torch.int64)
MIXED = "a part of the network mixes its channels in a way that removal changes"


class Zero(nn.Module):
    """A branch that starts at zero and mixes the 12 channels inside it; ``start`` says by what it starts at zero."""

    def __init__(self, start: str) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 1), nn.Conv2d(12, 8, 1)
        self.fc = nn.Linear(8, 4)
        shapes = {
            "image": (1, 8, 1, 1),
            "scalar": (),
            "vector": (8,),
            "one": (1,),
            "buffer": (1, 8, 1, 1),
            "scalar buffer": (),
        }
        if start == "convolution":
            nn.init.zeros_(self.b.weight)
            nn.init.zeros_(self.b.bias)
        elif "buffer" in start:
            self.register_buffer("scale", torch.zeros(shapes[start]))
        elif start == "norm":
            self.norm = nn.BatchNorm2d(8)
            nn.init.zeros_(self.norm.weight)
        else:
            self.scale = nn.Parameter(torch.zeros(shapes[start]))
        self.start = start

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.a(x).relu()
        y = self.b(y - y.mean(1, keepdim=True))
        if self.start == "norm":
            y = self.norm(y)
        elif self.start == "vector":
            y = y * self.scale[:, None, None]
        elif self.start != "convolution":
            y = y * self.scale
        return self.fc((x + y).mean((2, 3)))


class Skips(nn.Module):
    """A skip connection that is taken where the shapes agree, as those of 8 and of ``inner`` channels do not."""

    def __init__(self, inner: int, from_input: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, inner, 3, padding=1), nn.Linear(inner, 4)
        self.from_input = from_input

    def forward(self, x: Tensor) -> Tensor:
        first = self.a(x).relu()
        y = self.b(first)
        skipped = x if self.from_input else first
        if skipped.shape == y.shape:
            y = y + skipped
        return self.fc(y.mean((2, 3)))


class Asks(nn.Module):
    """A skip connection that is taken where a number of channels is the one that the network was made with."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc, self.channels = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Linear(8, 4), 8

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        y = self.b(x)
        return self.fc((x + y if x.shape[1] == self.channels else y).mean((2, 3)))


class Words(nn.Module):
    """Mixes the channels of its embedding; an empty text gives zeros. ``images``: given as numbers, or as floats."""

    def __init__(self, padding: int | None = 0, bag: bool = False, floats: bool = False) -> None:
        super().__init__()
        self.embedding = (nn.EmbeddingBag if bag else nn.Embedding)(9, 8, padding_idx=padding)
        self.positions = nn.Parameter(torch.zeros(1, 5, 8)) if not bag else None
        self.a, self.b, self.floats = nn.Linear(8, 12), nn.Linear(12, 4), floats

    def forward(self, x: Tensor) -> Tensor:
        x = x.long() if self.floats else x
        mask = (x != 0).any(1, keepdim=True)
        features = self.embedding(x)
        features = features if features.ndim == 2 else (features + self.positions).mean(1)
        hidden = self.a(features)
        return self.b((hidden - hidden.mean(1, keepdim=True)) * mask)


class Statistics(nn.Module):
    """A batch normalisation over time steps, whose statistics run over the channels, too."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(4, 12), nn.BatchNorm1d(5), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.norm(self.a(x)).relu()).mean(1)


class Logarithm(nn.Module):
    """Gives numbers for positive inputs alone, and mixes 12 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.a(x.log())
        return self.b(hidden - hidden.mean(-1, keepdim=True))


HIDDEN: dict[str, tuple[Callable[[], nn.Module], Tensor, set[str]]] = {
    **{
        f"zero {start}": (lambda start=start: Zero(start), IMAGE, {"a"})
        for start in ("convolution", "image", "scalar", "vector", "one", "buffer", "scalar buffer", "norm")
    },
    "skip between two widths": (lambda: Skips(12), IMAGE, {"b"}),
    "skip between two widths, narrower": (lambda: Skips(5), IMAGE, {"a"}),
    "skip from the input": (lambda: Skips(12, from_input=True), IMAGE, {"b"}),
    "token that is padding": (Words, WORDS, {"a"}),
    "last token is padding": (lambda: Words(-1), WORDS, {"a"}),
    "bag of tokens": (lambda: Words(0, bag=True), WORDS, {"a"}),
    "tokens as floats": (lambda: Words(floats=True), WORDS.float(), {"a"}),
    "statistics of a batch": (Statistics, torch.zeros(1, 5, 4), {"a"}),
    "constant input": (Logarithm, torch.ones(1, 4), {"a"}),
}


def trained(model: nn.Module) -> nn.Module:
    """As if it had trained: nothing is zero any more."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point() and not tensor.any():
            tensor.data = torch.rand_like(tensor) + 0.5
    randomise(model)
    return model.double().eval()


def holds(space: Space, model: nn.Module, present: Tensor, inputs: Tensor) -> None:
    with torch.no_grad():
        wanted, found = masked(space, model, present, inputs), extract(space, model, present)(inputs)
    assert (found - wanted).abs().max() <= 1e-10 * wanted.abs().max()


def test_a_skip_is_not_lost_where_the_number_it_depends_on_can_be_set() -> None:
    torch.manual_seed(0)
    model = Asks().eval()
    space = discover(model, IMAGE)
    assert [group.name for group in space.groups] == ["a"]
    present = space.full()
    present[:5] = False
    assert extract(space, model, present).channels == 3
    holds(space, model.double(), present, torch.randn(2, *IMAGE.shape[1:], dtype=torch.double))


@pytest.mark.parametrize("name", HIDDEN)
def test_what_an_untrained_network_hides_is_found(name: str) -> None:
    build, example, mixed = HIDDEN[name]
    torch.manual_seed(0)
    model = build().eval()
    space = discover(model, example)
    grown = {name.partition("#")[0] for name in (group.name for group in space.groups)}
    assert not mixed & grown
    assert mixed & space.fixed.keys()
    batch = random_batch(randomised(model), example)
    model = trained(model)

    @settings(max_examples=20, deadline=None, derandomize=True, database=None)
    @given(seed=seeds, share=shares)
    def for_every_structure(seed: int, share: float) -> None:
        holds(space, model, structure(space, seed, share), batch)

    for_every_structure()


def test_what_only_starts_at_zero_can_be_grown() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.a, self.b, self.fc = (
                nn.Conv2d(3, 8, 1),
                nn.Conv2d(8, 12, 1),
                nn.Conv2d(12, 8, 1),
                nn.Linear(8, 4),
            )
            self.scale = nn.Parameter(torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.fc((x + self.scale * self.b(self.a(x).relu())).mean((2, 3)))

    space = discover(Scaled(), IMAGE)
    assert space.widths(space.full()) == {"stem": 8, "a": 12}


def test_tokens_are_those_that_the_model_has_and_none_is_padding() -> None:
    model = nn.Sequential(nn.Embedding(7, 4, padding_idx=3), nn.Flatten(), nn.Linear(20, 2))
    drawn = random_batch(randomised(model), WORDS)
    assert drawn.shape == (SAMPLES, 5) and drawn.dtype == torch.int64
    assert set(drawn.flatten().tolist()) == {1, 2, 4, 5, 6}


def test_numbers_that_are_no_tokens_are_drawn_up_to_the_largest_of_the_example() -> None:
    class Pixels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x.to(self.a.weight) / 255)

    probe = randomised(Pixels())
    drawn = random_batch(probe, torch.zeros(1, 6, dtype=torch.uint8))
    assert drawn.dtype == torch.uint8 and drawn.max() > 100
    assert set(random_batch(probe, torch.tensor([[0, 0, 0, 0, 0, 3]])).flatten().tolist()) == {0, 1, 2, 3}


def test_no_parameter_of_a_probe_is_at_its_start() -> None:
    model = nn.Sequential(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2), nn.PReLU(), nn.Linear(4, 4), nn.LayerNorm((3, 4)))
    nn.init.dirac_(model[0].weight)
    nn.init.eye_(model[3].weight)
    for parameter in randomised(model).parameters():
        values = parameter.flatten()
        assert values.all() and len(values.unique()) == len(values)


@pytest.mark.parametrize("passes", [1, 4, 9, 20])
def test_an_alarm_of_the_caller_is_no_fault_of_the_model(passes):
    """Whoever limits the time of discovery hears of it; no channel is fixed because a pass was cut short."""

    class Slow(nn.Sequential):
        def forward(self, inputs: Tensor) -> Tensor:
            runs.append(1)
            if len(runs) >= passes:
                raise TimeoutError("as an alarm does")
            return super().forward(inputs)

    runs: list[int] = []
    model = Slow(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 36, 4))
    with pytest.raises(TimeoutError, match="as an alarm does"):
        discover(model, IMAGE)
