"""The benchmark at tiny sizes: records say where they come from, and tables are computed from records."""

from __future__ import annotations

import copy
import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import cells  # noqa: F401  (registers tiny_network)
import pytest
import torch
from setups_here import only_with_channels_last
from torch import Tensor

from nasbench_grow.base.errors import UserError
from nasbench_grow.dev.bench import __main__ as bench
from nasbench_grow.dev.bench import (
    compiling,
    figure,
    floor,
    heap,
    memory,
    networks,
    plain,
    record,
    restructure,
    startup,
    step_time,
    whole_run,
)
from nasbench_grow.dev.bench.settings import EPOCH_STEPS, FULL, QUICK
from nasbench_grow.dev.bench.steps import interleave, training_step
from nasbench_grow.harness import registry
from nasbench_grow.harness.setups import SETUPS
from nasbench_grow.structure.subnetwork import extract

TINY = replace(QUICK, backbones=("tiny_network",), batch_size=2, pixels=8, cells=3)
PAGE = "".join(f"before\n<!-- bench:{part} -->\nold\n<!-- /bench:{part} -->\nafter\n" for part in bench.PARTS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the two parts that start no processes were measured, with a page beside it."""
    found = tmp_path_factory.mktemp("bench")
    (found / "page.md").write_text(PAGE)
    bench.run(["step_time", "restructure"], TINY, found / "out", found / "page.md")
    return found


def read(folder: Path, part: str) -> dict[str, Any]:
    return dict(json.loads((folder / "out" / f"{part}.json").read_text()))


def cells_of(markdown: str) -> list[list[str]]:
    """The rows of all pipe tables, as lists of cells."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines() if line[:1] == "|"]


# --- records and page ---


@pytest.mark.parametrize("part", ["step_time", "restructure"])
def test_a_record_says_where_it_comes_from(folder: Path, part: str) -> None:
    found = read(folder, part)
    assert found["part"] == part and found["settings"]["backbones"] == ["tiny_network"]
    assert found["hardware"]["cores"] >= 1 and found["versions"]["torch"] == str(torch.__version__)
    assert found["code_version"] and found["started_at"].endswith("+00:00")


@pytest.mark.parametrize("part", ["step_time", "restructure"])
def test_tables_come_from_the_record_and_stand_on_the_page(folder: Path, part: str) -> None:
    tables = bench.PARTS[part].tables(read(folder, part))
    assert (folder / "out" / f"{part}.md").read_text().strip() == tables.strip()
    page = (folder / "page.md").read_text()
    assert tables in page and page.count("before") == page.count("after") == len(bench.PARTS)


def test_the_figure_and_nothing_else_is_left_beside_records_and_tables(folder: Path) -> None:
    kept = {path.name for path in (folder / "out").iterdir()}
    assert kept == {"step_time.json", "step_time.md", "step_time.png", "restructure.json", "restructure.md"}


# --- step times ---


def timed(backbone: str, setup: str, kind: str, share: float, seconds: list[float]) -> dict[str, Any]:
    what = {"backbone": backbone, "setup": setup, "kind": kind, "share": share, "granularity": 8}
    return {**what, "macs": 100 * share, "dense_macs": 100, "widths": {"a": 8, "b": 8, "c": 16}, "seconds": seconds}


def test_ratios_are_taken_within_rounds_against_both_layouts(folder: Path) -> None:
    found = {
        **read(folder, "step_time"),
        "networks": [
            timed("cifar_resnet20", "cpu", "dense", 1.0, [0.2, 0.4, 2.0]),
            timed("cifar_resnet20", "cpu", "uniform", 0.5, [0.1, 0.2, 1.0]),
            timed("cifar_resnet20", "cpu-channels-last", "dense", 1.0, [0.1, 0.25, 1.25]),
            timed("cifar_resnet20", "cpu-channels-last", "uniform", 0.5, [0.1, 0.25, 1.25]),
        ],
    }
    half = found["networks"][1]
    assert step_time.against_dense(found, half, fastest=False).median == pytest.approx(0.5)
    assert step_time.against_dense(found, half, fastest=True).median == pytest.approx(0.8)
    rows = [row for row in cells_of(step_time.tables(found)) if row[-1] in ("met", "**not met**")]
    assert [(row[1], row[4], row[6]) for row in rows] == [
        ("cpu (default)", "0.60", "met"),
        ("cpu-channels-last", "0.60", "**not met**"),
        ("cpu (default)", "0.75", "**not met**"),
        ("cpu-channels-last", "0.75", "**not met**"),
    ]
    assert "8-16" in step_time.tables(found)


def test_the_figure_shows_every_point_also_of_networks_that_are_slower_than_dense(folder: Path) -> None:
    networks = [
        timed("b", setup, kind, share, [seconds])
        for setup, slow in (("cpu", 0.6), ("cpu-channels-last", 1.4))
        for kind, share, seconds in (("dense", 1.0, 1.0), ("uniform", 0.5, slow))
    ]
    drawing = figure.draw({**read(folder, "step_time"), "networks": networks})
    panels = drawing.axes
    assert len(panels) == 2
    for panel, highest in zip(panels, (0.6, 1.4), strict=True):
        low, high = panel.get_ylim()
        assert low == 0 and highest < high


def test_every_variant_is_timed_in_every_layout_within_its_share(folder: Path) -> None:
    found = read(folder, "step_time")["networks"]
    assert {network["setup"] for network in found} == {setup.name for setup in step_time.cpu_setups()}
    assert {network["granularity"] for network in found if network["kind"] == "uniform"} == {1, 4, 8, 16}
    for network in found:
        assert network["macs"] <= network["share"] * network["dense_macs"]
        assert len(network["seconds"]) == TINY.min_rounds and min(network["seconds"]) > 0


def test_internal_keeps_the_streams_and_depth_keeps_the_widths() -> None:
    model, space = networks.backbone("cifar_resnet20", replace(QUICK, pixels=8))
    internal = networks.structures(space, networks.Variant("internal", 0.5, 8))
    kept = extract(space, model, internal).state_dict()
    streams = [len(kept[f"layer{stage}.2.bn2.weight"]) for stage in (1, 2, 3)]
    assert streams == [16, 32, 64] and len(kept["layer1.0.conv1.weight"]) < 16
    depth = networks.structures(space, networks.Variant("depth", 0.5, 8))
    assert depth[: space.filters].all() and not depth[space.filters :].all()
    kinds = {variant.kind for variant in networks.variants(space, 8)}
    assert kinds == set(networks.KINDS)


def test_interleaving_runs_every_step_once_a_round_after_two_to_warm_up() -> None:
    calls: list[str] = []
    names = ("a", "b", "c")
    times = interleave({name: lambda name=name: calls.append(name) for name in names}, 0.0, 4, "")  # type: ignore[misc]
    assert {name: len(of_name) for name, of_name in times.items()} == dict.fromkeys(names, 4)
    assert all(sorted(calls[start : start + 3]) == ["a", "b", "c"] for start in range(0, 18, 3)) and len(calls) == 18


def test_how_slow_the_first_round_is_does_not_matter_to_the_number_of_rounds() -> None:
    calls: list[float] = []

    def step() -> None:
        calls.append(0.5 if not calls else 0.01)
        time.sleep(calls[-1])

    assert len(interleave({"a": step}, 0.3, 2, "")["a"]) > 2


def test_a_timed_step_really_trains() -> None:
    model, _ = networks.backbone("tiny_network", TINY)
    before = copy.deepcopy(model.state_dict())
    training_step(model, *networks.batch(TINY, SETUPS["cpu"]))()
    weights = {name: weight for name, weight in model.named_parameters() if weight.ndim > 1}
    assert weights and all(not torch.equal(before[name], weight) for name, weight in weights.items())


# --- restructuring ---


def test_restructurings_are_those_of_a_growing_run(folder: Path) -> None:
    (growth,) = read(folder, "restructure")["growth"]
    assert len(growth["periods"]) == TINY.restructurings
    assert all(period["seconds"] > 0 and len(period["step_seconds"]) > 1 for period in growth["periods"])
    costs = [period["macs"] for period in growth["periods"]]
    assert costs == sorted(costs) and costs[-1] <= restructure.BUDGET * growth["dense_macs"]


@pytest.mark.parametrize(("seconds", "result"), [(0.0099, "met"), (0.0101, "**not met**")])
def test_the_longest_share_of_an_epoch_decides(folder: Path, seconds: float, result: str) -> None:
    found = read(folder, "restructure")
    step = 1 / EPOCH_STEPS
    periods = [{"seconds": value, "macs": 1, "step_seconds": [9.0, step, step]} for value in (0.001, seconds)]
    found["growth"] = [{"backbone": "tiny_network", "dense_macs": 4, "periods": periods}]
    row = cells_of(restructure.tables(found))[2]
    assert row[6] == f"{seconds:.2%}" and row[-1] == result


# --- memory ---


def test_bytes_of_a_step_by_hand() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1, bias=False), torch.nn.ReLU(), torch.nn.Flatten())
    inputs, targets = torch.randn(2, 3, 2, 2), torch.tensor([0, 1])
    found = memory.step_bytes(network, inputs, targets)
    weights = 3 * 4 * 4  # floats of the weight, its gradient and its momentum, four bytes each
    assert found["weights"] == 3 * weights
    softmax, total_weight = 2 * 16 * 4, 4
    assert found["activations"] == inputs.nbytes + 2 * 16 * 4 + softmax + targets.nbytes + total_weight


