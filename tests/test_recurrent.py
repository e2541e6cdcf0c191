"""Recurrent layers: hidden units are filters, whatever the kind of layer, and states follow the structure."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import nasbench_grow
from nasbench_grow import Space, count_macs, discover, extract
from nasbench_grow.backbones import create
from nasbench_grow.backbones.lstm import LanguageModel
from nasbench_grow.contract import Job
from nasbench_grow.growing.beginning import begin
from nasbench_grow.growing.own import OwnBatches, OwnRecipe
from nasbench_grow.growing.sampling import SamplingSettings
from nasbench_grow.growing.scaling import ScalingSettings
from nasbench_grow.structure.exactness import masked
from nasbench_grow.structure.gating import GatedNetwork
from nasbench_grow.structure.subnetwork import carry_state, zero_init

WORDS, UNITS, STEPS = 11, 6, 5


class Tagger(nn.Module):
    """A convolution, a recurrent layer, and a linear layer on its outputs or on its last state."""

    def __init__(self, layer: nn.RNNBase, from_state: bool) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, layer.input_size, 3, padding=1)
        self.layer, self.from_state = layer, from_state
        self.out = nn.Linear((layer.proj_size or layer.hidden_size) * (1 + layer.bidirectional), 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        output, state = self.layer(x.transpose(1, 2) if self.layer.batch_first else x.permute(2, 0, 1))
        if self.from_state:
            last = state[0] if isinstance(state, tuple) else state
            return self.out(last[-1])
        return self.out(output.mean(1 if self.layer.batch_first else 0))


def random_structures(space: Space, seed: int, share: float = 0.5) -> Tensor:
    present = torch.rand(len(space), generator=torch.Generator().manual_seed(seed)) < share
    return present | space.seed()


def language_model(seed: int = 0) -> LanguageModel:
    torch.manual_seed(seed)
    return LanguageModel(WORDS, UNITS, layers=2, dropout=0.0, scale=0.5)


def words(batch: int, goes_on: int, seed: int = 0) -> Tensor:
    drawn = torch.randint(WORDS, (batch, STEPS), generator=torch.Generator().manual_seed(seed))
    return torch.cat([torch.full((batch, 1), goes_on), drawn], dim=1)


EXAMPLE = torch.zeros(1, 1 + STEPS, dtype=torch.int64)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize(("bidirectional", "from_state"), [(False, False), (False, True), (True, False)])
@pytest.mark.parametrize("batch_first", [True, False])
def test_a_unit_leaves_with_all_that_belongs_to_it(kind, depth, bidirectional, from_state, batch_first):
    torch.manual_seed(0)
    layer = kind(4, UNITS, num_layers=depth, bidirectional=bidirectional, batch_first=batch_first)
    model = Tagger(layer, from_state)
    space = discover(model, torch.zeros(1, 3, STEPS))
    assert {group.name: group.size for group in space.groups} == {"conv": 4, "layer": UNITS}
    model.double()
    inputs = torch.randn(2, 3, STEPS, dtype=torch.double)
    for seed in range(3):
        present = random_structures(space, seed)
        small = extract(space, model, present)
        assert torch.allclose(small(inputs), masked(space, model, present, inputs), rtol=0, atol=1e-12)
        assert small.layer.hidden_size == int(present[space.groups[1].structures].sum())
        assert space.macs(present) == count_macs(small.float(), torch.zeros(1, 3, STEPS))


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize(("bidirectional", "from_state"), [(False, False), (False, True), (True, False)])
@pytest.mark.parametrize(("projected", "units_each"), [(UNITS // 2, 2), (UNITS - 1, None)])
def test_a_projected_feature_leaves_with_its_share_of_the_units(
    depth, bidirectional, from_state, projected, units_each
):
    """Where the units cannot be shared evenly, all of them stay."""
    torch.manual_seed(0)
    layer = nn.LSTM(4, UNITS, depth, proj_size=projected, bidirectional=bidirectional, batch_first=True)
    model = Tagger(layer, from_state)
    space = discover(model, torch.zeros(1, 3, STEPS))
    assert {group.name: group.size for group in space.groups} == {"conv": 4, "layer": projected}
    model.double()
    inputs = torch.randn(2, 3, STEPS, dtype=torch.double)
    for seed in range(3):
        present = random_structures(space, seed)
        small, width = extract(space, model, present), int(present[space.groups[1].structures].sum())
        assert torch.allclose(small(inputs), masked(space, model, present, inputs), rtol=0, atol=1e-12)
        assert (small.layer.proj_size, small.layer.hidden_size) == (width, units_each * width if units_each else UNITS)
        assert space.macs(present) == count_macs(small.float(), torch.zeros(1, 3, STEPS))


def test_the_language_model_grows_in_embedding_and_both_layers():
    space = discover(language_model(), EXAMPLE)
    assert {group.name: group.size for group in space.groups} == dict.fromkeys(
        ("embedding", "layers.0", "layers.1"), UNITS
    )
    assert list(space.fixed) == ["decoder"]
    per_step = 2 * 4 * UNITS * (UNITS + UNITS) + UNITS * WORDS
    assert space.macs(space.full()) == STEPS * per_step == count_macs(language_model(), EXAMPLE)


def test_gates_scale_every_unit_and_fold_away():
    model = language_model().double()
    space = discover(model, EXAMPLE)
    present = random_structures(space, 3)
    gated = GatedNetwork(space, present, extract(space, model, present))
    gates = torch.rand(len(space), dtype=torch.double).requires_grad_()
    inputs = words(3, goes_on=0)
    output = gated(inputs, gates)
    assert torch.allclose(gated.fold(gates)(inputs), output)
    output.square().sum().backward()
    assert torch.equal(gates.grad != 0, present)


def test_autocast_for_gpus_which_would_take_fp16_leaves_lstms_alone():
    model = create("lstm_200", 50, 1)
    seen = {}
    for name in ("embedding", "layers.0", "decoder"):
        model.get_submodule(name).register_forward_hook(
            lambda *_, name=name: seen.update({name: torch.is_autocast_enabled("cuda")})
        )
    torch.set_autocast_enabled("cuda", True)
    try:
        model(torch.zeros(2, 36, dtype=torch.int64))
    finally:
        torch.set_autocast_enabled("cuda", False)
    assert seen == {"embedding": True, "layers.0": False, "decoder": True}


def test_the_state_goes_on_and_starts_afresh():
    model = language_model()
    first, second = words(2, goes_on=0, seed=1), words(2, goes_on=1, seed=2)
    whole = torch.cat([first, second[:, 1:]], dim=1)
    together = model(whole)[:, STEPS:]
    model(first)
    assert torch.allclose(model(second), together, atol=1e-6)
    afresh = model(words(2, goes_on=0, seed=2))
    assert not torch.allclose(afresh, together)
    one_of_two = second.clone()
    one_of_two[0, 0] = 0
    model(first)
    mixed = model(one_of_two)
    assert torch.allclose(mixed[0], afresh[0], atol=1e-6) and torch.allclose(mixed[1], together[1], atol=1e-6)


@pytest.mark.parametrize("look", [count_macs, discover])
def test_counting_and_discovery_leave_the_state_as_it_was(look):
    model = language_model()
    model(words(3, goes_on=0))
    state = [(buffer, buffer.clone()) for buffer in model.buffers()]
    look(model, EXAMPLE)
    assert len(state) == 4 and all(now is was for now, (was, _) in zip(model.buffers(), state, strict=True))
    assert all(torch.equal(was, copied) for was, copied in state)


def test_the_state_follows_the_structure():
    model = language_model()
    space = discover(model, EXAMPLE)
    before, after = random_structures(space, 1), random_structures(space, 2)
    old, new = extract(space, model, before), extract(space, model, after)
    old(words(3, goes_on=0))
    carry_state(space, (before, old), (after, new))
    for index, group in enumerate(space.groups[1:]):
        had, has = before[group.structures], after[group.structures]
        for key in ("hidden", "cell"):
            kept = torch.zeros(3, group.size)
            kept[:, had] = getattr(old.layers[index], key)[0]
            kept[:, ~(had & has)] = 0
            assert torch.equal(getattr(new.layers[index], key)[0], kept[:, has])
    assert torch.isfinite(new(words(3, goes_on=1))).all()


def test_silent_newborn_units_leave_the_function_as_it_was():
    model = language_model().double()
    space = discover(model, EXAMPLE)
    before = random_structures(space, 1, share=0.4)
    after = before | random_structures(space, 2)
    inputs = words(2, goes_on=0)
    output = extract(space, model, before)(inputs)
    zero_init(space, model, before, after)
    assert torch.allclose(extract(space, model, after)(inputs), output, atol=1e-12)
    assert bool((model.embedding.weight != 0).all())  # newborn channels of the embedding are silent, yet can learn


def test_quiet_newborn_units_that_nothing_normalises_keep_their_initial_weights():
    model = language_model()
    space = discover(model, EXAMPLE)
    before = copy.deepcopy(model.state_dict())
    zero_init(space, model, random_structures(space, 1, share=0.4), space.full(), normalised_only=True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    "settings",
    [ScalingSettings(growth=0.5), SamplingSettings(growth=0.3, search=0.2)],
    ids=["scaling", "sampling"],
)
def test_growing_carries_the_state_over_its_restructurings(settings):
    batches = [(batch, batch[:, 1:]) for batch in (words(4, goes_on=step > 0, seed=step) for step in range(10))]
    job = Job(
        budget=0.6,
        seed=0,
        epochs=2,
        granularity=1,
        example=EXAMPLE,
        recipe=OwnRecipe(make=lambda network: torch.optim.SGD(network.parameters(), lr=0.5)),
        loss=lambda output, target: nn.functional.cross_entropy(output.flatten(0, 1), target.flatten()),
        build=language_model,
        train=OwnBatches(lambda epoch: batches, len(batches)),
    )
    model, growing = begin(job, settings)
    widths = []
    growing.after_step = lambda model: widths.append(model.network.layers[0].hidden.shape)
    list(job.fit(model, growing))
    assert len(set(widths)) > 1, "the network was never restructured"
    assert all(shape[1] == 4 for shape in widths)
    small = growing.finish(model)
    assert abs(count_macs(small, EXAMPLE) / count_macs(language_model(), EXAMPLE) - 0.6) < 0.1


def test_a_language_model_is_saved_and_loaded(tmp_path):
    from nasbench_grow.backbones import create

    full = create("lstm_200", WORDS)
    space = discover(full, EXAMPLE)
    small = extract(space, full, random_structures(space, 0)).eval()
    path = nasbench_grow.save(small, nasbench_grow.describe(small, full), tmp_path / "small.safetensors")
    inputs = words(2, goes_on=0)
    small(inputs)
    loaded = nasbench_grow.load(path)
    assert torch.equal(loaded(inputs), copy.deepcopy(small)(inputs))
