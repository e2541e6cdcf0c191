import dataclasses
import json
import math
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from importlib import metadata
from pathlib import Path

import pytest
import torch
from cells import finished_record, small_cell, use_methods

from nasbench_grow import cli
from nasbench_grow.baselines.dense import Dense
from nasbench_grow.growing.sampling import SamplingSettings
from nasbench_grow.harness import registry, reproduce
from nasbench_grow.harness.grids import Grid, Profile
from nasbench_grow.harness.record import FIELDS
from nasbench_grow.harness.store import Store

GRID = Grid(
    tasks=("digits",),
    backbones=("tiny_network",),
    budgets=(0.5,),
    seeds=(0,),
    epochs=1,
    train_samples=64,
    methods=("dense",),
)
ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())}


def run_words(results, **changes):
    options = {"method": "dense", "task": "digits", "backbone": "tiny_network", "budget": 1, "seed": 0}
    options |= {"epochs": 1, "train-samples": 64, "results": results, **changes}
    return ["run", *(word for name, value in options.items() for word in (f"--{name}", str(value)))]


def test_help_and_bad_words_answer_without_pytorch():
    program = (
        "import sys; from nasbench_grow import cli\n"
        "for words in (['--help'], ['--version'], ['run', '--help'], ['rum']):\n"
        "    try: cli.main(words)\n"
        "    except SystemExit as end: print('ended with', end.code)\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("ended with")] == [
        "ended with 0", "ended with 0", "ended with 0", "ended with 2",
    ]  # fmt: skip
    assert "examples:" in done.stdout
    assert f"nasbench-grow {metadata.version('nasbench-grow')}" in done.stdout.splitlines()


def test_help_of_run_explains_settings_in_brackets_also_of_a_method_that_names_another(capsys):
    with pytest.raises(SystemExit):
        cli.main(["run", "--help"])
    text = capsys.readouterr().out
    assert "list methods --json" in text
    shown = re.findall(r"--method '(.*)'", text)
    assert any(re.fullmatch(r"grow\[.*\]", name) for name in shown)
    assert any(re.fullmatch(r"retrain\[of=grow\[.*\]\]", name) for name in shown)
    for name in shown:
        assert str(registry.method(name)) == name, "what the help shows can be given"


