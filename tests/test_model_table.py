"""The model table: small families end to end, failures as rows, records that are kept, a page that is computed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from nasbench_grow.base import blocks
from nasbench_grow.base.calling import call
from nasbench_grow.base.trees import tensors
from nasbench_grow.dev.model_table import __main__ as model_table
from nasbench_grow.dev.model_table import entries, examine, handwritten, page, runner, timm_models
from nasbench_grow.dev.model_table.entries import entries as every
from nasbench_grow.dev.model_table.kinds import kind
from nasbench_grow.structure.discovery import discover

ROOT = Path(__file__).resolve().parents[1]
PAGE = "before\n<!-- bench:models -->\nold\n<!-- /bench:models -->\nafter\n"
SMALL = {"handwritten:vit": {"family": "classification"}}


def command(folder: Path, *arguments: str) -> int:
    return model_table.main([*arguments, "--out", str(folder), "--page", str(folder / "page.md"), "--processes", "2"])


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """One small model is all that there is: to compare those of all families takes too long for a test."""
    monkeypatch.setattr(entries, "entries", lambda path, processes: SMALL)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "page.md").write_text(PAGE)
    return tmp_path


def found(**changes: Any) -> dict[str, Any]:
    """What the examination of a model without a flaw finds."""
    network = {"error": 1e-15, "macs": 5, "counted_macs": 5, "losses": [2.3, 2.2], "without_gradient": []}
    return {"reason": None, "groups": 3, "networks": [{**network, **changes}]}


@pytest.mark.slow
def test_a_small_model_end_to_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert command(folder) == 0
    (record,) = runner.load(folder, SMALL)
    assert (record["name"], record["kind"], page.problem(record)) == ("handwritten:vit", "transformer", None)
    assert record["input"] == [[3, 32, 32]] and record["left"] < 0.2 and record["groups"] > 4
    assert [network["share"] for network in record["networks"]] == list(examine.SHARES)
    assert record["networks"][0]["macs"] == round(record["left"] * record["macs"])
    assert record["versions"]["timm"] == timm.__version__ and record["hardware"]["cores"] and record["code_version"]
    text = (folder / "page.md").read_text()
    assert "**1 of 1 models are exact and have at most 20% of their MACs left**" in text
    assert "handwritten:vit" in text and "old" not in text and text.startswith("before\n")

    monkeypatch.setattr(runner, "examined", lambda *arguments: pytest.fail("examined"))
    assert command(folder) == 0
    monkeypatch.setattr(runner, "code", lambda: "changed")
    with pytest.raises(pytest.fail.Exception):
        command(folder)


@pytest.mark.slow
def test_a_model_that_ends_early_becomes_a_row(folder: Path) -> None:
    """By the limit, or because its process is ended."""
    assert command(folder, "--seconds", "0.1") == 0
    (record,) = runner.load(folder, SMALL)
    assert record["reason"] == "takes longer than 0.1 s of CPU time" == page.problem(record)
    assert "handwritten:vit" in (folder / "page.md").read_text()


def test_what_was_found_before_a_failure_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise ValueError("bad luck\nat length")

    monkeypatch.setattr(examine, "discover", fail)
    monkeypatch.setattr(examine.resource, "setrlimit", lambda *arguments: None)
    sent: list[dict[str, Any]] = []
    examine.report("handwritten:vit", 1, 1, torch.get_num_threads(), sent.append)
    assert sent[0]["kind"] == "transformer" and sent[1] == {"reason": "ValueError: bad luck"}


def test_an_unknown_model_is_refused_in_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(folder, "handwritten:vid") == 2
    error = capsys.readouterr().err
    assert "did you mean 'handwritten:vit'" in error and error.count("\n") == 1


def test_the_smallest_model_stands_for_its_family() -> None:
    count = len(timm.list_models(module="starnet"))
    assert timm_models.smallest("starnet") == {"model": "starnet_s050", "of": count}
    assert {"resnet", "vision_transformer"} <= set(timm_models.families())


def test_every_well_known_model_is_there() -> None:
    assert set(timm_models.WELL_KNOWN) <= set(timm.list_models())
    assert {timm_models.family(name) for name in ("resnet18", "seresnet50")} == {"resnet"}


@pytest.mark.parametrize("name", handwritten.MODELS)
def test_layouts_written_by_hand_run_on_their_inputs(name: str) -> None:
    model, example = handwritten.build(name)
    assert all(bool(output.isfinite().all()) for output in tensors(call(model, example)))


def test_all_files_of_discovery_make_a_record_stale() -> None:
    """Every module of ours that discovery loads."""
    script = "import sys, nasbench_grow.structure.discovery; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    files = {
        name.removeprefix("nasbench_grow.").replace(".", "/") + ".py" for name in loaded if "nasbench_grow." in name
    }
    needed = {name for name in files if (ROOT / "nasbench_grow" / name).exists()}
    assert "structure/flow_rules.py" in needed and needed <= set(runner.CODE)


@pytest.mark.parametrize(
    ("flaw", "words"),
    [
        ({"error": 1e-3}, "output differs by 1.0e-03"),
        ({"error": None}, "output is not a number"),
        ({"counted_macs": 6}, "MACs are 6, not 5"),
        ({"losses": [2.3, float("nan")]}, "loss is not finite"),
        ({"without_gradient": ["fc.bias"]}, "no gradient for fc.bias"),
    ],
)
def test_every_flaw_is_named(flaw: dict[str, Any], words: str) -> None:
    assert page.problem(found()) is None and page.grows({**found(), "left": 0.2})
    assert page.problem(found(**flaw)) == words and not page.grows({**found(**flaw), "left": 0.1})


def test_a_model_that_keeps_most_of_its_macs_does_not_count() -> None:
    assert not page.grows({**found(), "left": 0.21})


def test_a_wrong_coupling_is_seen() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3), nn.Flatten(), nn.LazyLinear(5))
    example = torch.randn(1, 3, 8, 8)
    model.eval()(example)
    space = discover(model, example)
    present = examine.structure(space, 0.5, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    right = examine.deviation(space, model, example, present, generator)
    space.owners["2.weight", 1] = space.owners["2.weight", 1].roll(1)
    wrong = examine.deviation(space, model, example, present, generator)
    assert right is not None and right < 1e-12
    assert wrong is not None and wrong > 1e-3


class _Attention(nn.Module):
    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        flat = tokens.flatten(2)
        return (flat.transpose(1, 2) @ flat).softmax(-1)


@pytest.mark.parametrize(
    ("layers", "name"),
    [
        ([nn.Conv2d(3, 4, 3)], "convolutional"),
        ([nn.Conv2d(3, 4, 4, stride=4), nn.Linear(2, 2)], "mlp"),
        ([nn.Conv2d(3, 4, 4, stride=4), _Attention()], "transformer"),
        ([nn.Conv2d(3, 4, 3), _Attention()], "hybrid"),
    ],
)
def test_the_kind_is_what_is_computed(layers: list[nn.Module], name: str) -> None:
    assert kind(nn.Sequential(*layers), torch.randn(1, 3, 8, 8)) == name


def test_the_committed_page_is_what_the_committed_records_give() -> None:
    text = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    folder = ROOT / "results" / "models"
    names = every(folder / "entries.json", 1)
    assert blocks.fill(text, {"bench:models": page.tables(runner.load(folder, names), len(names))}) == text
