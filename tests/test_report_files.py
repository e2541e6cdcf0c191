"""The files of a report, the document that it fills, and what it says is missing."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from synthetic_results import blocks, failed, full_comparison, record, seeds, write

from nasbench_grow import cli, report, results
from nasbench_grow.base.errors import UserError
from nasbench_grow.harness.cell import make_cell
from nasbench_grow.harness.profiles import PROFILES, Profile
from nasbench_grow.report.missing import missing
from nasbench_grow.report.style import looks
from nasbench_grow.report.training_figures import forward_order

ROOT = Path(__file__).parent.parent


# --- files ---


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """The report of a whole comparison with one failed cell."""
    folder = write(tmp_path_factory.mktemp("results"), [*full_comparison(), failed("l1", 0.5, 7, epochs=10)])
    return folder, report.write(folder)


def test_every_table_and_figure_is_written_and_returned(written: tuple[Path, list[Path]]) -> None:
    folder, paths = written
    assert paths[0] == folder / "README.md"
    names = {str(path.relative_to(folder)) for path in paths}
    assert {
        f"tables/{table}.{kind}"
        for table in ("comparison", "paired", "architectures", "requirements")
        for kind in ("md", "csv", "tex")
    } < names
    stem = "figures/synthetic-cifar_resnet20-cpu-10-epochs-5000-samples_"
    drawn = ["test-by-method", "test-vs-inference-macs", "test-vs-training-macs", "test-vs-training-time", "paired"]
    for figure in [*drawn, "curves", "growth-grow", "growth-grow-paper"]:
        assert {f"{stem}{figure}.png", f"{stem}{figure}.pdf"} < names
    on_disk = {str(path.relative_to(folder)) for kind in ("tables", "figures") for path in (folder / kind).iterdir()}
    assert on_disk == names - {"README.md"}


def test_figures_are_pictures_of_something(written: tuple[Path, list[Path]]) -> None:
    from matplotlib import image

    for path in written[1]:
        if path.suffix == ".png":
            pixels = image.imread(path)
            assert min(pixels.shape[:2]) > 300 and pixels[..., :3].std() > 0.02, path.name


def test_the_page_shows_every_figure_and_names_failures_and_provenance(written: tuple[Path, list[Path]]) -> None:
    folder, paths = written
    page = (folder / "README.md").read_text()
    for path in paths:
        if path.suffix == ".png":
            assert f"]({path.relative_to(folder)})" in page
    assert "Finished cells: 33, 1 failed." in page and "it broke" in page
    assert "Imaginary CPU, 2 cores, 1 thread, 8 GiB" in page and "torch 2.15.0" in page and "abc1234" in page
    assert str(folder.parent) not in page


def test_tables_read_back(written: tuple[Path, list[Path]]) -> None:
    folder, _ = written
    data = pd.read_csv(folder / "tables" / "comparison.csv")
    assert len(data) == 11
    grown = results.load(folder).query("method == 'grow' and budget == 0.5")
    row = data.query("method == 'grow' and budget == 0.5").iloc[0]
    assert row["test_metric"] == pytest.approx(grown["test_metric"].mean())
    page = (folder / "tables" / "comparison.md").read_text()
    assert f"{100 * row['test_metric']:.2f} ± {100 * row['test_metric_half_width']:.2f}" in page
    assert "3 of 4, 1 failed" in page


def test_latex_is_escaped_and_complete(written: tuple[Path, list[Path]]) -> None:
    text = (written[0] / "tables" / "comparison.tex").read_text()
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 1
    assert text.count(r"\toprule") == 1 and r"cifar\_resnet20" in text and r"$\pm$" in text and r"(\%)" in text
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0]
    assert all(line.count("&") == 14 for line in body.strip().splitlines())
    assert text.count("{") == text.count("}")


def test_a_second_report_gives_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path, [record("dense", 1.0, seed) for seed in range(2)], with_histories=False)
    first = {path: path.read_bytes() for path in report.write(tmp_path)}
    assert {path: path.read_bytes() for path in report.write(tmp_path)} == first


@pytest.mark.parametrize(
    "records",
    [
        [record("grow", 0.5, 0)],
        [record("dense", 1.0, 0)],
        [failed("grow", 0.5, 0), failed("dense", 1.0, 0, status="diverged")],
        [record("grow", 0.5, 0, epochs=1), record("mine", 0.5, 0, epochs=1)],
        [record("grow", 0.5, 0, dense_macs=None, train_macs=None, latency_ms_batch64=None, peak_memory_bytes=None)],
        [record("grow", 0.5, 0, hardware=None, versions=None, code_version=None, metric=None)],
        [record("grow", 0.5, 0, test_metric=None, val_metric=None, wall_s=None)],
    ],
    ids=["one cell", "dense only", "none finished", "one epoch", "costs missing", "no provenance", "no metrics"],
)
@pytest.mark.usefixtures("unrendered")
def test_missing_pieces_do_not_break_the_report(tmp_path: Path, records: list[dict[str, Any]]) -> None:
    write(tmp_path, records)
    assert (tmp_path / "README.md") in report.write(tmp_path)


@pytest.mark.usefixtures("unrendered")
def test_without_histories_there_are_only_the_figures_of_records(tmp_path: Path) -> None:
    write(tmp_path, [record("grow", 0.5, 0), record("dense", 1.0, 0)], with_histories=False)
    drawn = [path.name for path in report.write(tmp_path) if path.parent.name == "figures"]
    assert {name.split("_")[-1] for name in drawn} == {
        *(f"test-vs-{cost}.png" for cost in ("inference-macs", "training-macs", "training-time")),
        "test-by-method.png",
        "paired.png",
    }


@pytest.mark.usefixtures("unrendered")
def test_figures_go_with_their_records_and_other_files_stay(tmp_path: Path) -> None:
    write(tmp_path, [record("grow", 0.5, 0), record("grow[settle=1]", 0.5, 0, task="gone")])
    report.write(tmp_path)
    (tmp_path / "figures" / "mine.png").write_bytes(b"a user's")
    (tmp_path / "records" / f"{record('grow[settle=1]', 0.5, 0, task='gone')['run_key']}.json").unlink()
    expected = {path for path in report.write(tmp_path) if path.parent.name == "figures"}
    assert set((tmp_path / "figures").iterdir()) == {*expected, tmp_path / "figures" / "mine.png"}


def test_an_empty_folder_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no finished cells in .*; run `nasbench-grow reproduce .*` first"):
        report.write(tmp_path)


@pytest.mark.usefixtures("unrendered")
def test_a_damaged_record_is_left_out_with_a_warning(tmp_path: Path) -> None:
    write(tmp_path, [record("grow", 0.5, 0)], with_histories=False)
    (tmp_path / "records" / "half.json").write_text('{"run_key": "ha')
    with pytest.warns(UserWarning, match=r"half\.json"):
        report.write(tmp_path)
    assert "Finished cells: 1." in (tmp_path / "README.md").read_text()


@pytest.mark.usefixtures("unrendered")
def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, [record("dense", 1.0, 0)], with_histories=False)
    (tmp_path / "tables").write_text("a file where the folder should be")
    with pytest.raises(UserError, match=r"cannot write .*tables"):
        report.write(tmp_path)


@pytest.mark.usefixtures("unrendered")
def test_nothing_half_written_is_left_when_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, [record("dense", 1.0, 0)], with_histories=False)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        report.write(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} <= {"records", "histories"}


# --- parts ---


def test_layers_that_come_late_take_their_place_in_forward_order() -> None:
    epochs = [["conv1", "fc"], ["conv1", "block2", "fc"], ["conv1", "block1", "block2", "fc"]]
    frame = pd.DataFrame(
        [("run", at, layer, 1) for at, layers in enumerate(epochs) for layer in layers],
        columns=["run_key", "epoch", "layer", "width"],
    )
    assert forward_order(frame) == ["conv1", "block1", "block2", "fc"]


def test_forty_methods_have_forty_looks_that_stay_in_black_and_white() -> None:
    families = {f"method-{number}": ("pruning", "search", "growing", "")[number % 4] for number in range(35)}
    families |= dict.fromkeys(("dense", "uniform", "random", "retrain"), "control") | {"grow": "growing"}
    found = looks(families)
    assert len(found) == 40 and len({(look.marker, look.fill) for look in found.values()}) == 40
    hues = {families[name]: set() for name in families}
    for name, look in found.items():
        hues[families[name]].add(look.colour)
    assert sum(map(len, hues.values())) == len(set.union(*hues.values())), "a colour belongs to one family"


def test_a_method_looks_the_same_whatever_else_is_shown() -> None:
    few, many = looks({"grow": "growing", "dense": "control"}), looks(dict.fromkeys(("grow", "dense", "a", "b"), ""))
    assert (few["grow"].marker, few["dense"].marker) == (many["grow"].marker, many["dense"].marker) == ("o", "s")
    assert looks({"slimming": "pruning"}) == {"slimming": looks({"slimming": "pruning", "grow": ""})["slimming"]}


def test_more_methods_than_looks_are_still_drawn() -> None:
    assert len(looks({f"method-{number}": "search" for number in range(60)})) == 60


# --- documents ---


@pytest.mark.usefixtures("unrendered")
def test_a_document_keeps_its_prose_and_gets_its_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / "results", [*seeds("grow", [0.6, 0.61]), *seeds("uniform", [0.5, 0.52])], False)
    name = f"report:{blocks(folder)[0].name}:paired"
    page = tmp_path / "page.md"
    page.write_text(f"# Title\n\n<!-- {name} -->\nstale\n<!-- /{name} -->\n\nBy hand.\n")
    assert cli.main(["report", "--results", str(folder), "--document", str(page)]) == 0
    text = page.read_text()
    assert "stale" not in text and text.startswith("# Title\n") and text.endswith("\n\nBy hand.\n")
    assert "| grow against uniform |" in text and "Imaginary CPU" in text and str(tmp_path) not in text
    assert report.fill(page, folder) == text
    page.write_text(text.replace(":paired", ":pared"))
    assert cli.main(["report", "--results", str(folder), "--document", str(page)]) == 2
    assert "did you mean" in capsys.readouterr().err
    assert cli.main(["report", "--results", str(folder), "--document", str(tmp_path / "no.md")]) == 2
    assert "cannot read" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["ablations", "pruning"])
def test_a_committed_page_is_what_the_committed_records_give(name: str) -> None:
    page = ROOT / "docs" / f"{name}.md"
    text = page.read_text(encoding="utf-8")
    assert "<!-- report:" in text and report.fill(page, ROOT / "results" / name) == text


# --- what is still missing ---


def planned(seed: int, **changes: Any) -> dict[str, Any]:
    """The record of a cell of the profile ``table``."""
    cell = make_cell(
        method="grow", task="cifar10", backbone="cifar_vgg16_bn", budget=0.14, seed=seed, setup="cuda-bf16"
    )
    found = record("grow", 0.14, seed, profile="table")
    return found | dataclasses.asdict(cell) | {"run_key": cell.run_key()} | changes


@pytest.mark.usefixtures("unrendered")
def test_the_page_says_what_the_profiles_of_its_cells_still_lack(tmp_path: Path) -> None:
    write(tmp_path, [planned(0), planned(2, status="failed", error="it broke")])
    lacking = missing(results.load(tmp_path))
    of_grow = lacking[(lacking["method"] == "grow") & (lacking["backbone"] == "cifar_vgg16_bn")]
    assert of_grow["seeds"].tolist() == ["1, 2"]
    assert set(lacking["setup"]) == {"cuda-bf16"}
    assert lacking[lacking["task"] == "ptb"]["seeds"].tolist() == ["0, 1, 2"] * 4
    page = report.write(tmp_path)[0].read_text()
    assert "## Still missing" in page and page.count("cifar_wrn28_10") == 5


def test_skipped_cells_and_records_of_older_versions_lack_nothing(tmp_path: Path) -> None:
    write(tmp_path, [planned(0, schema=1), planned(1, schema=1)], with_histories=False)
    assert missing(results.load(tmp_path)).empty
    lacking = missing(results.load(write(tmp_path / "new", [planned(0), planned(1, status="skipped")], False)))
    of_grow = lacking[(lacking["method"] == "grow") & (lacking["backbone"] == "cifar_vgg16_bn")]
    assert of_grow["seeds"].tolist() == ["2"]


def test_a_profile_that_names_what_is_not_installed_plans_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = dataclasses.replace(PROFILES["table"].grids[0], methods=("gone",))
    monkeypatch.setitem(PROFILES, "table", Profile("table", "for tests", (grid,)))
    assert missing(results.load(write(tmp_path, [planned(0)], with_histories=False))).empty


@pytest.mark.usefixtures("unrendered")
def test_cells_of_no_known_profile_lack_nothing(tmp_path: Path) -> None:
    write(tmp_path, [record("grow", 0.5)])
    assert missing(results.load(tmp_path)).empty
    assert "Still missing" not in report.write(tmp_path)[0].read_text()


def test_captions_say_where_the_vector_instructions_are_not_known(tmp_path: Path) -> None:
    old, new = record("uniform", 0.5), record("grow", 0.5)
    (block,) = blocks(write(tmp_path, [old], with_histories=False))
    assert "vectors" not in block.caption
    new["hardware"] = {**new["hardware"], "vectors": "AVX2"}
    (block,) = blocks(write(tmp_path, [new], with_histories=False))
    assert "AVX2 / unknown vectors, 2 cores" in block.caption or "unknown vectors / AVX2, 2 cores" in block.caption