def test_list_methods_says_of_each_what_it_is_where_it_comes_from_and_what_can_be_set(capsys):
    assert cli.main(["list", "methods"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("l1 ")]
    assert "[pruning; Li et al., Pruning Filters for Efficient ConvNets, arXiv 1608.08710]" in line
    assert cli.main(["list", "methods", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert (rows["grow"]["family"], rows["uniform"]["family"]) == ("growing", "control")
    assert "arXiv 2007.15353" in rows["grow-paper"]["citation"]
    assert (rows["placebo"]["family"], rows["scaled"]["family"], rows["random"]["family"]) == 3 * ("control",)
    assert f"growth={SamplingSettings.growth} (a number)" in rows["grow"]["settings"]
    assert f"search={SamplingSettings.search} (a number)" in rows["grow"]["settings"]
    assert rows["placebo"]["settings"] == rows["grow"]["settings"]
    assert "growth=0.05 (a number)" in rows["scaled"]["settings"]
    assert rows["random"]["settings"] == ["draw=none (a whole number or none)"]
    assert f"newborn={SamplingSettings.newborn} (initial, zero, quiet)" in rows["grow"]["settings"]
    assert rows["retrain"]["settings"] == ["of=grow (a method)"]
    assert rows["dense"]["settings"] == []


@pytest.mark.parametrize("kind", ["methods", "tasks", "backbones", "setups", "profiles"])
def test_list_shows_names_and_summaries(capsys, kind):
    assert cli.main(["list", kind]) == 0
    text = capsys.readouterr().out
    assert cli.main(["list", kind, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows
    for row in rows:
        assert row["name"] in text and row["summary"] in text


def test_run_prints_the_record_last_and_does_not_run_it_again(tmp_path, capsys):
    words = [*run_words(tmp_path), "--json"]
    assert cli.main(words) == 0
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert tuple(record) == tuple(FIELDS)
    assert record == Store(tmp_path).record(record["run_key"])
    assert cli.main(words) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == record, "the same record, start time and all"
    assert cli.main(run_words(tmp_path)) == 0
    assert f"{record['run_key']}.json" in capsys.readouterr().out


def test_a_failed_cell_is_exit_code_1(tmp_path, capsys, monkeypatch):
    use_methods(monkeypatch)
    assert cli.main([*run_words(tmp_path, method="failing"), "--json"]) == 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["status"] == "failed"


def test_a_skipped_cell_is_exit_code_0_and_says_why(tmp_path, capsys, monkeypatch):
    use_methods(monkeypatch)
    for _ in range(2):
        assert cli.main(run_words(tmp_path, method="skipping")) == 0
        assert "skipped: its idea needs attention, which this network has not" in capsys.readouterr().out
    profile = Profile("tiny", "for tests", (dataclasses.replace(GRID, methods=("dense", "skipping")),))
    monkeypatch.setitem(registry.profiles(), "tiny", profile)
    words = ["reproduce", "--profile", "tiny", "--results", str(tmp_path / "many")]
    for _ in range(2):
        assert cli.main(words) == 0
        assert capsys.readouterr().out == f"2 cells in {tmp_path / 'many'}: 1 ok, 1 skipped\n"


def test_a_cell_that_misses_its_budget_says_so(tmp_path, capsys, monkeypatch):
    class Whole(Dense):
        name = "whole"
        uses_budget = aims_at_budget = True

    use_methods(monkeypatch, Whole)
    for budget, said in ((0.5, True), (0.99, False)):
        assert cli.main(run_words(tmp_path, method="whole", budget=budget)) == 0
        assert ("MACs 1.000 of dense, not its budget" in capsys.readouterr().out) == said


def test_a_perplexity_beyond_all_bounds_can_be_shown_again(tmp_path, capsys):
    Store(tmp_path).write_record(finished_record(small_cell(epochs=1), metric="perplexity", test_metric=math.inf))
    assert cli.main(run_words(tmp_path)) == 0
    assert "test perplexity infinite" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "danse"}, "did you mean 'dense'"),
        ({"task": "digit"}, "did you mean 'digits'"),
        ({"backbone": "cifar_resnet2O"}, "did you mean 'cifar_resnet20'"),
        ({"backbone": "vit_tiny_patch16_224"}, "cannot serve task 'digits'"),
        ({"setup": "cpus"}, "did you mean 'cpu'"),
        ({"budget": 1.5}, "budget 1.5"),
        ({"budget": 0}, "budget 0"),
        ({"method": "refusing", "budget": 0.01}, "budget 0.01 is too small"),
        ({"seed": -1}, "seed -1"),
        ({"epochs": 0}, "epochs 0"),
        ({"train-samples": -5}, "train samples -5"),
        ({"train-samples": 10**6}, "1000000"),
        ({"results": "/dev/null/results"}, "/dev/null/results"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, capsys, monkeypatch, changes, words):
    use_methods(monkeypatch)
    assert cli.main(run_words(**{"results": tmp_path, **changes})) == 2
    captured = capsys.readouterr()
    line = captured.err.splitlines()[-1]
    assert line.startswith("nasbench-grow: error: ") and words in line
    assert "Traceback" not in captured.err + captured.out
    assert Store(tmp_path).records() == []


@pytest.mark.parametrize("words", [["run", "--method", "dense"], ["run", "--budget", "half"], ["list", "mthods"], []])
def test_words_that_do_not_parse_are_one_line_and_exit_code_2(capsys, words):
    with pytest.raises(SystemExit) as end:
        cli.main(words)
    assert end.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_reproduce_says_what_it_did(tmp_path, capsys, monkeypatch):
    use_methods(monkeypatch)
    tiny = Profile("tiny", "for tests", (dataclasses.replace(GRID, methods=("dense", "refusing", "failing")),))
    monkeypatch.setitem(registry.profiles(), "tiny", tiny)
    words = ["reproduce", "--profile", "tiny", "--tasks", "digits", "--methods", "dense,refusing"]
    words += ["--results", str(tmp_path)]
    assert cli.main([*words, "--dry-run"]) == 0
    assert "2 cells, 0 done, 2 to do" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    assert cli.main(words) == 1
    assert capsys.readouterr().out == f"2 cells in {tmp_path}: 1 ok, 1 failed\n"
    assert cli.main(["reproduce", "--profile", "smokey"]) == 2
    assert "did you mean 'smoke'" in capsys.readouterr().err


def test_report_says_where_the_page_is(tmp_path, capsys):
    cell = small_cell()
    Store(tmp_path).write_record(finished_record(cell, val_metric=0.5, hardware={}, versions={}))
    assert cli.main(["report", "--results", str(tmp_path)]) == 0
    assert str(tmp_path / "README.md") in capsys.readouterr().out
    assert cli.main(["report", "--results", str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_report_warns_of_a_damaged_record_in_one_line(tmp_path, capsys):
    cell = small_cell()
    Store(tmp_path).write_record(finished_record(cell, val_metric=0.5, hardware={}, versions={}))
    (tmp_path / "records" / "half.json").write_text('{"run_key": "ha')
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert cli.main(["report", "--results", str(tmp_path)]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"nasbench-grow: warning: skipped damaged file {tmp_path / 'records' / 'half.json'}")


def test_data_fetch_says_where_the_data_are(capsys):
    assert cli.main(["data", "fetch", "digits"]) == 0
    assert capsys.readouterr().out == "digits: comes with an installed package\n"
    assert cli.main(["data", "fetch", "digit"]) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_command_says_how_to_go_on(tmp_path, capsys, monkeypatch, number):
    def interrupted(cell, store, *, profile=None, progress=None):
        os.kill(os.getpid(), number)
        time.sleep(10)

    monkeypatch.setattr(reproduce, "run_cell", interrupted)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background processes ignore it
    results = tmp_path / "a folder"
    assert cli.main(run_words(results)) == 130
    line = capsys.readouterr().err.splitlines()[-1]
    assert "nasbench-grow run --method dense --task digits --backbone tiny_network --budget 1 " in line
    assert line.endswith(f"--results '{results}'")
    store = Store(results)
    assert store.records() == []
    with store.lock(small_cell(epochs=1).run_key(), wait=False) as held:
        assert held, "the cell is free again"


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path, capsys):
    changes = {"epochs": 60, "train-samples": 128}
    # forked, so that it need not import everything again
    process = multiprocessing.get_context("fork").Process(
        target=cli.main, args=(run_words(tmp_path / "killed", **changes),)
    )
    process.start()
    checkpoints = tmp_path / "killed" / "checkpoints"
    while process.is_alive() and not list(checkpoints.glob("*/*.pt")):
        time.sleep(0.005)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, "it was still running"
    assert Store(tmp_path / "killed").records() == []
    records = []
    for folder in ("killed", "whole"):
        assert cli.main([*run_words(tmp_path / folder, **changes), "--json"]) == 0
        records.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
    for field in ("weights_sha256", "val_metric", "test_metric", "train_macs", "epochs", "run_key"):
        assert records[0][field] == records[1][field], field