def test_memory_shrinks_with_the_network() -> None:
    model, space = networks.backbone("cifar_resnet20", replace(QUICK, pixels=8))
    batch = networks.batch(replace(QUICK, pixels=8), SETUPS["cpu"])
    present = networks.structures(space, networks.Variant("uniform", 0.25, 8))
    dense = memory.step_bytes(networks.sub_network(space, model, space.full(), SETUPS["cpu"]), *batch)
    small = memory.step_bytes(networks.sub_network(space, model, present, SETUPS["cpu"]), *batch)
    assert small["activations"] < 0.6 * dense["activations"] and small["weights"] < 0.35 * dense["weights"]


def test_memory_table(folder: Path) -> None:
    found = read(folder, "restructure")
    process = {"dense_macs": 100, "idle_rss": 100 * 2**20}
    found["networks"] = [
        {"backbone": "b", "network": "dense", "macs": 100, "activations": 300, "weights": 100, "peak_rss": 200 * 2**20},
        {"backbone": "b", "network": "quarter", "macs": 25, "activations": 150, "weights": 75, "peak_rss": 150 * 2**20},
    ]
    found["networks"] = [{**network, **process} for network in found["networks"]]
    row = cells_of(memory.tables(found))[3]
    assert row[5:] == ["0.562", "0.550", "**not met**", "150.0", "0.500"]


