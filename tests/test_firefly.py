"""Firefly: what candidates do to the network's function, their scores, who stays, what is billed."""

import copy

import pytest
import torch
import torch.nn.functional as F
from backbone_spaces import CLASSES, example_of, space_of
from cells import small_cell
from killing import outcome, run_whole_and_in_pieces
from tiny_networks import Plain, Residual, small_job

from nasbench_grow import backbones
from nasbench_grow.backbones.lstm import LanguageModel
from nasbench_grow.base.errors import UserError
from nasbench_grow.baselines.firefly import Candidates, Descent, Firefly, Perturbations, Settings
from nasbench_grow.cost.macs import count_macs


class Words:
    """Batches of random words, of sequences that go on."""

    def __len__(self):
        return 16

    def steps_per_epoch(self, batch_size):
        return 2

    def batches(self, batch_size):
        return self.epoch(1, batch_size, 0)

    def epoch(self, epoch, batch_size, seed):
        generator = torch.Generator().manual_seed(epoch)
        for number in range(2):
            words = torch.randint(20, (8, 6), generator=generator)
            yield torch.cat([torch.full((8, 1), number), words[:, :5]], 1), words[:, 1:]


def language_job(**changes):
    job = small_job(
        lambda: LanguageModel(20, units=16, layers=2, dropout=0.0, scale=0.1),
        example=torch.zeros(1, 6, dtype=torch.long),
        loss=lambda output, targets: F.cross_entropy(output.flatten(0, 1), targets.flatten()),
        **changes,
    )
    job.train = Words()
    return job


JOBS = {
    "plain": lambda **changes: small_job(lambda: Plain(16), **changes),
    "residual": lambda **changes: small_job(lambda: Residual(16), **changes),
    "language": language_job,
}


def wide(name, monkeypatch=None):
    """A job, its first network, the model with all candidates, they, and the structures before; all of size zero where
    a patch is given."""
    if monkeypatch is not None:
        for constant in ("SPLIT", "OUTGOING"):
            monkeypatch.setattr(f"nasbench_grow.baselines.firefly.{constant}", 0.0)
    job = JOBS[name]()
    model = job.model()
    Descent(job, model, Settings(seed=0.3))
    old = copy.deepcopy(model.network).eval()
    candidates = Candidates(model.space, model.structures, torch.Generator().manual_seed(0))
    before = model.structures.clone()
    model.resize(candidates.present, newborn=candidates.join)
    return job, old, model, candidates, before


@pytest.mark.parametrize("name", JOBS)
def test_candidates_of_size_zero_change_no_function(name, monkeypatch):
    job, old, model, candidates, before = wide(name, monkeypatch)
    inputs = next(job.train.batches(8))[0]
    assert candidates.parents and candidates.new and bool(candidates.layers) == (name == "residual")
    torch.testing.assert_close(model.network.eval()(inputs), old(inputs), atol=1e-6, rtol=0)
    assert (model.structures & ~before).sum() == len(candidates.parents) + len(candidates.new) + len(candidates.layers)


