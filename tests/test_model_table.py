"""The model table: small families end to end, failures as rows, records that are kept, a page that is computed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from nasbench_grow.base import blocks
from nasbench_grow.dev.model_table import __main__ as model_table
from nasbench_grow.dev.model_table import entries, examine, page, runner
from nasbench_grow.dev.model_table.kinds import kind
from nasbench_grow.structure.discovery import discover

ROOT = Path(__file__).resolve().parents[1]
PAGE = "before\n<!-- bench:models -->\nold\n<!-- /bench:models -->\nafter\n"
SMALL = {"starnet": {"model": "starnet_s050", "of": 7}}


def choose(folder: Path) -> None:
    """Writes which model stands for the small family: comparing all their models takes too long for a test."""
    (folder / "entries.json").write_text(json.dumps({"timm": timm.__version__, "entries": SMALL}))


def command(folder: Path, *arguments: str) -> int:
    return model_table.main([*arguments, "--out", str(folder), "--page", str(folder / "page.md"), "--processes", "2"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a small family was examined by the command line."""
    found = tmp_path_factory.mktemp("models")
    (found / "page.md").write_text(PAGE)
    choose(found)
    assert command(found, *SMALL) == 0
    return found


def found(**changes: Any) -> dict[str, Any]:
    """What the examination of a model without a flaw finds."""
    network = {"error": 1e-15, "macs": 5, "counted_macs": 5, "losses": [2.3, 2.2], "without_gradient": []}
    return {"reason": None, "groups": 3, "networks": [{**network, **changes}]}


@pytest.mark.slow
def test_a_small_family_end_to_end(folder: Path) -> None:
    (record,) = runner.load(folder, SMALL)
    assert (record["family"], record["kind"], page.problem(record)) == ("starnet", "convolutional", None)
    assert record["size"] == 64 and record["removable"] > 0.9 and record["groups"] > 10
    assert [network["share"] for network in record["networks"]] == list(examine.SHARES)
    assert record["versions"]["timm"] == timm.__version__ and record["hardware"]["cores"] and record["code_version"]
    text = (folder / "page.md").read_text()
    assert f"**1 of {len(entries.families())} families are examined.**" in text
    assert "| starnet" in text and "old" not in text and text.startswith("before\n") and text.endswith("\nafter\n")


@pytest.mark.slow
def test_a_finished_family_is_not_examined_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "examine", lambda *arguments: pytest.fail("examined"))
    assert command(folder, *SMALL) == 0
    monkeypatch.setattr(runner, "code", lambda: "changed")
    with pytest.raises(pytest.fail.Exception):
        command(folder, "starnet")


def test_a_model_that_fails_becomes_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "page.md").write_text(PAGE)
    choose(tmp_path)
    assert command(tmp_path, "starnet", "--seconds", "0.1") == 0
    (record,) = runner.load(tmp_path, SMALL)
    assert record["reason"] == "takes longer than 0 s" == page.problem(record)
    assert "### unknown" in (tmp_path / "page.md").read_text()


def test_what_was_found_before_a_failure_is_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise ValueError("bad luck\nat length")

    monkeypatch.setattr(examine, "discover", fail)
    monkeypatch.setattr(examine.resource, "setrlimit", lambda *arguments: None)
    assert examine.main("starnet_s050", 1) == 1
    first, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["kind"] == "convolutional" and last == {"reason": "ValueError: bad luck"}


def test_an_unknown_family_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(tmp_path, "resnt") == 2
    error = capsys.readouterr().err
    assert "did you mean 'resnet'" in error and error.count("\n") == 1


def test_the_smallest_model_stands_for_its_family() -> None:
    assert entries.smallest("starnet") == {"model": "starnet_s050", "of": len(timm.list_models(module="starnet"))}
    assert {"resnet", "vision_transformer"} <= set(entries.families())


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
    assert page.problem(found()) is None
    assert page.problem(found(**flaw)) == words


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
    families = entries.families()
    records = runner.load(ROOT / "results" / "models", families)
    assert blocks.fill(text, {"bench:models": page.tables(records, len(families))}) == text
