"""What a growing run promises: its budget, its cost, what it touches, and that it can stop and go on."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_networks import EXAMPLE, Kept, Plain, Residual, seeded, small_job
from torch import Tensor, nn

from nasbench_grow.backbones import create
from nasbench_grow.base.errors import UserError
from nasbench_grow.contract import Job, Stage
from nasbench_grow.cost.macs import count_macs
from nasbench_grow.growing.beginning import Settings, begin
from nasbench_grow.growing.relaxation import RelaxationSettings
from nasbench_grow.growing.sampling import SamplingSettings
from nasbench_grow.growing.scaling import ScalingSettings

RELAXED, SCALED, SAMPLED = RelaxationSettings(periods=8), ScalingSettings(), SamplingSettings(least_search=0)
KINDS = {"relaxation": RELAXED, "scaling": SCALED, "sampling": SAMPLED}
every = pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)


def growing_run(job: Job, settings: Settings) -> Generator[Stage, None, nn.Module]:
    """The stages of a run, and the network that it returns."""
    model, growing = begin(job, settings)
    return growing.run(job, model)


def resnet20() -> nn.Module:
    return create("cifar_resnet20", 10, 1)


def wide() -> nn.Module:
    """So many filters that one costs less than the 0.02 by which a budget may be missed."""
    return Plain(48)


class Run:
    """A run that can be stopped after every step: each epoch of its job is one step."""

    def __init__(
        self, make: Callable[[], nn.Module] = Residual, settings: Settings = SCALED, steps: int = 16, **changes: Any
    ) -> None:
        self.job = small_job(make, epochs=steps, steps=1, **changes)
        self.model, self.growing = begin(self.job, settings)
        self.masks, self.space = self.growing.masks, self.model.space
        self.stages = self.job.fit(self.model, self.growing)

    @property
    def cost(self) -> float:
        return self.model.macs / self.space.macs(self.space.full())

    def train(self, steps: int) -> list[Stage]:
        return [next(self.stages) for _ in range(steps)]

    def evaluated(self) -> nn.Module:
        return self.growing.evaluated(self.model)

    def finish(self) -> nn.Module:
        return self.growing.finish(self.model)


def ended(stages: Any) -> nn.Module:
    """What a run returns."""
    while True:
        try:
            next(stages)
        except StopIteration as end:
            return end.value


def tensors(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def there(run: Run, name: str, tensor: Tensor) -> Tensor:
    """Which entries of a dense tensor the present structures own, as a mask of its shape."""
    mask, present = torch.ones(tensor.shape, dtype=torch.bool), run.model.structures
    if not run.space.layer_present(present, run.space.layer_of(name)):
        return torch.zeros_like(mask)
    for dim in range(tensor.ndim):
        kept = run.space.kept(present, (name, dim))
        if kept is not None:
            along = torch.zeros(tensor.shape[dim], dtype=torch.bool)
            along[kept] = True
            mask &= along.view([-1 if axis == dim else 1 for axis in range(tensor.ndim)])
    return mask


# --- budget, commitment, growth ---


RUNS = [(resnet20, 10, 0), (wide, 10, 1), (wide, 40, 2)]
CASES = [("scaling", *run, budget) for run in RUNS for budget in (0.25, 0.5, 0.75)]
CASES += [("scaling", wide, 160, 3, 0.5), ("sampling", resnet20, 5, 0, 0.5), ("sampling", wide, 40, 2, 0.25)]
CASES += [("sampling", wide, 10, 1, budget) for budget in (0.25, 0.5, 0.75, 1.0)]


@pytest.mark.parametrize("kind, make, epochs, seed, budget", CASES)
def test_the_returned_network_meets_the_budget_and_is_the_last_sampled_one(kind, make, epochs, seed, budget):
    job = small_job(make, epochs=epochs, budget=budget, seed=seed, batch_size=4)
    returned = ended(growing_run(job, KINDS[kind])).eval()
    assert abs(count_macs(returned, EXAMPLE) / job.dense_macs - budget) <= 0.02
    inputs = torch.randn(4, 1, 8, 8)
    assert torch.equal(job.sampled.eval()(inputs), returned(inputs))


GRADUAL = [(SCALED, Residual, 40, 0.25), (SCALED, Residual, 40, 0.5), (SCALED, resnet20, 40, 0.75)]
GRADUAL += [(SAMPLED, Residual, 20, 0.25), (SAMPLED, Residual, 20, 0.5), (SAMPLED, Residual, 6, 1.0)]


@pytest.mark.parametrize("settings, make, steps, budget", GRADUAL)
def test_growth_is_gradual_from_one_filter_a_layer(settings, make, steps, budget):
    run = Run(make, settings, steps=steps, budget=budget, batch_size=2)
    assert set(run.space.widths(run.model.present).values()) == {0, 1}
    assert run.model.macs == run.space.macs(run.space.seed()) == count_macs(run.model.network, EXAMPLE)
    costs = [run.cost]
    for _ in range(steps):
        (stage,) = run.train(1)
        costs.append(run.cost)
    changes = [abs(after - before) for before, after in pairwise(costs)]
    assert max(changes) <= 0.25
    assert stage.log["largest_step"] == pytest.approx(max(changes))
    assert costs[-1] > 10 * costs[0]


def test_removable_layers_appear():
    run = Run(steps=20)
    layers = run.space.filters
    assert not run.masks.present[layers:].any()
    assert isinstance(run.model.network.get_submodule("blocks.1"), nn.Identity)
    run.train(20)
    assert run.masks.present[layers:].any()
    grown = [layer.name for index, layer in enumerate(run.space.layers) if run.masks.present[layers + index]]
    returned = run.finish()
    for layer in run.space.layers:
        assert isinstance(returned.get_submodule(layer.name), nn.Identity) == (layer.name not in grown)


class FixedStream(Residual):
    """All that can be grown lies inside the blocks: their seed is nothing at all."""

    def forward(self, x: Tensor) -> Tensor:
        mixed = F.softmax(self.norm(self.stem(x)), dim=1)
        return self.fc(self.blocks(mixed).mean((2, 3)))


@every
def test_a_seed_that_has_nothing_to_scale_grows_all_the_same(settings):
    run = Run(FixedStream, settings, budget=0.6)
    assert all(group.layer is not None for group in run.space.groups)
    assert not run.masks.present[run.space.filters :].any()
    run.train(16)
    assert run.finish()(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert settings is RELAXED or run.masks.present[run.space.filters :].any()


def test_the_log_tells_scheduled_and_actual_cost():
    run = Run(Plain, replace(SCALED, growth=0.5), budget=0.4)
    seed = run.cost
    start = run.train(1)[0].log
    assert start["cost"] == pytest.approx(seed) == start["target"]
    run.train(3)
    middle = run.train(1)[0].log  # four of the eight steps of growth are done
    assert middle["target"] == pytest.approx(seed + 0.5 * (0.4 - seed))
    end = run.train(11)[-1].log
    assert (end["target"], end["cost"]) == (pytest.approx(0.4), pytest.approx(run.cost))


@every
def test_the_network_now_is_an_ordinary_module_that_computes_what_is_trained(settings):
    run = Run(settings=settings)
    run.train(9)
    network = run.evaluated().eval()
    inputs = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        run.model.network.eval()
        trained = run.growing.forward(run.model, run.model.network, inputs)
    assert torch.allclose(network(inputs), trained, atol=1e-5)
    assert count_macs(network, EXAMPLE) == run.model.macs
    assert type(network) is Residual


@every
def test_a_run_can_be_finished_twice(settings):
    run = Run(settings=settings)
    run.train(6)
    assert same(tensors(run.finish()), tensors(run.finish()))


# --- what it costs and what it touches ---


@every
def test_the_training_meter_counts_the_networks_that_ran(settings):
    weighs = settings is SAMPLED
    run = Run(settings=replace(settings, search=0.5) if weighs else settings, batch_size=5)
    total = weighed = 0
    for _ in range(16):
        run.train(1)
        weighed += run.masks.weighs
        total += 5 * 3 * count_macs(run.model.network, EXAMPLE)
        assert run.job.meter.spent["training"] == total, "weighing costs nothing: the gradients are there"
        assert sum(run.job.meter.spent.values()) == total
    assert (weighed > 0) == weighs


@every
def test_absent_structures_are_not_touched(settings):
    if settings is SAMPLED:
        settings = replace(settings, newborn="initial")  # others are joined by zeros
    run = Run(settings=settings, batch_size=4)
    absent = 0
    for _ in range(16):
        before = tensors(run.model.dense)
        mine = {name: there(run, name, tensor) for name, tensor in before.items()}
        run.train(1)  # where a period ends, this first writes back what was present until then
        for name, tensor in run.model.dense.state_dict().items():
            assert torch.equal(tensor[~mine[name]], before[name][~mine[name]]), name
        absent += sum(int((~mask).sum()) for mask in mine.values())
    assert absent > 0


def test_what_was_trained_is_written_back():
    run = Run(settings=replace(SCALED, periods=5, growth=1.0), steps=15, batch_size=4)
    for steps in (3, 2, 2, 2):
        run.train(steps)  # to the end of a period
        trained, present = tensors(run.model.network), run.masks.present
        mine = {name: there(run, name, tensor) for name, tensor in run.model.dense.state_dict().items()}
        run.train(1)
        assert not torch.equal(run.model.structures, present)
        for name, tensor in trained.items():
            assert torch.equal(run.model.dense.state_dict()[name][mine[name]], tensor.flatten()), name


@every
def test_only_the_present_structures_have_weights_and_optimizer_state(settings):
    run = Run(settings=settings, batch_size=4)
    for _ in range(16):
        run.train(1)
        sizes = dict(run.space.sizes(run.masks.present))
        assert {name: tuple(tensor.shape) for name, tensor in run.model.network.state_dict().items()} == sizes
        trained = {id(parameter) for parameter in run.model.network.parameters()}
        optimized = [parameter for group in run.model.optimizer.param_groups for parameter in group["params"]]
        assert {id(parameter) for parameter in optimized} == trained and len(optimized) == len(trained)
        assert {id(parameter) for parameter in run.model.optimizer.state} <= trained
        for parameter, state in run.model.optimizer.state.items():
            assert state["momentum_buffer"].shape == parameter.shape


@every
def test_survivors_keep_their_momentum_and_newborn_filters_start_with_none(settings):
    run = Run(Plain, settings)
    moved = 0
    for _ in range(16):
        run.train(1)
        before, network, optimizer = run.model.present, run.model.network, run.model.optimizer
        after = run.space.full()
        run.model.resize(after)
        for index, (name, parameter) in enumerate(run.model.network.named_parameters()):
            momentum = run.model.optimizer.state[parameter]["momentum_buffer"]
            old = optimizer.state[dict(network.named_parameters())[name]]["momentum_buffer"]
            axes = [run.space.kept(before, (name, dim)) for dim in range(parameter.ndim)]
            kept = [torch.arange(n) if axis is None else axis for n, axis in zip(parameter.shape, axes, strict=True)]
            grid = torch.meshgrid(*kept, indexing="ij")
            assert torch.equal(momentum[grid], old), index
            rest = momentum.clone()
            rest[grid] = 0
            assert not rest.any()
            moved += int(old.count_nonzero())
        run.model.resize(before)
    assert moved > 0


def test_zero_initialised_newborns_leave_the_function_as_it_was():
    run = Run(settings=replace(SCALED, newborn="zero", growth=1.0, periods=16))
    inputs = torch.randn(4, 1, 8, 8)
    seen, births = [], []
    resize = run.model.resize

    def watched(present: Tensor, newborn: Any = "initial") -> None:
        run.model.network.eval()
        with torch.no_grad():
            before = run.model.network(inputs)
            grew = run.space.effective(present).sum() > run.space.effective(run.model.structures).sum()
            resize(present, newborn)
            seen.append((run.model.network.eval()(inputs) - before).abs().max())
        births.append(bool(grew))
        run.model.network.train()

    run.model.resize = watched
    run.train(16)
    assert sum(births) >= 5
    assert max(seen) <= 1e-5


# --- learning rates ---


def test_the_learning_rate_is_that_of_the_step():
    asked = []

    def rate(progress: float) -> float:
        asked.append(progress)
        return progress

    run = Run(Plain, steps=10, rate=rate)
    for step in range(1, 11):
        (stage,) = run.train(1)
        assert stage.learning_rate == pytest.approx(step / 10)
        assert all(group["lr"] == pytest.approx(step / 10) for group in run.model.optimizer.param_groups)
    assert sorted(set(asked)) == pytest.approx([step / 10 for step in range(1, 11)])


def test_groups_with_learning_rates_of_their_own_keep_their_ratio_through_every_restructuring():
    def optimizer(network: nn.Module) -> torch.optim.Optimizer:
        weights = [parameter for parameter in network.parameters() if parameter.ndim > 1]
        others = [parameter for parameter in network.parameters() if parameter.ndim <= 1]
        return torch.optim.SGD([{"params": weights, "lr": 0.2}, {"params": others, "lr": 0.05}], momentum=0.9)

    run = Run(Plain, steps=10, optimizer=optimizer, rate=lambda progress: 1 - 0.5 * progress)
    for step in range(1, 11):
        run.train(1)
        rates = [group["lr"] for group in run.model.optimizer.param_groups]
        assert rates == pytest.approx([1 - 0.05 * step, 0.25 * (1 - 0.05 * step)])
    assert run.model.macs > 3 * run.space.macs(run.space.seed())


def test_the_mean_loss_of_the_epoch_is_told():
    seen = []

    def loss(output: Tensor, target: Tensor) -> Tensor:
        seen.append(F.cross_entropy(output, target))
        return seen[-1]

    job = small_job(Plain, steps=3, loss=loss)
    stage = next(growing_run(job, SCALED))
    assert stage.loss == pytest.approx(sum(value.item() for value in seen) / 3)


# --- stopping and going on ---


@pytest.mark.parametrize("stop", [4, 7, 9], ids=["at a period's end", "within a period", "within another"])
@pytest.mark.parametrize(
    "settings",
    [RELAXED, replace(SCALED, periods=8, growth=1.0), replace(SAMPLED, periods=4, growth=0.25, search=0.5)],
    ids=KINDS,
)
def test_a_run_continues_bit_by_bit_from_what_was_kept(settings, stop):
    straight = Run(settings=settings, seed=5)
    straight.train(16)

    kept = Kept()
    first = Run(settings=settings, seed=5, storage=kept)
    first.train(stop + 1)  # of which the last one was not kept before the run was killed
    second = Run(settings=settings, seed=5, storage=kept)
    (stage,) = second.train(1)
    assert second.job.clock.end == stop + 1
    assert same(tensors(stage.network), tensors(first.evaluated()))
    second.train(16 - stop - 1)

    assert torch.equal(second.masks.present, straight.masks.present)
    assert same(tensors(second.evaluated()), tensors(straight.evaluated()))
    assert same(tensors(second.finish()), tensors(straight.finish()))
    assert second.job.meter.total == straight.job.meter.total


@every
def test_the_same_seed_gives_the_same_networks_and_another_seed_others(settings):
    if settings is SAMPLED:
        settings = replace(settings, search=0.5, layer_start=0.0)  # a layer is as likely there as not

    def present(seed: int) -> Tensor:
        run = Run(settings=settings, seed=seed, batch_size=4)
        networks = []
        for _ in range(16):
            run.train(1)
            networks.append(run.masks.present)
        return torch.stack(networks)

    assert torch.equal(present(1), present(1))
    assert not torch.equal(present(1), present(2))


# --- the elastic model ---


def test_a_model_that_was_never_resized_is_the_dense_one():
    model = small_job(Residual).model()
    assert model.network is model.dense and model.present is None
    assert torch.equal(model.structures, model.space.full())
    assert model.macs == count_macs(model.dense, EXAMPLE)
    state = model.state_dict()
    assert state["dense"] is None, "its weights are kept once"
    other = small_job(lambda: seeded(Residual, 3)).model()
    other.resize(other.space.seed())
    other.load_state_dict(state)
    assert other.network is other.dense and same(tensors(other.network), tensors(model.network))


def test_resizing_to_what_is_there_changes_nothing():
    model = small_job(Residual).model()
    model.unchanged = 3
    optimizer = model.optimizer
    model.resize(model.space.full())
    assert (model.network is model.dense, model.optimizer is optimizer, model.unchanged) == (True, True, 3)

    model.resize(model.space.seed())
    network, optimizer = model.network, model.optimizer
    assert model.unchanged == 0
    model.unchanged = 2
    model.resize(model.space.seed(), "zero")
    assert (model.network is network, model.optimizer is optimizer, model.unchanged) == (True, True, 2)


def test_the_structures_that_were_asked_for_may_be_written_over():
    model = small_job(Residual).model()
    wanted = model.space.seed()
    model.resize(wanted)
    wanted[:] = True
    assert torch.equal(model.structures, model.space.seed())
    model.resize(wanted)
    assert model.macs == count_macs(Residual(), EXAMPLE)


# --- bad input ---


def refused(message: str, **changes: Any) -> None:
    with pytest.raises(UserError, match=message) as caught:
        Run(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("budget", [0.0, -0.5, 1.01, float("nan")])
def test_a_budget_outside_its_range_is_refused(budget):
    refused(r"outside \(0, 1\]", budget=budget)


@every
def test_a_budget_below_the_seed_is_refused(settings):
    refused("below the seed network's own cost", budget=1e-5, settings=settings)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), "nothing in this model can be grown"),
        (lambda: nn.Sequential(nn.Conv2d(1, 10, 8), nn.Flatten()), "nothing in this model can be grown"),
        (lambda: nn.Sequential(nn.AvgPool2d(2), nn.Flatten()), "no parameters: there is nothing to train"),
    ],
    ids=["one linear layer", "one convolution", "no weights"],
)
def test_a_model_with_nothing_to_grow_is_refused(make, message):
    refused(message, make=make)


def test_training_data_that_end_before_they_said_are_named():
    job = small_job(Plain, steps=3)
    job.train.steps_per_epoch = lambda batch_size: 5
    with pytest.raises(UserError, match="end after 3 of the 5 batches that epoch 1 should have"):
        next(growing_run(job, SCALED))
