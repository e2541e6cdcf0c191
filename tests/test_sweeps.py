"""The sweeps that ``nnictl create`` is given: valid, of methods and files that there are, with trial code that runs."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import nni
import pytest
import yaml
from nni.experiment.config import ExperimentConfig
from nni_experiments import SWEEPS

from nasbench_grow.base.errors import UserError
from nasbench_grow.growing.nni_space import GrowableSpace
from nasbench_grow.harness import registry
from nasbench_grow.harness.profiles import PROFILES
from nasbench_grow.harness.reproduce import cells_of
from nasbench_grow.tasks.digits import Digits

FILES = sorted(path for path in SWEEPS.glob("*.yml") if "trialCommand" in path.read_text())
CHOSEN = ["random_search", "regularized_evolution", "tpe", "successive_halving"]
"""Sweeps whose trials are architectures."""
OF_A_METHOD = [path.stem for path in FILES if "methods: [" in path.read_text()]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_sweep_is_what_nni_accepts_and_its_files_are_there(path: Path) -> None:
    config = ExperimentConfig.load(str(path))
    if config.training_service.platform == "local":  # other machines' keys are not here
        config.validate()
    assert config.experiment_name
    script = next(word for word in config.trial_command.split() if word.endswith(".py"))
    assert (SWEEPS.parent / script).is_file()
    space = yaml.safe_load(path.read_text()).get("searchSpaceFile")
    assert space is None or (SWEEPS / space).is_file()


@pytest.mark.parametrize("name", OF_A_METHOD)
def test_a_sweep_of_a_method_has_cells_of_that_method(name: str) -> None:
    arguments = yaml.safe_load((SWEEPS / f"{name}.yml").read_text())["tuner"]["classArgs"]
    assert arguments["methods"] == [name]
    if name not in registry.methods():
        pytest.skip(f"{name} is not installed")
    assert {cell.method for cell in cells_of(PROFILES[arguments["profile"]], [name])} >= {name}


def test_every_method_that_grows_or_searches_has_a_sweep() -> None:
    built_in = [cls for cls in registry.methods().values() if cls.__module__.startswith("nasbench_grow.")]
    wanted = {cls.name for cls in built_in if cls.family in ("growing", "search")} - {"grow-paper"}
    assert wanted <= {*OF_A_METHOD, *CHOSEN}


def test_the_search_space_file_has_the_dimensions_of_the_backbone() -> None:
    written = yaml.safe_load((SWEEPS / "cifar_resnet20.yml").read_text())
    space = GrowableSpace(registry.build_backbone("cifar_resnet20", Digits()), Digits().example())
    sizes = {group.name: group.size for group in space.structures.groups}
    layers = [layer.name for layer in space.structures.layers]
    assert written == {
        **{name: {"_type": "quniform", "_value": [size // 8, size, size // 8]} for name, size in sizes.items()},
        **{name: {"_type": "choice", "_value": [True, False]} for name in layers},
    }


@pytest.mark.parametrize("name", CHOSEN)
def test_a_trial_trains_what_nni_chose_at_the_budget_without_nnis_server(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = yaml.safe_load((SWEEPS / f"{name}.yml").read_text())
    dimensions = yaml.safe_load((SWEEPS / config["searchSpaceFile"]).read_text())
    chosen: dict[str, Any] = {label: dimension["_value"][0] for label, dimension in dimensions.items()}
    chosen = {label: value if isinstance(value, bool) else float(value) for label, value in chosen.items()}
    if "advisor" in config:
        chosen["TRIAL_BUDGET"] = 2
    _, script, *arguments = config["trialCommand"].split()
    final: list[float] = []
    losses: list[float] = []
    monkeypatch.setattr(nni, "get_next_parameter", lambda: chosen)
    monkeypatch.setattr(nni, "report_intermediate_result", losses.append)
    monkeypatch.setattr(nni, "report_final_result", final.append)
    monkeypatch.setattr(sys, "argv", [script, *arguments, "--epochs", "1", "--train-samples", "64"])
    assert runpy.run_path(str(SWEEPS.parent / script))["main"]() == 0
    assert len(losses) == (2 if "advisor" in config else 1)
    assert len(final) == 1 and 0 <= final[0] <= 1


def test_a_trial_of_another_backbone_says_so() -> None:
    run = runpy.run_path(str(SWEEPS / "architecture_trial.py"))["run"]
    with pytest.raises(UserError, match="cifar_resnet20 has no 'stem'"):
        run({"stem": 8}, task="digits", backbone="cifar_resnet20", budget=0.5, epochs=1, seed=0, train_samples=64)
