"""Multi-trial search: it finds what is to be found, spends what it may, and goes on after a kill."""

from __future__ import annotations

import importlib.util
import logging
import math
import random
import statistics
from functools import cache
from typing import Any

import pytest
from nni.algorithms.hpo.tpe_tuner import TpeTuner
from searches import EPOCHS, JUDGED, SAMPLES, Chain, Table, every_width, result, search_job, table, widths_of
from test_netadapt import Weighing
from tiny_networks import EXAMPLE, Plain, Residual

from nasbench_grow import UserError, count_macs
from nasbench_grow.baselines.random_search import RandomSearch
from nasbench_grow.baselines.regularized_evolution import EvolutionSettings, RegularizedEvolution
from nasbench_grow.baselines.successive_halving import HalvingSettings, SuccessiveHalving
from nasbench_grow.baselines.tpe import Tpe, TpeSettings
from nasbench_grow.contract import DivergedError
from nasbench_grow.growing.multi_trial import MultiTrialSettings
from nasbench_grow.harness import registry
from nasbench_grow.tasks.digits import Digits

STRATEGIES = [RandomSearch, RegularizedEvolution, Tpe]
ALL = [*STRATEGIES, SuccessiveHalving]
NAMES = [method.name for method in ALL]
LEARNING = [RegularizedEvolution, Tpe]
Widths = tuple[int, ...]


def wide_plain() -> Plain:
    return Plain(64)


# --- what is found ---


def from_best(widths: Widths) -> float:
    """The negative distance from a network of the budget's size whose middle is narrow, in logarithms of widths."""
    best = (32, 47, 8, 12, 31, 47)
    return -sum(abs(math.log(width / wanted)) for width, wanted in zip(widths, best, strict=True))


@cache
def later_half_of_random() -> float:
    return later_half(table(RandomSearch(MultiTrialSettings(total=8.0)), from_best))