# --- start-up ---


def test_deciding_that_nothing_is_left(tmp_path: Path) -> None:
    startup._fill(str(tmp_path), 3)
    startup.decide(str(tmp_path), 3)
    with pytest.raises(UserError, match="1 of 4"):
        startup.decide(str(tmp_path), 4)


def test_startup_table_compares_medians_with_targets(folder: Path) -> None:
    found = read(folder, "restructure")
    found["seconds"] = {name: [3.0, 1.2, 0.1] for name in startup.WAITS}
    rows = cells_of(startup.tables(found))[2:]
    assert [row[-1] for row in rows] == ["", "met", "met", "**not met**", "met"]
    assert all(row[1].startswith("1.20 s") for row in rows)


# --- command line ---


def test_an_unknown_part_is_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["memry"]) == 2
    error = capsys.readouterr().err
    assert "did you mean 'memory'" in error and error.count("\n") == 1


def test_quick_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench, "QUICK", TINY)
    assert bench.main(["restructure", "--quick"]) == 0
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .*step_time\.json"):
        record.write_json(tmp_path / "file" / "step_time.json", {})


# --- whole runs, hand-written networks, compiling ---


def test_a_network_by_hand_and_an_extracted_one_are_timed_in_every_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        plain, "interleave", lambda steps, *_: {name: [(step(), 0.1)[1]] for name, step in steps.items()}
    )
    found = record.provenance("plain", TINY) | plain.measure(TINY)

    assert {(each["kind"], each["share"]) for each in found["networks"]} == {
        (kind, share) for kind in ("uniform", "random") for share in (0.5, 0.25)
    }
    assert all(set(each["seconds"]) == {"by hand", *plain.LOOPS} for each in found["networks"])
    slow = copy.deepcopy(found)
    slow["networks"][0]["seconds"]["growing"] = [0.104]
    assert plain.tables(found).count("met") - plain.tables(found).count("not met") == 4
    assert plain.tables(slow).count("**not met**") == 1


