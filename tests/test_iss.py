"""ISS: which weights are a unit's structure, that zero units leave without a trace, the budget, and resuming."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from tiny_networks import FewBatches, Kept, Plain, seeded
from torch import Tensor, nn

from nasbench_grow import count_macs
from nasbench_grow.backbones.lstm import LanguageModel
from nasbench_grow.base.errors import UserError
from nasbench_grow.baselines.iss import Iss, Settings, Sparsifying, structure_norms
from nasbench_grow.contract import Batch, Job, Recipe
from nasbench_grow.tasks.digits import Digits

WORDS, LENGTH, STEPS, BATCH = 7, 5, 4, 2
EXAMPLE = torch.zeros(1, 1 + LENGTH, dtype=torch.int64)


class Text(FewBatches):
    """Batches of random words."""

    def __init__(self) -> None:
        super().__init__(STEPS, BATCH, (1 + LENGTH,))

    def epoch(self, epoch: int, batch_size: int, seed: int) -> Iterator[Batch]:
        draws = torch.Generator().manual_seed(epoch)
        for _ in range(STEPS):
            text = torch.randint(WORDS, (BATCH, LENGTH + 1), generator=draws)
            yield torch.cat([torch.ones(BATCH, 1, dtype=torch.int64), text[:, :-1]], 1), text[:, 1:]


def loss(output: Tensor, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output.flatten(0, 1), target.flatten(), reduction="sum") / len(target)


def language_model(units: int = 4, dropout: float = 0.0) -> LanguageModel:
    return seeded(lambda: LanguageModel(WORDS, units, layers=2, dropout=dropout, scale=0.3))


def job(units: int = 40, dropout: float = 0.0, **changes: object) -> Job:
    arguments = {"budget": 0.5, "seed": 0, "epochs": 6, "granularity": 1, "loss": loss, "train": Text()}
    arguments |= {"recipe": Recipe(batch_size=BATCH, learning_rate=1.0, momentum=0.0, weight_decay=0.0)}
    arguments |= {"example": EXAMPLE, "build": lambda: language_model(units, dropout)}
    return Job(**{**arguments, **changes})


def run(method: Iss, job: Job) -> tuple[nn.Module, list[int]]:
    """The network returned, and the MACs at the end of each stage."""
    stages, macs = method.run(job), []
    while True:
        try:
            macs.append(count_macs(next(stages).network, EXAMPLE))
        except StopIteration as end:
            return end.value, macs


def structure(layer: int, unit: int, size: int = 4) -> list[tuple[str, int, int]]:
    """Every entry of a unit's intrinsic sparse structure (figure 2), listed by hand: weight, row, column."""
    gates = [unit, size + unit, 2 * size + unit, 3 * size + unit]
    made = [(f"layers.{layer}.weight_{kind}_l0", row, column) for kind in ("ih", "hh") for row in gates
            for column in range(size)]  # fmt: skip
    recurrent = [(f"layers.{layer}.weight_hh_l0", row, unit) for row in range(4 * size)]
    if layer == 0:
        return made + recurrent + [("layers.1.weight_ih_l0", row, unit) for row in range(4 * size)]
    return made + recurrent + [("decoder.weight", word, unit) for word in range(WORDS)]


def numbers(layer: int) -> slice:
    """Where a layer's units stand among the structures; the four columns of the embedding come first."""
    return slice(4 + 4 * layer, 8 + 4 * layer)


def test_the_price_is_that_of_the_structures_listed_by_hand():
    tiny = job(4)
    model = tiny.model()
    weights = {name: weight.detach() for name, weight in model.network.named_parameters()}
    expected, means = 0.0, []
    for layer in range(2):
        for unit in range(4):
            entries = [float(weights[name][row, column]) ** 2 for name, row, column in structure(layer, unit)]
            expected += sum(entries) ** 0.5
            means.append((sum(entries) / len(entries)) ** 0.5)
    price = Sparsifying(tiny, model, Settings(strength=0.5)).penalty(model)
    assert float(price) == pytest.approx(0.5 * expected, rel=1e-4)
    assert structure_norms(model)[4:].tolist() == pytest.approx(means, rel=1e-5)


