"""What a task says of itself: its definition for the run key, and which way its metric goes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch

from nasbench_grow.base.errors import UserError
from nasbench_grow.contract.definition import plain
from nasbench_grow.contract.task import Recipe, Task
from nasbench_grow.data.images import Augmentation, Normalisation
from nasbench_grow.data.language_modelling import LanguageModelling
from nasbench_grow.harness import registry
from nasbench_grow.tasks.cifar10 import Cifar10
from nasbench_grow.tasks.digits import Digits
from nasbench_grow.tasks.ptb import PennTreebank


def changed(task: type[Task], **attributes: Any) -> type[Task]:
    return type(task.__name__, (task,), attributes)


def test_the_definition_of_digits_in_full() -> None:
    assert Digits.definition() == {
        "name": "digits",
        "version": 1,
        "metric": "accuracy",
        "higher_is_better": True,
        "num_classes": 10,
        "input_shape": [1, 8, 8],
        "batch_may_change": True,
        "val_samples": 300,
        "normalisation": {"is": "Normalisation", "mean": [0.3047], "std": [0.3758]},
        "augmentation": {"is": "Augmentation", "padding": 1, "flip": False},
    }


@pytest.mark.parametrize(
    "attributes",
    [
        {"version": 2},
        {"val_samples": 299},
        {"augmentation": Augmentation(padding=2, flip=False)},
        {"normalisation": replace(Digits.normalisation, std=(0.4,))},
        {"input_shape": (1, 9, 9)},
        {"higher_is_better": False},
        {"something_of_its_own": {"tiles": (1, 2)}},
    ],
    ids=lambda attributes: next(iter(attributes)),
)
def test_what_changes_results_changes_the_definition(attributes: dict[str, Any]) -> None:
    assert changed(Digits, **attributes).definition() != Digits.definition()
    assert changed(Digits).definition() == Digits.definition(), "it is not the class that counts"


def test_words_and_the_recipe_are_no_part_of_it() -> None:
    same = changed(
        Cifar10,
        summary="other words",
        by_hand="other help",
        layout="another-folder",
        metric_unit=" points",
        metric_scale=1.0,
        recipe=Recipe(batch_size=1),
        _private=torch.zeros(1),
    )
    assert same.definition() == Cifar10.definition()


def test_other_time_steps_are_another_task() -> None:
    assert changed(PennTreebank, sequence=20).definition() != PennTreebank.definition()


@pytest.mark.parametrize("name", sorted(registry.tasks()))
def test_every_task_has_a_definition_that_json_holds(name: str) -> None:
    definition = registry.task(name).definition()
    assert definition["name"] == name
    assert json.loads(json.dumps(definition)) == definition
    assert not {"recipe", "summary"} & set(definition)


def test_another_process_finds_the_same() -> None:
    script = "import json; from nasbench_grow.tasks.cifar10 import Cifar10; print(json.dumps(Cifar10.definition()))"
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)}
    found = subprocess.check_output([sys.executable, "-c", script], text=True, env=environment)
    assert found.strip() == json.dumps(Cifar10.definition())


def test_a_value_that_a_key_cannot_hold_is_refused_and_not_passed_over() -> None:
    for value, kind in ((torch.zeros(1), "Tensor"), ({1, 2}, "set"), (Normalisation(torch.zeros(1), ()), "Tensor")):
        with pytest.raises(UserError, match=rf"Digits\.palette holds a {kind}, .* begin its name with an underscore"):
            changed(Digits, palette=value).definition()


def test_a_task_must_say_which_way_its_metric_goes() -> None:
    class Silent(Task):
        name = "silent"
        summary = "says too little"
        metric = "error"
        num_classes = 2
        input_shape = (1,)

    with pytest.raises(UserError, match=r"Silent\.higher_is_better is missing; give the class this attribute"):
        Silent.definition()


def test_plain_data_are_told_apart() -> None:
    assert plain((1, [2.5, None, "a"], {"b": True, "a": 0})) == [1, [2.5, None, "a"], {"a": 0, "b": True}]
    assert list(plain({"b": 1, "a": 0})) == ["a", "b"], "in one order, whatever the order of writing"
    assert plain(Recipe())["is"] == "Recipe"
    with pytest.raises(TypeError, match="a dict"):
        plain({1: 2})


def test_a_higher_score_is_better_whatever_the_metric() -> None:
    assert Digits().score(0.75) == 0.75
    assert PennTreebank.score(80.0) == -80.0
    assert PennTreebank.score(80.0) > PennTreebank.score(90.0)


def test_scale_and_unit_are_those_of_the_metric() -> None:
    for task in registry.tasks().values():
        shown = (1.0, "") if issubclass(task, LanguageModelling) else (100.0, "%")
        assert (task.metric_scale, task.metric_unit) == shown
