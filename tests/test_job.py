"""What a method asks of its job: schedules, spans, samples, and moments of a step."""

import pytest
import torch
import torch.nn.functional as F
from cells import small_cell, use_methods
from tiny_networks import EXAMPLE, Plain, seeded
from torch import nn

from nasbench_grow import select, uniform_keys
from nasbench_grow.base.errors import UserError
from nasbench_grow.baselines.dense import Dense
from nasbench_grow.contract import Callback, Job, Recipe
from nasbench_grow.cost.macs import count_macs
from nasbench_grow.structure.widths import output_channels

BATCH = 4
STEPS = 5
"""Of an epoch."""


class Numbered:
    """Inputs that hold their own number, in another order each epoch; the last two batches are held out."""

    def __init__(self, batches=STEPS):
        self.numbers = list(range(batches * BATCH))
        self.drawn = []

    def __len__(self):
        return len(self.numbers)

    def steps_per_epoch(self, batch_size):
        return len(self.numbers) // batch_size

    def batches(self, batch_size):
        for start in range(0, len(self.numbers), batch_size):
            numbers = torch.tensor(self.numbers[start : start + batch_size])
            yield numbers.view(-1, 1, 1, 1).expand(-1, 1, 8, 8).float(), numbers % 10

    def epoch(self, epoch, batch_size, seed):
        order = torch.randperm(len(self.numbers), generator=torch.Generator().manual_seed(epoch))
        for chosen in order.split(batch_size):
            self.drawn.append((epoch, chosen.tolist()))
            yield chosen.view(-1, 1, 1, 1).expand(-1, 1, 8, 8).float(), chosen % 10

    def hold_out(self, share, batch_size):
        rest, judged = Numbered(), Numbered()
        rest.numbers, judged.numbers = self.numbers[: -2 * BATCH], self.numbers[-2 * BATCH :]
        return rest, judged


def job_of(epochs=4, **changes):
    return Job(
        budget=0.5,
        seed=0,
        epochs=epochs,
        granularity=1,
        example=EXAMPLE,
        recipe=Recipe(batch_size=BATCH, learning_rate=1e-3),
        loss=F.cross_entropy,
        build=lambda: seeded(Plain),
        train=Numbered(),
        **changes,
    )


class Rates(Callback):
    """Notes the learning rate of every step."""

    def __init__(self):
        self.found = []

    def after_step(self, model):
        self.found.append(model.optimizer.param_groups[0]["lr"])


def rates_of(job, *trainings):
    rates, model = Rates(), job.model()
    for training in trainings:
        list(job.fit(model, rates, **training))
    return rates.found


@pytest.mark.parametrize(
    "trainings", [({"epochs": 2}, {}), ({"epochs": 0.4}, {"epochs": 1.2}, {}), ({"epochs": 4}, {})]
)
def test_trainings_one_after_the_other_go_through_the_recipes_one_schedule(trainings):
    recipe, steps = job_of().recipe, 4 * STEPS
    assert rates_of(job_of(), *trainings) == [recipe.learning_rate_at((step + 1) / steps) for step in range(steps)]


def test_parts_of_an_epoch_draw_each_sample_once():
    job = job_of(epochs=2)
    rates_of(job, {"epochs": 0.4}, {"epochs": 1.2}, {})
    for epoch in (1, 2):
        drawn = {tuple(numbers) for number, numbers in job.train.drawn if number == epoch}
        assert sorted(sum(drawn, ())) == job.train.numbers


def test_spans_join_to_the_whole_schedule_and_go_on_to_other_batches():
    job = job_of()
    joined = rates_of(job, {"epochs": 2, "span": (0, 0.5)}, {"epochs": 2, "span": (0.5, 1)})
    assert joined == pytest.approx(rates_of(job_of(), {}))
    assert {epoch for epoch, _ in job.train.drawn} == {1, 2, 3, 4}


def test_a_span_without_a_length_is_as_long_as_the_run():
    assert rates_of(job_of(), {"span": (0, 1)}) == rates_of(job_of(), {})


def test_more_epochs_than_the_schedule_has_left_are_refused():
    with pytest.raises(UserError, match=r"^3 epochs cannot be trained, because 2 of the run's 4 are left; .* span"):
        rates_of(job_of(), {"epochs": 2}, {"epochs": 3})


def test_a_trial_leaves_the_model_as_it_was_and_the_callback_as_it_became():
    job = job_of(score=lambda network, split: 0.5)
    model, rates = job.model(), Rates()
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    list(job.trial(model, rates, epochs=2))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.network.state_dict().items())
    assert not model.optimizer.state
    assert len(rates.found) == 2 * (STEPS - 2)


def test_a_trial_goes_through_the_part_of_the_schedule_that_it_is_given_on_the_samples_that_a_fit_then_draws():
    job = job_of(score=lambda network, split: 0.5)
    rest, judged = job.search_splits
    assert (len(rest), len(judged)) == ((STEPS - 2) * BATCH, 2 * BATCH)
    model, rates = job.model(), Rates()
    list(job.trial(model, rates, epochs=1, span=(0.5, 0.5), rate=0.1))
    assert rates.found == [0.1 * job.recipe.learning_rate_at(0.5)] * (STEPS - 2)
    tried = [*rest.drawn]
    list(job.fit(model, epochs=1, span=(0.5, 0.5), searching=True))
    assert rest.drawn == 2 * tried


