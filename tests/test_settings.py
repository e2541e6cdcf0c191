"""Settings of methods: how they are read, spelt and refused, and that a method has one name for each set of them."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, Literal

import pytest
from cells import small_cell

from nasbench_grow import cli, results
from nasbench_grow.base.errors import UserError
from nasbench_grow.baselines.grow import Grow
from nasbench_grow.baselines.grow_paper import GrowPaper
from nasbench_grow.baselines.placebo import Placebo
from nasbench_grow.baselines.scaled import Scaled
from nasbench_grow.contract import settings as spelling
from nasbench_grow.growing.relaxation import RelaxationSettings
from nasbench_grow.growing.sampling import SamplingSettings
from nasbench_grow.growing.scaling import ScalingSettings
from nasbench_grow.harness import registry
from nasbench_grow.harness.profiles import Grid, Profile
from nasbench_grow.harness.reproduce import cells_of

GRID = Grid(
    tasks=("digits",),
    backbones=("tiny_network",),
    budgets=(0.5,),
    seeds=(0,),
    epochs=1,
    train_samples=64,
    methods=("dense", "grow"),
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """One field of every type that a setting can have."""

    share: float = 0.5
    count: int = 1
    maybe: int | None = None
    flag: bool = False
    kind: Literal["one", "two", 3] = "one"
    word: str | None = None
    of: spelling.MethodName = spelling.MethodName("grow")  # noqa: RUF009 (a string)


def read(**given: str) -> Settings:
    settings = spelling.read("mine", Settings, given, lambda name: str(registry.method(name)))
    assert isinstance(settings, Settings)
    return settings


@pytest.mark.parametrize(
    ("setting", "spellings", "value", "canonical"),
    [
        ("share", ["0.3", "0.30", ".3", "3e-1"], 0.3, "0.3"),
        ("share", ["0", "0.0", "-0"], 0.0, "0"),
        ("share", ["1e-7"], 1e-7, "1e-07"),
        ("count", ["12", "012"], 12, "12"),
        ("maybe", ["5"], 5, "5"),
        ("flag", ["true", "True"], True, "true"),
        ("kind", ["two"], "two", "two"),
        ("kind", ["3"], 3, "3"),
        ("word", ["two"], "two", "two"),
        ("of", ["grow[growth=0.25]", "grow[ growth=.250 ]"], "grow[growth=0.25]", "grow[growth=0.25]"),
    ],
)
def test_every_spelling_of_a_value_is_one(setting: str, spellings: list[str], value: Any, canonical: str) -> None:
    for text in spellings:
        settings = read(**{setting: text})
        found = getattr(settings, setting)
        assert found == value and type(found) is type(value)
        assert spelling.spell("mine", settings) == f"mine[{setting}={canonical}]"
        assert spelling.read("mine", Settings, spelling.split(spelling.spell("mine", settings))[1]) == settings


def test_settings_at_their_defaults_are_left_out_and_the_others_sorted() -> None:
    default = f"grow[growth={SamplingSettings.growth}]"
    assert spelling.spell("mine", read(share="0.50", maybe="none", of=default)) == "mine"
    assert spelling.spell("mine", read(word="two", count="2", share="0.5")) == "mine[count=2,word=two]"


@pytest.mark.parametrize(
    ("setting", "text", "allowed", "example"),
    [
        ("share", "fast", "a number", "0.5"),
        ("share", "nan", "a number", "0.5"),
        ("share", "inf", "a number", "0.5"),
        ("count", "1.5", "a whole number", "1"),
        ("maybe", "some", "a whole number or none", "none"),
        ("flag", "yes", "true or false", "false"),
        ("kind", "four", "one, two, 3", "one"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_in_one_line(setting: str, text: str, allowed: str, example: str) -> None:
    with pytest.raises(UserError) as caught:
        read(**{setting: text})
    assert str(caught.value) == (
        f"{setting} of mine cannot be {text} (allowed: {allowed}); write for example 'mine[{setting}={example}]'"
    )


def test_a_method_has_the_settings_of_its_name() -> None:
    grow = registry.method("grow[ periods = 6, growth=0.250 ]")
    assert isinstance(grow, Grow)
    assert str(grow) == "grow[growth=0.25,periods=6]"
    assert grow.settings == SamplingSettings(growth=0.25, periods=6)
    assert str(registry.method(str(grow))) == str(grow)
    assert registry.method("grow").settings == SamplingSettings(), "the method itself stays as it was"
    placebo = registry.method("placebo[growth=0.25]")
    assert isinstance(placebo, Placebo) and placebo.settings == SamplingSettings(growth=0.25)
    assert str(placebo) == "placebo[growth=0.25]"
    scaled = registry.method("scaled[layer_logit=-4]")
    assert isinstance(scaled, Scaled) and scaled.settings == ScalingSettings(layer_logit=-4)
    paper = registry.method("grow-paper[periods=20]")
    assert isinstance(paper, GrowPaper) and paper.settings == RelaxationSettings(periods=20)
    retrain = registry.method("retrain[of=grow[periods=6,growth=.25]]")
    assert retrain.source == "grow[growth=0.25,periods=6]"
    assert str(retrain) == "retrain[of=grow[growth=0.25,periods=6]]"
    assert registry.method("retrain[of=placebo]").source == "placebo"
    for name in ("grow", "placebo", "scaled"):
        assert registry.method(f"{name}[cost=time]").budget_of == "time"
        assert registry.method(name).budget_of == "macs"


def test_every_registered_method_can_be_had_without_settings_and_says_what_can_be_set() -> None:
    for name, cls in registry.methods().items():
        assert str(registry.method(name)) == name
        fields = [field.name for field in dataclasses.fields(cls.Settings)]
        assert [line.partition("=")[0] for line in spelling.help_of(cls.Settings)] == fields


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("grow[growht=0.3]", "unknown setting of grow 'growht'; did you mean 'growth'"),
        ("grow[growth=0]", "growth 0 is out of range: it is a share, 0 < growth <= 1"),
        (
            "grow[growth=fast]",
            "growth of grow cannot be fast (allowed: a number); "
            f"write for example 'grow[growth={SamplingSettings.growth}]'",
        ),
        ("grow[periods=0]", "periods 0 is out of range: give 1 or more"),
        ("grow[granularity=0]", "granularity 0 is out of range: give 1 or more"),
        ("grow[granularity=2.5]", "granularity of grow cannot be 2.5 (allowed: a whole number or none)"),
        ("grow[newborn=loud]", "newborn of grow cannot be loud (allowed: initial, zero, quiet)"),
        ("grow[growth=0.6,search=0.5]", "growth 0.6 and search 0.5 leave nothing of the run to train what was found"),
        ("random[draw=first]", "draw of random cannot be first (allowed: a whole number or none)"),
        # settings of another method, or of none any more
        ("grow[masks=paper]", "unknown setting of grow 'masks'"),
        ("grow[selectivity=1]", "unknown setting of grow 'selectivity'"),
        ("grow[peak=2]", "unknown setting of grow 'peak'"),
        ("scaled[search=0.2]", "unknown setting of scaled 'search'"),
        ("grow-paper[selectivity=1]", "unknown setting of grow-paper 'selectivity'"),
        ("grow-paper[growth=0.3]", "unknown setting of grow-paper 'growth'"),
        # settings without effect, or in contradiction
        ("scaled[freeze=0.5]", "freeze 0.5 has no effect: a network without a peak stays as it is"),
        ("scaled[peak=1.8]", "peak 1.8 needs a freeze above growth 0.05 and up to 1"),
        ("scaled[peak=1.8,growth=0.4,freeze=0.3]", "peak 1.8 needs a freeze above growth 0.4"),
        ("scaled[peak=0.5]", "peak 0.5 is out of range: it is a multiple of the budget, 1 or more"),
        ("scaled[structures=filters,layer_logit=0]", "layer_logit 0 has no effect with structures=filters"),
        ("scaled[structures=layers,cost_aware=true]", "cost_aware has no effect with structures=layers"),
        ("retrain[of=groow]", "unknown method 'groow'; did you mean 'grow'"),
        ("retrain[of=scaled[freeze=0.5]]", "freeze 0.5 has no effect"),
        ("retrain[growth=0.3]", "unknown setting of retrain 'growth'"),
        ("uniform[width=3]", "method 'uniform' has no settings; give the plain name"),
        ("groow[growth=0.3]", "unknown method 'groow'; did you mean 'grow'"),
        ("grow[]", "write its settings as 'grow[setting=value,setting=value]'"),
        ("grow[growth]", "write its settings as"),
        ("grow[growth=]", "write its settings as"),
        ("grow[growth=0.3", "write its settings as"),
        ("grow[growth=0.3]]", "write its settings as"),
        ("grow[growth=0.3,growth=0.4]", "write its settings as"),
        ("grow[growth=0.3,]", "write its settings as"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(name: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        small_cell(method=name)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_settings_run_wherever_their_method_would() -> None:
    changed = "grow[growth=0.25,periods=6]"
    everything = Profile("all", "for tests", (GRID,))
    assert [cell.method for cell in cells_of(everything, methods=["grow[periods=6,growth=.25]", "grow"])] == [
        "grow", changed,
    ]  # fmt: skip
    listed = Profile("listed", "for tests", (dataclasses.replace(GRID, methods=("grow[periods=6,growth=.25]",)),))
    assert [cell.method for cell in cells_of(listed)] == [changed]
    with pytest.raises(UserError, match="no cell"):
        cells_of(listed, methods=["uniform"])


def test_settings_go_from_the_command_line_to_the_record(tmp_path, capsys) -> None:
    words = ["--task", "digits", "--backbone", "tiny_network", "--budget", "0.5", "--seed", "0", "--epochs", "1"]
    words += ["--train-samples", "64", "--results", str(tmp_path), "--json"]
    assert cli.main(["run", "--method", "scaled[growth=0.9,granularity=4]", *words]) == 0
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert record["method"] == "scaled[granularity=4,growth=0.9]"
    assert record["settings"] == dataclasses.asdict(ScalingSettings(granularity=4, growth=0.9)), "all, as resolved"
    history = json.loads((tmp_path / "histories" / f"{record['run_key']}.json").read_text())
    assert set(history["epochs"][-1]["widths"].values()) <= {*range(1, 5), 8, 10}
    assert results.load(tmp_path)["method"].tolist() == [record["method"]]


def test_names_in_a_list_are_split_outside_of_brackets_only(tmp_path, capsys) -> None:
    methods = "retrain[of=grow[growth=0.25,periods=6]], grow[growth=0.25,periods=6] ,dense"
    words = ["reproduce", "--profile", "smoke", "--tasks", "digits", "--methods", methods]
    words += ["--results", str(tmp_path), "--dry-run"]
    assert cli.main(words) == 0
    shown = [line.partition(" digits")[0] for line in capsys.readouterr().out.splitlines()[:-1]]
    assert shown == ["dense", "grow[growth=0.25,periods=6]", "retrain[of=grow[growth=0.25,periods=6]]"]
