"""Methods with changed settings: one name each, whatever they do with it."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, Literal

import pytest
from cells import small_cell
from nasbench_grow.growing.presets import PRESETS

from nasbench_grow import cli, results
from nasbench_grow.base.errors import UserError
from nasbench_grow.baselines.grow import Grow
from nasbench_grow.contract import settings as variants
from nasbench_grow.harness import registry
from nasbench_grow.harness.profiles import Grid, Profile
from nasbench_grow.harness.reproduce import cells_of

GRID = Grid(
    methods=("dense", "grow"),
    tasks=("digits",),
    backbones=("tiny_network",),
    budgets=(0.5,),
    seeds=(0,),
    epochs=1,
    train_samples=64,
)


@dataclasses.dataclass
class Settings:
    """One field of every type that a setting can have."""

    share: float = 0.5
    count: int = 1
    maybe: int | None = None
    flag: bool = False
    kind: Literal["one", "two", 3] = "one"
    word: str | None = None


def read(**settings: str) -> dict[str, Any]:
    return variants.read("mine", settings, variants.kinds(Settings), vars(Settings()))


@pytest.mark.parametrize(
    ("setting", "spellings", "value", "canonical"),
    [
        ("share", ["0.3", "0.30", ".3", "3e-1"], 0.3, "0.3"),
        ("share", ["0", "0.0", "-0"], 0.0, "0"),
        ("share", ["1e-7"], 1e-7, "1e-07"),
        ("count", ["12", "012"], 12, "12"),
        ("maybe", ["none", "None"], None, "none"),
        ("maybe", ["5"], 5, "5"),
        ("flag", ["true", "True"], True, "true"),
        ("flag", ["false", "False"], False, "false"),
        ("kind", ["two"], "two", "two"),
        ("kind", ["3"], 3, "3"),
        ("word", ["two"], "two", "two"),
        ("word", ["none"], None, "none"),
    ],
)
def test_every_spelling_of_a_value_is_one(setting: str, spellings: list[str], value: Any, canonical: str) -> None:
    for text in spellings:
        values = read(**{setting: text})
        assert values == {setting: value} and type(values[setting]) is type(value)
        assert variants.spell("mine", values) == f"mine[{setting}={canonical}]"


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


def test_a_variant_of_grow_has_the_settings_of_its_name() -> None:
    cls = registry.method("grow[ selectivity = 0.0, growth=0.30 ]")
    assert issubclass(cls, Grow)
    assert cls.name == "grow[growth=0.3,selectivity=0]"
    assert cls.preset == dataclasses.replace(PRESETS["default"], growth=0.3, selectivity=0.0)
    assert registry.method(cls.name).name == cls.name
    assert cls.version == Grow.version
    assert registry.method("grow") is Grow and Grow.preset == "default", "the method itself stays as it was"
    paper = registry.method("grow-paper[periods=20]")
    assert paper.name == "grow-paper[periods=20]"
    assert paper.preset == dataclasses.replace(PRESETS["paper"], periods=20)
    assert not set(registry.methods()) & {cls.name, paper.name}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("grow[growht=0.3]", "unknown setting of grow 'growht'; did you mean 'growth'"),
        ("grow[masks=best]", "masks of grow cannot be best (allowed: paper, priced"),
        ("grow[growth=0]", "growth 0 is out of range: it is a share, 0 < growth <= 1"),
        ("grow[periods=0]", "periods 0 is out of range: give 1 or more"),
        ("grow[granularity=0]", "granularity of grow cannot be 0 (allowed: a whole number from 1)"),
        ("grow[granularity=2.5]", "granularity of grow cannot be 2.5"),
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
def test_what_is_no_variant_is_named_in_one_line(name: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        small_cell(method=name)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_however_it_is_spelt_a_variant_is_one_cell() -> None:
    cells = {small_cell(method=name) for name in ("grow[growth=0.3,settle=1]", "grow[settle=1.0, growth=.3]")}
    (cell,) = cells
    assert cell.method == "grow[growth=0.3,settle=1]"
    assert cell.run_key() != small_cell(method="grow").run_key()


def test_a_variant_runs_wherever_its_method_would() -> None:
    variant = "grow[growth=0.3,settle=0.5]"
    everything = Profile("all", "for tests", (GRID,))
    assert [cell.method for cell in cells_of(everything, methods=["grow[settle=.5,growth=.3]", "grow"])] == [
        "grow", variant,
    ]  # fmt: skip
    listed = Profile("listed", "for tests", (dataclasses.replace(GRID, methods=("grow[settle=.5,growth=.3]",)),))
    assert [cell.method for cell in cells_of(listed)] == [variant]
    with pytest.raises(UserError, match="no cell"):
        cells_of(listed, methods=["uniform"])


def test_a_variant_runs_from_the_command_line_to_the_report(tmp_path, capsys) -> None:
    words = ["--task", "digits", "--backbone", "tiny_network", "--budget", "0.5", "--seed", "0", "--epochs", "1"]
    words += ["--train-samples", "64", "--results", str(tmp_path), "--json"]
    assert cli.main(["run", "--method", "grow[growth=0.9,granularity=4]", *words]) == 0
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert record["method"] == "grow[granularity=4,growth=0.9]"
    history = json.loads((tmp_path / "histories" / f"{record['run_key']}.json").read_text())
    assert set(history["epochs"][-1]["widths"].values()) <= {*range(1, 5), 8, 10}
    assert results.load(tmp_path)["method"].tolist() == [record["method"]]
    assert cli.main(["report", "--results", str(tmp_path)]) == 0


def test_names_in_a_list_are_split_outside_of_brackets_only(tmp_path, capsys) -> None:
    methods = "uniform, grow[growth=0.3,settle=0.5] ,dense"
    words = ["reproduce", "--profile", "smoke", "--tasks", "digits", "--methods", methods]
    words += ["--results", str(tmp_path), "--dry-run"]
    assert cli.main(words) == 0
    shown = [line.partition(" digits")[0] for line in capsys.readouterr().out.splitlines()[:-1]]
    assert shown == ["dense", "uniform", "grow[growth=0.3,settle=0.5]"]