def test_the_time_of_a_whole_run_is_held_against_its_macs() -> None:
    found = record.provenance("whole_run", TINY) | whole_run.measure(TINY)
    assert [run["setup"] for run in found["runs"]] == [setup.name for setup in step_time.cpu_setups()]
    for run in found["runs"]:
        assert len(run["dense"]["seconds"]) == len(run["grow"]["seconds"]) == TINY.min_run_steps // 4
        assert 0 < run["grow"]["train_macs"] < run["dense"]["train_macs"]

    run["dense"] |= {"preparation": 0.0, "seconds": [1.0, 1.0], "train_macs": 100}
    run["grow"] |= {"preparation": 0.1, "seconds": [0.5, 0.5], "train_macs": 50}
    assert cells_of(whole_run.tables(found))[-2][7:] == ["0.550", "0.500", "1.10", "1.15", "met"]
    run["grow"]["preparation"] = 0.2
    assert cells_of(whole_run.tables(found))[-2][7:] == ["0.600", "0.500", "1.20", "1.15", "**not met**"]


def test_with_an_adaptive_batch_a_whole_run_takes_fewer_and_larger_steps_over_the_same_samples() -> None:
    plain_run, adaptive_run = (
        whole_run._run("tiny_network", SETUPS[name], TINY)["grow"] for name in ("cpu", "cpu-adaptive")
    )
    assert adaptive_run["train_macs"] == pytest.approx(plain_run["train_macs"], rel=0.3)
    setup, data = SETUPS["cpu-adaptive"], networks.batch(replace(TINY, batch_size=8), SETUPS["cpu"])
    runtime = whole_run._runtime("tiny_network", setup, data)
    job = networks.job("tiny_network", setup, data, budget=0.5, epochs=1, steps=64, runtime=runtime)
    sizes: list[int] = []
    loss = job.loss

    def counted(output: Any, targets: Tensor) -> Tensor:
        if output.requires_grad:  # the others are only compared
            sizes.append(len(targets))
        return loss(output, targets)

    job.loss = counted
    list(registry.method("grow").run(job))
    assert sum(sizes) == 64 * 8 and len(sizes) < 64
    assert job.clock.end == 64


def test_a_run_shorter_than_the_turns_of_a_gpu_has_one_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(whole_run._CHUNK, "cpu", whole_run._CHUNK["cuda"])
    run = whole_run._run("tiny_network", SETUPS["cpu"], TINY)
    assert len(run["grow"]["seconds"]) == 1 and run["steps"] == TINY.min_run_steps


def test_on_a_gpu_the_network_that_cannot_fill_it_has_an_adaptive_batch() -> None:
    chosen = {name: whole_run._setups(name, SETUPS["cuda-bf16"]) for name in ("cifar_resnet20", "cifar_wrn28_10")}
    assert {name: [setup.name for setup in setups] for name, setups in chosen.items()} == {
        "cifar_resnet20": ["cuda-bf16-adaptive"],
        "cifar_wrn28_10": ["cuda-bf16"],
    }
    assert [whole_run.limit(setups[0]) for setups in chosen.values()] == [1.5, 1.25]


# --- the floor ---


def test_a_step_is_held_against_both_rates_and_the_input_against_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nasbench_grow.dev.floor._SIDE", {"cpu": 64})
    monkeypatch.setattr("nasbench_grow.dev.floor._COPIED_BYTES", {"cpu": 2**16})
    monkeypatch.setattr(floor, "_IMAGES", 16)
    found = record.provenance("floor", TINY) | floor.measure(TINY)
    dense, half = found["networks"]
    assert found["matrix_rate"] > 0 and found["copy_bandwidth"] > 0
    assert half["macs"] <= 0.5 * dense["macs"] and half["bytes"] < dense["bytes"]
    assert "aten::convolution_backward" in dense["operators"]

    dense |= {"macs": 30, "bytes": 50, "seconds": {"step": [2.0, 2.0], "data": [0.03, 0.03]}}
    dense["operators"] = {"aten::slow": 3.0, "aten::fast": 1.0}
    found |= {"matrix_rate": 100.0, "copy_bandwidth": 100.0}
    row = cells_of(floor.tables(found))[2]
    assert row[2:] == ["2000.0", "1", "15%", "25%", "slow 75%, fast 25%", "1.50%", "2%", "met"]
    dense["seconds"]["data"] = [0.05, 0.05]
    assert cells_of(floor.tables(found))[2][-1] == "**not met**"


def test_bytes_of_a_step_are_those_kept_for_backward_and_those_of_the_weights() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1, bias=False), torch.nn.Flatten())
    inputs, targets = torch.randn(2, 3, 2, 2), torch.tensor([0, 1])
    kept = memory.step_bytes(network, inputs, targets)["activations"]
    assert floor._bytes(network, (inputs, targets)) == 2 * (kept + 3 * 3 * 4 * 4)