@pytest.mark.parametrize("name", JOBS)
def test_where_no_candidate_stays_the_network_is_as_it_was(name):
    _, old, model, candidates, before = wide(name)
    model.resize(before, newborn=candidates.leave)
    for one, other in zip(model.network.parameters(), old.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", JOBS)
def test_scores_are_the_slopes_of_the_loss_by_the_size_of_each_candidate(name):
    """Against finite differences in double precision."""
    job, _, model, candidates, _ = wide(name)
    inputs, targets = next(job.train.batches(8))
    for layer in candidates.terminal:
        model.network.get_parameter(layer).detach().add_(0.1)
    network = model.network.double()
    inputs = inputs.double() if inputs.is_floating_point() else inputs

    def loss():
        for buffer in (each for each, _ in network.named_buffers() if each.endswith(("hidden", "cell"))):
            network.get_buffer(buffer).zero_()
        return job.loss(network(inputs), targets)

    perturbations = Perturbations(model, candidates)
    loss().backward()
    scores, space = perturbations.scores().double(), model.space

    def slope(change):
        values = []
        for size in (1e-5, -1e-5):
            kept = copy.deepcopy(network.state_dict())
            with torch.no_grad():
                change(size)
                values.append(float(loss()))
                network.load_state_dict(kept)
        return (values[0] - values[1]) / 2e-5

    def split(child):
        def change(size):
            for name, dim, children, parents, numbers in perturbations.pairs:
                weight, mine = perturbations.weights[name], numbers == child
                one, other = parents[mine], children[mine]
                apart = size * (weight.index_select(dim, one) - weight.index_select(dim, other)) / 2
                weight.index_add_(dim, one, apart).index_add_(dim, other, -apart)

        return change

    def new(number):
        def change(size):
            for name, dim, places, numbers in perturbations.outgoing:
                weight, at = perturbations.weights[name], places[numbers == number]
                weight.index_copy_(dim, at, (1 + size) * weight.index_select(dim, at))

        return change

    def block(index):
        def change(size):
            for name in space.layers[index].terminal:
                perturbations.weights[name].mul_(1 + size)

        return change

    for child in list(candidates.parents)[::7]:
        assert float(scores[child]) == pytest.approx(slope(split(child)), rel=1e-3, abs=1e-7)
    for number in candidates.new[::7]:
        assert float(scores[number]) == pytest.approx(slope(new(number)), rel=1e-3, abs=1e-7)
    for index in candidates.layers:
        assert float(scores[space.filters + index]) == pytest.approx(slope(block(index)), rel=1e-3, abs=1e-7)
    assert scores.abs().max() > 1e-5


@pytest.mark.parametrize("name", JOBS)
def test_only_perturbations_learn_and_pairs_stay_opposite(name):
    job, _, model, candidates, before = wide(name)
    start = {each: weight.detach().clone() for each, weight in model.network.named_parameters()}
    Descent.scores(_scoring(job), model, candidates)
    assert any(not torch.equal(weight, start[each]) for each, weight in model.network.named_parameters())
    model.resize(before, newborn=candidates.leave)
    again = JOBS[name]()
    fresh = again.model()
    Descent(again, fresh, Settings(seed=0.3))
    for one, other in zip(model.network.parameters(), fresh.network.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def _scoring(job):
    """A callback that scores on two batches each."""
    descent = Descent.__new__(Descent)
    descent.job, descent.settings = job, Settings(learning=0.1)
    return descent


def test_the_candidates_with_the_most_negative_scores_stay(monkeypatch):
    job = small_job(lambda: Plain(16))
    model = job.model()
    descent = Descent(job, model, Settings(seed=0.2))
    before = model.structures.clone()
    scores = torch.zeros(len(model.space))
    favoured = model.space.groups[2].structures
    scores[favoured] = -1.0
    monkeypatch.setattr(Descent, "scores", lambda *_: scores)
    descent.grow(model, 0.3 * job.dense_macs)
    grown = model.structures & ~before
    assert model.structures[favoured].all() and model.macs <= 0.3 * job.dense_macs
    assert int(grown.sum()) > int(grown[favoured].sum()), "the rest of the step goes to the others"


@pytest.mark.parametrize(
    "name, granularity",
    [
        ("cifar_resnet20", 1),
        ("cifar_resnet20", 8),
        ("cifar_vgg16_bn", 1),
        ("cifar_mobilenetv2", 8),
        ("deeplabv3plus_thin", 1),
    ],
)
def test_the_budget_is_met_on_every_backbone(name, granularity, monkeypatch):
    monkeypatch.setattr(
        Descent, "scores", lambda descent, model, _: torch.randn(len(model.space), generator=descent.draws)
    )
    job = small_job(lambda: backbones.create(name, CLASSES, 3), example=example_of(name), granularity=granularity)
    model = job.model()
    model.space = space_of(name)
    descent = Descent(job, model, Settings(steps=2))
    for share in (0.15, 0.5):
        descent.grow(model, share * job.dense_macs)
    assert 0.48 <= model.macs / job.dense_macs <= 0.5
    assert all(model.structures[group.structures].any() for group in model.space.groups)


@pytest.mark.parametrize("name", JOBS)
def test_every_pass_on_candidates_is_billed(name):
    job = JOBS[name](epochs=4)
    wides = []
    grow = Descent.grow

    def watched(descent, model, limit):
        candidates = Candidates(model.space, model.structures, torch.Generator().manual_seed(0))
        wides.append(model.space.macs(candidates.present))
        grow(descent, model, limit)

    Descent.grow, macs = watched, []
    try:
        stages = Firefly(Settings(growth=0.5, steps=2, learning=0.25)).run(job)
        macs = [count_macs(stage.network, job.example) for stage in stages]
    finally:
        Descent.grow = grow
    assert len(wides) == 2 and macs[0] < macs[1] < macs[2] == macs[3]
    assert 0.46 <= macs[-1] / job.dense_macs <= 0.5
    # two of eight batches to learn and two to score, of eight samples, forward and backward
    assert job.meter.spent["calibration"] == sum(3 * 8 * 4 * cost for cost in wides)
    assert job.meter.spent["training"] == 3 * 8 * 2 * sum(macs)


def test_growth_in_the_middle_of_an_epoch_survives_kills(tmp_path):
    cell = small_cell(method="firefly[growth=0.8,steps=3]", budget=0.5, epochs=3, backbone="tiny_residual")
    whole, pieces = run_whole_and_in_pieces(cell, tmp_path)
    assert whole["status"] == "ok", whole["error"]
    assert outcome(pieces) == outcome(whole)


@pytest.mark.parametrize("wrong", [{"seed": 0.0}, {"learning": 2.0}, {"rate": 0.0}, {"steps": 0}])
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(UserError, match=f"{next(iter(wrong))} .* is out of range"):
        Settings(**wrong)
    with pytest.raises(UserError, match="growth 1 leaves nothing"):
        Settings(growth=1.0)
