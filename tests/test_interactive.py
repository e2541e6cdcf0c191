"""The page for a browser: it holds what the tables hold, and works where chromium opens it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from synthetic_results import blocks, full_comparison, record, write

from nasbench_grow import cli, results
from nasbench_grow.report import frames, interactive, tables
from nasbench_grow.report.style import looks

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
NAMES = ("<b>odd</b>", "a</script><script>throw 1</script>")


def page(folder: Path) -> tuple[str, dict[str, Any], tables.Table]:
    """The page of a folder, the data that it holds, and the table that they come from."""
    found = blocks(folder)
    look = looks({method: family for block in found for method, family in block.families.items()})
    table = tables.comparison(found)
    text = interactive.page(folder.name, table, look, results.histories(folder), partial(frames.widths, folder))
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    return text, json.loads(data), table


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    odd = [record(name, 0.5, seed, epochs=10, beside=2) for name in NAMES for seed in range(2)]
    words = {"task": "words", "metric": "perplexity", "higher_is_better": False, "metric_scale": 1.0}
    words |= {"metric_unit": "", "comparison_key": "w" * 16}
    other = [record(method, 0.5, 0, **words) for method in ("grow", "uniform")]
    return write(tmp_path_factory.mktemp("results"), [*full_comparison(), *odd, *other])


def test_the_page_holds_the_rows_of_the_comparison_and_every_epoch(folder: Path) -> None:
    _, data, table = page(folder)
    assert [block["task"] for block in data["blocks"]] == ["synthetic", "words"]
    for block, part in zip(data["blocks"], table.parts, strict=True):
        assert block["heads"] == list(part.rows.columns)
        assert [row["texts"] for row in block["rows"]] == part.rows.to_numpy().tolist()
        assert block["notes"] == [*part.notes, part.block.caption]
    whole = table.data.set_index(["task", "method", "budget"])
    for block in data["blocks"]:
        for row in block["rows"]:
            expected = whole.loc[(block["task"], row["method"], row["budget"])]
            assert row["metric"] == pytest.approx(expected["test_metric"] * block["scale"], rel=1e-5)
            assert row["costs"]["params"] == pytest.approx(expected["params"], rel=1e-5)
            assert (row["costs"]["wall_s"] is None) == (row["method"] in NAMES), "a time beside others is none"

    widths = frames.widths(folder)
    histories = results.histories(folder)
    cells = results.load(folder)
    runs = data["blocks"][0]["runs"]
    assert len(runs) == (cells["task"] == "synthetic").sum()
    (run,) = (run for run in runs if (run["method"], run["budget"], run["seed"]) == ("grow", 0.5, 1))
    key = cells.query("task == 'synthetic' and method == 'grow' and budget == 0.5 and seed == 1")["run_key"].item()
    history = histories[histories["run_key"] == key]
    assert run["epochs"] == history["epoch"].tolist()
    assert run["cost"] == pytest.approx(history["log_cost"].tolist(), rel=1e-5)
    places = [place for place, _ in run["widths"]]
    assert places == sorted(set(places)) and places[0] == 0
    for at, epoch in enumerate(run["epochs"]):
        shown = [found for place, found in run["widths"] if place <= at][-1]
        mine = widths[(widths["run_key"] == key) & (widths["epoch"] == epoch)].set_index("layer")["width"]
        assert dict(zip(data["blocks"][0]["layers"], shown, strict=True)) == {
            layer: mine.get(layer) for layer in data["blocks"][0]["layers"]
        }


def test_the_page_needs_no_network(folder: Path) -> None:
    text, _, _ = page(folder)
    outside_plotly = re.sub(r"<script>/\*\*?.*?plotly\.js.*?</script>", "", text, count=1, flags=re.S)
    assert len(outside_plotly) < len(text) / 2
    assert not re.findall(r"""(?:src|href)=["']?(?!data:)[^"'>\s]*//""", outside_plotly)
    assert "<b>odd" not in text and "<!--" not in outside_plotly.replace("<!DOCTYPE", "")


def test_the_command_writes_the_page_where_it_is_asked_for(tmp_path: Path, unrendered: None, capsys: Any) -> None:
    write(tmp_path, [record("dense", 1.0, 0), record("grow", 0.5, 0)], with_histories=False)
    assert cli.main(["report", "--results", str(tmp_path)]) == 0
    assert not (tmp_path / "report.html").exists()
    assert cli.main(["report", "--results", str(tmp_path), "--html"]) == 0
    assert "How the numbers are made" in (tmp_path / "report.html").read_text(encoding="utf-8")


PROBE = """
<script>
const told = window.told = { errors: [] };
addEventListener("error", (event) => told.errors.push(event.message));
for (const kind of ["error", "warn"]) console[kind] = (...words) => told.errors.push(words.join(" "));
</script>
"""
DRIVER = """
<script>
const column = (number) => [...document.querySelectorAll("tbody tr")].map((row) => row.cells[number].textContent);
const heads = () => [...document.querySelectorAll("thead th")].map((th) => th.textContent);
const click = (head) => document.querySelectorAll("thead button")[heads().indexOf(head)].click();
const choose = (id, value) => {
  const select = document.getElementById(id);
  select.value = value;
  select.dispatchEvent(new Event("change"));
};
const names = () => document.getElementById("pareto").data.map((trace) => trace.name);
addEventListener("load", () => setTimeout(() => {
  told.heads = heads();
  told.all = column(1);
  click("test accuracy (%)");
  told.best_first = column(heads().indexOf("test accuracy (%)"));
  click("test accuracy (%)");
  told.worst_first = column(heads().indexOf("test accuracy (%)"));
  click("method");
  told.by_name = column(1);
  choose("budget", "0.25");
  told.at_a_quarter = column(0);
  told.drawn = names();
  document.querySelector("#families input[value=pruning]").click();
  told.without_pruning = column(1);
  told.drawn_without = names();
  choose("budget", "");
  choose("cost", "wall_s");
  told.timed = names();
  told.axis = document.getElementById("pareto").layout.xaxis.title.text;
  choose("run-method", "grow, budget 0.5");
  choose("run-seed", "2");
  told.curve = document.getElementById("curves").data[0].y;
  told.layers = document.getElementById("widths").layout.yaxis.ticktext;
  choose("task", "words");
  told.words = heads();
  document.body.replaceChildren(Object.assign(document.createElement("pre"), { textContent: JSON.stringify(told) }));
}, 500));
</script>
"""


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine; .ci/run installs it")
def test_in_a_browser_it_loads_without_an_error_sorts_and_filters(folder: Path, tmp_path: Path) -> None:
    text, data, _ = page(folder)
    file = tmp_path / "page.html"
    file.write_text(text.replace("<head>", f"<head>{PROBE}", 1).replace("</body>\n</html>", f"{DRIVER}</body></html>"))
    words = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000", "--dump-dom"]
    command = [str(CHROMIUM), *words, f"--user-data-dir={tmp_path / 'profile'}", f"file://{file}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    (shown,) = re.findall(r"<pre>(.*?)</pre>", done.stdout, re.S)
    told = json.loads(shown.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))

    assert told["errors"] == []
    rows = data["blocks"][0]["rows"]
    assert told["heads"] == data["blocks"][0]["heads"]
    assert told["all"] == [row["method"] for row in rows] and set(NAMES) < set(told["all"])
    metrics = sorted(float(row["texts"][told["heads"].index("test accuracy (%)")].split()[0]) for row in rows)
    assert [float(cell.split()[0]) for cell in told["best_first"]] == metrics[::-1]
    assert [float(cell.split()[0]) for cell in told["worst_first"]] == metrics
    assert told["by_name"][0] == NAMES[0] and sorted(told["by_name"][2:], key=str.lower) == told["by_name"][2:]
    assert set(told["at_a_quarter"]) == {"0.25", "1"}, "dense stands beside every budget"
    assert {"dense", "grow", "l1"} < set(told["drawn"]) and not set(NAMES) & set(told["drawn"])
    assert "l1" not in told["without_pruning"] and "l1" not in told["drawn_without"]
    assert "grow" in told["timed"] and not set(NAMES) & set(told["timed"]), "what has no time is not drawn"
    assert told["axis"] == interactive.COSTS["wall_s"]
    runs = {(run["method"], run["budget"], run["seed"]): run for run in data["blocks"][0]["runs"]}
    assert told["curve"] == runs["grow", 0.5, 2]["cost"] and told["layers"] == data["blocks"][0]["layers"]
    assert told["words"] == data["blocks"][1]["heads"] and "test perplexity" in told["words"]