def test_what_is_changed_after_a_step_is_what_the_next_one_starts_from():
    class Clamps(Callback):
        largest = ()

        def before_step(self, model, step, steps):
            self.largest += (float(model.network.fc.weight.abs().max()),)

        def after_step(self, model):
            with torch.no_grad():
                model.network.fc.weight.clamp_(-0.01, 0.01)

    job, clamps = job_of(), Clamps()
    list(job.fit(job.model(), clamps, epochs=1))
    assert clamps.largest[0] > 0.1
    assert max(clamps.largest[1:]) == pytest.approx(0.01)


def test_a_step_is_billed_for_the_network_that_took_it():
    class Shrinks(Callback):
        def after_step(self, model):
            small = model.space.full()
            small[: model.space.groups[0].size - 1] = False
            model.resize(small)

    job = job_of()
    list(job.fit(job.model(), Shrinks(), epochs=1 / STEPS))
    assert job.meter.total == 3 * job.dense_macs * BATCH


def test_an_optimizer_of_the_methods_own_survives_a_change_of_structure():
    job = job_of()
    model = job.model(optimizer=lambda network: torch.optim.Adam(network.parameters()))
    small = model.space.full()
    small[0] = False
    list(job.fit(model, epochs=1, rate=0.5))
    model.resize(small)
    assert isinstance(model.optimizer, torch.optim.Adam)
    assert {type(model.optimizer), len(model.optimizer.state)} == {
        torch.optim.Adam,
        len(list(model.network.parameters())),
    }


def test_search_batches_come_again_and_again_from_the_held_out_samples_alone():
    job = job_of()
    wanted = [[12, 13, 14, 15], [16, 17, 18, 19]] * 2
    found = [inputs[:, 0, 0, 0].tolist() for inputs, _ in zip_with_range(job.search_batches(), 4)]
    assert found == wanted
    assert next(job.search_batches(first=3))[0][:, 0, 0, 0].tolist() == wanted[3]


def zip_with_range(batches, count):
    return [batch for batch, _ in zip(batches, range(count), strict=False)]


def test_no_sample_to_calibrate_with_is_no_batch():
    job = job_of()
    assert list(job.calibrate(job.build(), 0)) == []
    assert [len(inputs) for inputs, _ in job.calibrate(job.build(), 6)] == [4, 2]
    assert job.meter.spent["calibration"] == 6 * job.dense_macs


def test_a_method_that_begins_with_itself_is_refused_in_one_line(monkeypatch):
    class Selfish(Dense):
        name, source = "selfish", "selfish"

    class Ping(Dense):
        name, source = "ping", "pong"

    class Pong(Dense):
        name, source = "pong", "ping"

    use_methods(monkeypatch, Selfish, Ping, Pong)
    for method, chain in (("selfish", "selfish <- selfish"), ("ping", "ping <- pong <- ping")):
        with pytest.raises(UserError, match=f"^method '{method}' cannot be run: .*{chain}.*$"):
            small_cell(method=method)


def test_what_a_method_did_to_its_modules_is_still_there_where_a_run_is_taken_up():
    job = job_of()
    model, twin = job.model(), job.model()
    small = model.space.full()
    small[0] = False
    for each in (model, twin):
        each.resize(small)
        each.network.conv1.weight.requires_grad_(False)
        each.network.fc.register_forward_hook(lambda module, inputs, output: 2 * output)
    list(job.fit(model, epochs=1))
    twin.load_state_dict(model.state_dict())
    assert not twin.network.conv1.weight.requires_grad
    inputs = torch.randn(2, *EXAMPLE.shape[1:])
    assert torch.equal(twin.network.eval()(inputs), model.network.eval()(inputs))


def test_the_state_that_a_recurrent_network_hands_on_is_kept():
    class Counting(nn.Linear):
        def __init__(self):
            super().__init__(1, 1)
            self.register_buffer("seen", torch.zeros(0), persistent=False)

        def forward(self, inputs):
            self.seen = torch.cat([self.seen, inputs.flatten()])
            return super().forward(inputs)

    from nasbench_grow.contract import ElasticModel

    model, twin = (ElasticModel(Counting(), torch.zeros(1, 1), Recipe().optimizer) for _ in range(2))
    model.network(torch.tensor([[3.0]]))
    twin.load_state_dict(model.state_dict())
    assert twin.network.seen.tolist() == [3.0]


def test_a_group_without_a_filter_is_named():
    model = job_of().model()
    group = model.space.groups[0]
    present = model.space.full()
    present[group.structures] = False
    with pytest.raises(UserError, match=f"^no filter of '{group.name}' is left; keep at least one"):
        model.resize(present)


class Halving(Callback):
    """Keeps half of every width from the third step of the second epoch on, and a quarter from the fourth."""

    def before_step(self, model, step, steps):
        share = {STEPS + 2: 0.5, STEPS + 3: 0.25}.get(step)
        if share:
            space = model.space
            model.resize(select(space, uniform_keys(space), share * space.macs(space.full())))


def test_a_stage_says_how_the_structure_changed_within_its_epoch():
    job = job_of(epochs=3)
    first, second, third = job.fit(job.model(), Halving())
    assert first.restructurings == third.restructurings == []
    assert [each.at for each in second.restructurings] == pytest.approx([2 / STEPS, 3 / STEPS])
    half, quarter = second.restructurings
    assert half.macs > quarter.macs == count_macs(second.network, EXAMPLE)
    assert quarter.widths == output_channels(second.network)
    assert half.widths["conv1"] > quarter.widths["conv1"] and half.widths["fc"] == quarter.widths["fc"] == 10
