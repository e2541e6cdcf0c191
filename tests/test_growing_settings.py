"""The settings of growing: what is out of its range, or has no effect where it stands, is refused in a line."""

from __future__ import annotations

from typing import Any

import pytest

from nasbench_grow.base.errors import UserError
from nasbench_grow.growing.relaxation import RelaxationSettings
from nasbench_grow.growing.sampling import SamplingSettings
from nasbench_grow.growing.scaling import ScalingSettings
from nasbench_grow.harness import registry


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("scaled[growth=0]", "growth 0 is out of range"),
        ("scaled[periods=0]", "periods 0 is out of range"),
        ("scaled[granularity=0]", "granularity 0 is out of range"),
        ("scaled[peak=0.9]", "peak 0.9 is out of range"),
        ("scaled[freeze=0.3]", "freeze 0.3 has no effect: a network without a peak"),
        ("scaled[peak=2]", "peak 2 needs a freeze above growth 0.05"),
        ("scaled[peak=2,growth=0.4,freeze=0.4]", "peak 2 needs a freeze above growth 0.4"),
        ("scaled[peak=2,freeze=1.2]", "peak 2 needs a freeze above growth 0.05 and up to 1"),
        ("scaled[layer_logit=-4,structures=filters]", "layer_logit -4 has no effect with structures=filters"),
        ("scaled[layer_logit=-4,structures=layers]", "layer_logit -4 has no effect with structures=layers"),
        ("scaled[cost_aware=true,structures=layers]", "cost_aware has no effect with structures=layers"),
        ("scaled[samples=4]", "unknown setting of scaled 'samples'"),
        ("scaled[newborn=loud]", "newborn of scaled cannot be loud"),
        ("scaled[cost=space]", "cost of scaled cannot be space"),
        ("grow[growth=0]", "growth 0 is out of range"),
        ("grow[growth=1.5]", "growth 1.5 is out of range"),
        ("grow[search=0]", "search 0 is out of range"),
        ("grow[growth=0.5,search=0.5]", "growth 0.5 and search 0.5 leave nothing of the run to train what was found"),
        ("grow[growth=0.9]", f"growth 0.9 and search {SamplingSettings.search:g} leave nothing of the run"),
        ("grow[search=1.1]", "search 1.1 is out of range"),
        ("grow[compared=0.1]", "unknown setting of grow 'compared'"),
        ("grow[periods=0]", "periods 0 is out of range"),
        ("grow[travel=0]", "travel 0 is out of range"),
        ("grow[beta_start=0]", "beta_start 0 is out of range"),
        ("grow[beta_growth=-1]", "beta_growth -1 is out of range"),
        ("grow[granularity=0]", "granularity 0 is out of range"),
        ("grow[peak=2]", "unknown setting of grow 'peak'"),
        ("grow[layer_logit=-4]", "unknown setting of grow 'layer_logit'"),
        ("grow[masks=paper]", "unknown setting of grow 'masks'"),
        ("grow[selectivity=1]", "unknown setting of grow 'selectivity'"),
        ("grow[newborn=loud]", "newborn of grow cannot be loud"),
        ("grow[cost=space]", "cost of grow cannot be space"),
        ("placebo[travel=0]", "travel 0 is out of range"),
        ("grow-paper[selectivity=1]", "unknown setting of grow-paper 'selectivity'"),
        ("grow-paper[cost=time]", "unknown setting of grow-paper 'cost'"),
        ("grow-paper[periods=0]", "periods 0 is out of range"),
        ("grow-paper[beta_start=0]", "beta_start 0 is out of range"),
        ("grow-paper[beta_growth=-1]", "beta_growth -1 is out of range"),
        ("grow-paper[mask_learning_rate=0]", "mask_learning_rate 0 is out of range"),
        ("grow-paper[logit_start=0]", "logit_start 0 is out of range"),
        ("grow-paper[price_base=-1]", "price_base -1 is out of range"),
        ("grow-paper[mask_momentum=1]", "mask_momentum 1 is out of range"),
    ],
)
def test_a_setting_that_makes_no_sense_where_it_stands_is_refused_in_a_line(method, message):
    with pytest.raises(UserError) as caught:
        registry.method(method)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "setting", "allowed"),
    [
        (ScalingSettings, "structures", "both, filters, layers"),
        (ScalingSettings, "newborn", "initial, quiet, zero"),
        (ScalingSettings, "cost", "macs, time"),
        (SamplingSettings, "structures", "both, filters, layers"),
        (SamplingSettings, "newborn", "initial, quiet, zero"),
        (SamplingSettings, "cost", "macs, time"),
        (RelaxationSettings, "structures", "both, filters, layers"),
    ],
)
def test_an_unknown_word_is_refused_where_settings_are_made_in_python(kind, setting, allowed):
    with pytest.raises(UserError, match=rf"unknown {setting} 'all'.*\(known: {allowed}\)"):
        kind(**{setting: "all"})


def test_a_setting_at_its_default_is_no_other_method():
    assert str(registry.method("scaled[layer_logit=-1.5,structures=filters]")) == "scaled[structures=filters]"
    assert str(registry.method("scaled[peak=1]")) == "scaled"
    travel = SamplingSettings.travel
    assert str(registry.method(f"grow[travel={travel},structures=layers]")) == "grow[structures=layers]"
    assert str(registry.method(f"placebo[growth={SamplingSettings.growth}]")) == "placebo"
    assert str(registry.method("grow-paper[beta_growth=100]")) == "grow-paper"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"periods": 0}, "periods 0 is out of range: give 1 or more"),
        ({"travel": 0.0}, "travel 0 is out of range: give a number above 0"),
        ({"beta_start": -1.0}, "beta_start -1 is out of range: give a number above 0"),
        ({"growth": 0.0}, "growth 0 is out of range: it is a share, 0 < growth <= 1"),
        ({"search": 1.5}, "search 1.5 is out of range: it is a share, 0 < search <= 1"),
        (
            {"growth": 0.9, "search": 0.15},
            "growth 0.9 and search 0.15 leave nothing of the run to train what was found",
        ),
        ({"granularity": 0}, "granularity 0 is out of range: give 1 or more, or none"),
        ({"structures": "all"}, "structures 'all'"),
    ],
)
def test_a_setting_outside_its_range_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        SamplingSettings(**changes)
    assert said in str(error.value)