def test_units_of_zeros_leave_and_the_output_stays():
    tiny = job(4, budget=0.3)
    model = tiny.model()
    weights = dict(model.network.named_parameters())
    with torch.no_grad():
        for layer, unit in ((0, 2), (1, 0), (1, 3)):
            for name, row, column in structure(layer, unit):
                weights[name][row, column] = 0.0
    inputs, _ = next(Text().epoch(1, BATCH, 0))
    before = model.network.eval()(inputs)
    Sparsifying(tiny, model, Settings()).after_epoch(model)
    assert model.present[numbers(0)].tolist() == [True, True, False, True]
    assert model.present[numbers(1)].tolist() == [False, True, True, False]
    for layer in model.network.layers:
        layer.hidden, layer.cell = layer.hidden[:, :0], layer.cell[:, :0]  # begin the text anew
    assert torch.allclose(model.network.eval()(inputs), before, atol=1e-6)


def test_one_weight_left_of_a_structure_keeps_the_unit():
    tiny = job(4, budget=0.3)
    model = tiny.model()
    weights = dict(model.network.named_parameters())
    with torch.no_grad():
        for name, row, column in structure(1, 2)[:-1]:
            weights[name][row, column] = 0.0
    Sparsifying(tiny, model, Settings()).after_epoch(model)
    assert model.structures.all()


def test_small_weights_become_zero_while_the_network_is_too_large():
    model = job(4).model()
    callback = Sparsifying(job(4), model, Settings(threshold=0.1))
    callback.after_step(model)
    values = torch.cat([weight.detach().flatten() for weight in model.network.parameters()])
    assert (values == 0).any() and values[values != 0].abs().min() >= 0.1
    within = job(4, budget=1.0)
    assert Sparsifying(within, within.model(), Settings()).penalty(model) is None


def test_a_strong_price_empties_units_and_ends_at_the_budget():
    strong = Iss(Settings(strength=2.0, threshold=0.02, sparse_share=1.0))
    small = job(epochs=12)
    network, macs = run(strong, small)
    assert macs[-2] < small.dense_macs, "before the cut"
    assert 0.48 <= count_macs(network, EXAMPLE) / small.dense_macs <= 0.5


@pytest.mark.parametrize("granularity", [1, 8])
def test_it_meets_the_budget_after_its_share_leaves_the_embedding_and_is_billed(granularity):
    small = job(64, granularity=granularity)
    network, macs = run(Iss(), small)
    dense, final = small.dense_macs, count_macs(network, EXAMPLE)
    assert 0.48 <= final / dense <= 0.5
    assert macs == [dense, dense, *[final] * 4], "0.33 of six epochs is two"
    assert small.meter.total == 3 * BATCH * STEPS * sum(macs)
    assert network.embedding.embedding_dim == 64


def test_layers_of_different_size_lose_alike():
    network, _ = run(Iss(), job(64))
    widths = [layer.hidden_size for layer in network.layers]
    assert min(widths) > 64 / 4, "though a structure of the first layer has more weights than one of the second"


def test_dropout_is_weaker():
    network, _ = run(Iss(Settings(dropout=0.5)), job(dropout=0.6))
    assert network.dropout.p == pytest.approx(0.3)


@pytest.mark.parametrize("epoch", range(1, 6))
def test_a_run_taken_up_ends_with_the_same_bits(epoch):
    method = Iss(Settings(strength=0.5, threshold=0.02, sparse_share=0.7))
    whole, _ = run(method, job())
    kept = Kept()
    stages = method.run(job(storage=kept))
    for _ in range(epoch):
        next(stages)
    stages.close()
    pieces, _ = run(method, job(storage=kept))
    assert all(torch.equal(weights, pieces.state_dict()[name]) for name, weights in whole.state_dict().items())


def test_it_skips_what_has_no_lstm():
    assert "no LSTM" in (Iss().skip(Digits(), Plain()) or "")
    assert Iss().skip(Digits(), language_model()) is None


@pytest.mark.parametrize("wrong", [{"strength": 0.0}, {"threshold": -1e-4}, {"dropout": 0.0}, {"sparse_share": 1.5}])
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(UserError, match=f"{next(iter(wrong))} .* is out of range"):
        Settings(**wrong)