def later_half(job: Table) -> float:
    """The mean score of the later half of the trials."""
    return statistics.mean(score for _, score in job.found[len(job.found) // 2 :])


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("method", LEARNING)
def test_what_learns_draws_better_networks_than_chance_and_comes_near_the_best_of_all(method: Any, seed: int) -> None:
    job = table(method(method.Settings(total=8.0)), from_best, seed=seed)
    assert later_half(job) > later_half_of_random() + 0.8
    assert max(score for _, score in job.found) > -0.4, "half a step of one width"


@pytest.mark.parametrize("method", LEARNING)
def test_the_best_network_of_a_small_table_is_found(method: Any) -> None:
    def value(widths: Widths) -> float:
        return -sum(abs(width - wanted) for width, wanted in zip(widths, (30, 50, 40), strict=True))

    job = table(method(method.Settings(total=8.0)), value, wide_plain)
    assert max(score for _, score in job.found) >= max(map(value, every_width(wide_plain)))


def test_unordered_choices_are_why_tpe_is_told_of_an_order() -> None:
    def later_scores(kind: dict[str, Any]) -> float:
        tuner = TpeTuner("maximize", seed=0, tpe_args={"n_startup_jobs": 14})
        tuner.update_search_space(dict.fromkeys("abcdef", kind))
        scores = []
        for number in range(120):
            drawn = tuner.generate_parameters(number)
            scores.append(-sum(abs(drawn[label] - 6) for label in "abcdef"))
            tuner.receive_trial_result(number, drawn, scores[-1])
        return statistics.mean(scores[60:])

    logging.getLogger("nni").setLevel(logging.CRITICAL)
    chance = -6 * statistics.mean(abs(place - 6) for place in range(8))
    assert later_scores({"_type": "choice", "_value": list(range(8))}) < chance
    assert later_scores({"_type": "quniform", "_value": [0, 7, 1]}) > 0.6 * chance


def test_the_regret_of_random_search_falls_with_the_number_of_trials() -> None:
    # Of n scores that are uniform in [0, 1] the best lies 1 / (n + 1) below 1 on average.
    def value(widths: Widths) -> float:
        return random.Random(str((salt, widths))).random()

    regrets: dict[int, list[float]] = {6: [], 24: []}
    for salt in range(16):
        job = table(RandomSearch(MultiTrialSettings(total=1.4)), value, seed=salt)
        assert len(job.found) >= 24
        for number, found in regrets.items():
            found.append(1 - max(score for _, score in job.found[:number]))
    for number, found in regrets.items():
        assert 0.45 < statistics.mean(found) * (number + 1) < 1.8


@pytest.mark.parametrize("method", STRATEGIES)
def test_a_network_is_tried_once_and_a_space_that_is_exhausted_ends_the_search(method: Any) -> None:
    job = table(method(method.Settings(total=30.0)), sum, lambda: Plain(4))
    tried = [widths for widths, _ in job.found]
    assert len(set(tried)) == len(tried) < 30
    assert max(map(sum, tried)) == max(map(sum, every_width(lambda: Plain(4))))


def test_the_draws_are_of_the_seed_alone() -> None:
    for method in STRATEGIES:
        settings = method.Settings(total=0.8)
        one, again, other = (table(method(settings), from_best, seed=seed).found for seed in (0, 0, 1))
        assert one == again != other


# --- what is spent ---


@pytest.mark.parametrize("method", STRATEGIES)
@pytest.mark.parametrize("total", [0.4, 1.0])
def test_all_trials_are_billed_until_the_next_does_not_fit(method: Any, total: float) -> None:
    job, macs = search_job(lambda: Residual(16)), []
    stages = method(method.Settings(total=total, trial_share=0.25)).run(job)
    for stage in stages:
        if stage.purpose == "search":  # a quarter of four epochs: one stage a trial, of the 72 samples that are left
            macs.append(count_macs(stage.network, EXAMPLE))
        else:
            trained = count_macs(stage.network, EXAMPLE)
    dense = 3 * job.dense_macs * SAMPLES * EPOCHS
    each = 3 * (SAMPLES - JUDGED) + JUDGED
    assert job.meter.spent == {
        "training": 3 * trained * SAMPLES * EPOCHS,
        "search": sum(macs) * each,
        "source": 0,
        "calibration": 0,
    }
    assert total * dense - 0.5 * job.dense_macs * each < job.meter.spent["search"] <= total * dense
    assert trained in macs


def by_width(network: Any, split: Any) -> float:
    return float(sum(widths_of(network)))


def test_successive_halving_trains_fewer_networks_for_longer_and_goes_on_with_the_best() -> None:
    job, trained = search_job(lambda: Plain(24), score=by_width), []
    settings = HalvingSettings(total=1.0, reduction=2, rungs=3, longest=1.0)
    for stage in SuccessiveHalving(settings).run(job):
        if stage.purpose == "search":
            trained.append(widths_of(stage.network))
        else:
            chosen = widths_of(stage.network)
    # An epoch is 72 samples. Rungs end after 1, 2 and 4 epochs: n, n / 2 and n / 4 networks train 1, 1 and 2 of them,
    # each judged on 8 samples after a rung. Of half the dense MACs, 4, 2 and 1 are billed (6 x 224 + 440) / 2 = 892 of
    # the 3 x 80 x 4 = 960 that the total allows, 5, 2 and 1 would be 1004.
    first, second, third = trained[:4], trained[4:6], trained[6:]
    best = sorted(first, key=sum, reverse=True)
    assert len(set(first)) == 4
    assert [sum(each) for each in second] == [sum(each) for each in best[:2]]
    assert third == [second[0]] * 2, "two epochs of the last one"
    assert chosen == second[0]
    bill = [(each, 3 * (SAMPLES - JUDGED)) for each in trained] + [
        (each, JUDGED) for each in (*first, *second, third[0])
    ]
    price = {widths: macs_of(widths) for widths in first}
    assert job.meter.spent["search"] == sum(price[widths] * samples for widths, samples in bill)
    assert job.meter.spent["search"] <= job.dense_train_macs


def macs_of(widths: Widths) -> int:
    """MACs of a Plain network, by hand."""
    first, second, third = widths
    return 64 * 9 * first + 16 * 9 * first * second + 4 * 9 * second * third + 10 * third


def test_successive_halving_keeps_the_networks_that_may_go_on_and_no_others() -> None:
    storage = Weighing()
    settings = HalvingSettings(total=3.0, reduction=3, rungs=2, longest=1.0)
    job = search_job(lambda: Plain(24), score=by_width, storage=storage)
    stages = SuccessiveHalving(settings).run(job)
    trained = {widths_of(stage.network) for stage in stages if stage.purpose == "search"}
    assert len(trained) >= 9 and storage.most <= len(trained) // 3 + 2, "those, the worst of them, the one under way"


def test_as_many_brackets_as_rungs_are_hyperband() -> None:
    job = search_job(lambda: Plain(24), score=by_width)
    method = SuccessiveHalving(HalvingSettings(total=6.0, reduction=3, rungs=3, brackets=3, longest=1.0))
    lengths = [method.lengths(job, bracket) for bracket in range(3)]
    assert lengths == [pytest.approx([4 / 9, 4 / 3, 4]), pytest.approx([4 / 3, 4]), [4]]
    assert [method.beginners(job, each) for each in lengths] == sorted(
        (method.beginners(job, each) for each in lengths), reverse=True
    )
    network, _ = result(method, job)
    assert job.meter.spent["search"] <= 6 * job.dense_train_macs
    assert job.meter.spent["search"] > 5 * job.dense_train_macs
    assert count_macs(network, EXAMPLE) <= 0.5 * job.dense_macs


@pytest.mark.parametrize("method", ALL)
def test_a_total_too_small_for_one_network_is_refused(method: Any) -> None:
    with pytest.raises(UserError, match=r"total 0.001 .*give a larger total"):
        result(method(method.Settings(total=0.001)), search_job())


# --- what comes out ---


@pytest.mark.parametrize(
    ("backbone", "granularity"),
    [("cifar_resnet20", 1), ("cifar_resnet20", 8), ("cifar_vgg16_bn", 8), ("cifar_mobilenetv2", 1)],
)
def test_every_network_of_a_search_costs_the_budget(backbone: str, granularity: int) -> None:
    job = search_job(lambda: registry.build_backbone(backbone, Digits()), Table, value=sum, granularity=granularity)
    network, _ = result(RandomSearch(MultiTrialSettings(total=0.15)), job)
    assert 2 <= len(job.found) <= 4
    assert 0.48 <= count_macs(network, EXAMPLE) / job.dense_macs <= 0.5


class Stumbles(Table):
    """A table in which wide networks diverge."""

    def trial(self, model: Any, callback: Any = None, *, epochs: float) -> Any:
        if widths_of(model.network)[0] > self.value(()):
            raise DivergedError("the training loss became nan")
        yield from ()
        widths = widths_of(model.network)
        self.found.append((widths, 1.0))
        return 1.0


@pytest.mark.parametrize("method", STRATEGIES)
def test_a_trial_that_diverges_is_left_behind(method: Any) -> None:
    job = search_job(Chain, Stumbles, value=lambda _: 20)
    network, _ = result(method(), job)
    assert widths_of(network)[0] <= 20
    with pytest.raises(DivergedError, match="all"):
        result(method(), search_job(Chain, Stumbles, value=lambda _: 0))


def test_without_nni_they_skip_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert {method().skip(Digits(), Residual()) for method in ALL} == {"NNI is not installed"}


@pytest.mark.parametrize(
    ("settings", "given", "message"),
    [
        (MultiTrialSettings, {"trial_share": 0.0}, "trial_share 0 is out of range"),
        (MultiTrialSettings, {"total": -1.0}, "total -1 is out of range"),
        (EvolutionSettings, {"sample_share": 2.0}, "sample_share 2 is out of range"),
        (EvolutionSettings, {"population_share": 0.0}, "population_share 0 is out of range"),
        (TpeSettings, {"startup_share": 0.0}, "startup_share 0 is out of range"),
        (HalvingSettings, {"reduction": 1}, "reduction 1 is out of range: give 2 or more"),
        (HalvingSettings, {"rungs": 0}, "rungs 0 is out of range: give 1 or more"),
        (HalvingSettings, {"brackets": 4}, "brackets 4 is out of range: give 1 to as many as there are rungs, 3"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: Any, given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        settings(**given)