# --- freed memory ---


def test_steps_that_keep_their_memory_are_compared_with_steps_that_return_it(folder: Path) -> None:
    def run(seconds: float, faults: int) -> dict[str, Any]:
        return {"seconds": seconds, "page_faults": faults, "peak_bytes": 2**30}

    runs = {"returned": [run(2.0, 3000), run(4.0, 1000)], "kept": [run(1.0, 10), run(2.0, 30)]}
    found = {**read(folder, "restructure"), "networks": [{"backbone": "b", **runs}]}
    row = cells_of(heap.tables(found))[2]
    assert row == ["b", "3000", "1500", "0.50 (0.50\N{EN DASH}0.50)", "2,000", "20", "1,024", "1,024"]


def test_a_child_reports_its_steps(capsys: pytest.CaptureFixture[str]) -> None:
    heap.child("tiny_network", "returned", json.dumps(asdict(TINY)))
    found = json.loads(capsys.readouterr().out)
    assert found["seconds"] > 0 and found["peak_bytes"] > 2**20 and found["page_faults"] >= 0


# --- set-ups ---


@only_with_channels_last
def test_another_setup_has_a_folder_and_a_place_of_its_own(tmp_path: Path) -> None:
    place = "cpu-channels-last/restructure"
    (tmp_path / "page.md").write_text(f"<!-- bench:{place} -->\n<!-- /bench:{place} -->\n")
    bench.run(["restructure"], TINY.on("cpu-channels-last"), tmp_path / "out", tmp_path / "page.md")
    kept = json.loads((tmp_path / "out" / f"{place}.json").read_text())
    assert kept["settings"]["setup_name"] == "cpu-channels-last"
    assert restructure.tables(kept) in (tmp_path / "page.md").read_text()


def test_a_setup_that_cannot_run_here_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["floor", "--setup", "cuda-bf16"]) == 2
    assert "cuda-bf16" in capsys.readouterr().err


def test_a_form_of_a_setup_is_refused_by_the_name_of_the_setup(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["floor", "--setup", "cpu-adaptive"]) == 2
    error = capsys.readouterr().err
    assert "use setup 'cpu'" in error and error.count("\n") == 1


def test_a_gpu_is_asked_for_what_it_has_a_share_in() -> None:
    parts = bench._parts([], "cuda-bf16")
    assert "floor" in parts and not {"memory", "startup"} & set(parts)
    with pytest.raises(UserError, match="part 'memory' measures the CPU"):
        bench._parts(["memory"], "cuda-bf16")
    settings = FULL.on("cuda-bf16")
    assert "cifar_wrn28_10" in settings.backbones and settings.run_seconds < FULL.run_seconds


def test_the_shapes_of_a_run_are_counted_and_what_cannot_be_compiled_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        def forward(inputs: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no compiler is to be had")

        return forward

    monkeypatch.setattr(torch, "compile", refuse)
    found = record.provenance("compiling", TINY) | compiling.measure(TINY)
    assert [each["granularity"] for each in found["shapes"]] == list(compiling.GRANULARITIES)
    for each in found["shapes"]:
        assert 1 < each["shapes"] <= 80
        assert each["until"] + each["last"] == 160 * EPOCH_STEPS
    assert "RuntimeError: no compiler is to be had" in compiling.tables(found)

    found["networks"][0] = {
        **{"backbone": "b", "network": "dense", "mode": "default", "compiling": 30.0},
        **{"plain": [0.3, 0.3], "compiled": [0.2, 0.2]},
    }
    row = cells_of(compiling.tables(found))[2]
    assert row[:6] == ["b", "dense", "default", "30", "300.0", "200.0"]
    assert row[6].startswith("0.67 ") and row[7] == "300"


def test_on_a_gpu_the_gain_of_cuda_graphs_is_measured_too(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def compiled(network: torch.nn.Module, **how: Any) -> torch.nn.Module:
        asked.append(how["mode"])
        return network

    monkeypatch.setattr(torch, "compile", compiled)
    monkeypatch.setitem(compiling.MODES, "cpu", compiling.MODES["cuda"])
    found = record.provenance("compiling", TINY) | compiling.measure(TINY)
    assert asked == 2 * ["default", "reduce-overhead"]
    assert [row[:3] for row in cells_of(compiling.tables(found))[2:6]] == [
        ["tiny_network", network, mode] for network in ("dense", "uniform") for mode in ("default", "reduce-overhead")
    ]
