"""The card of a network that ships: what it is, how good, how fast, and how to load it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nasbench_grow.contract import Task
from nasbench_grow.data.own_images import SUITE_AUGMENTATIONS, OwnImages
from nasbench_grow.harness.cell import Cell
from nasbench_grow.harness.record import Record
from nasbench_grow.report.statistics import CONFIDENCE, wilson


def card(
    cell: Cell,
    task: Task,
    record: Record,
    *,
    validated: int,
    tested: int | None,
    class_names: Sequence[str],
    command: str,
    files: Sequence[str],
    alone: bool,
    picture: str | None,
    onnx: str,
) -> str:
    """The page in Markdown.

    Args:
        cell, task, record: the finished run.
        validated, tested: how many samples did; None: none apart from those that validated.
        class_names: of the outputs; empty where nothing is known.
        command: what made the network.
        files: what stands beside the page.
        alone: whether the file alone is enough to load the network.
        picture: the file of the growth picture, if there is one.
        onnx: what was found of the ONNX file.
    """
    share = record["macs"] / record["dense_macs"]
    title = f"{cell.backbone} at {share:.0%} of its multiply-accumulates"
    parts = [
        f"# {title}",
        f"Trained on `{task.title if isinstance(task, OwnImages) else cell.task}` by the method `{cell.method}` of "
        "nasbench-grow.",
        _figures(task, record, validated, tested),
        "## Load it",
        f"```python\n{_loading(cell, task, alone)}\n```",
        _inputs(task),
        "## How it was made",
        f"```sh\n{command}\n```" if command else "",
        _making(cell, task, record),
        *([f"![cost and widths by epoch]({picture})"] if picture else []),
        *(["## Classes", ", ".join(f"`{name}`" for name in class_names)] if class_names else []),
        "## Files",
        "\n".join(f"- `{name}`: {_FILES[name]}" for name in files) + f"\n\nNote: {onnx}.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


_FILES = {
    "model.safetensors": "weights, architecture and names of the classes",
    "model.onnx": "the same network for other runtimes, batches of any size",
    "history.csv": "loss, metric, multiply-accumulates and widths of every epoch",
    "growth.png": "cost and widths by epoch",
}


def _figures(task: Task, record: Record, validated: int, tested: int | None) -> str:
    """The table of what it reaches and costs."""
    rows = [] if tested is None else [(f"test {task.metric}", _metric(task, record["test_metric"], tested))]
    rows += [
        (f"validation {task.metric}", _metric(task, record["val_metric"], validated)),
        ("parameters", _of_dense(record["params"], record["dense_params"])),
        ("multiply-accumulates of one input", _of_dense(record["macs"], record["dense_macs"])),
    ]
    for size in (1, 64):
        milliseconds, ratio = record[f"latency_ms_batch{size}"], record[f"latency_ratio_batch{size}"]
        if milliseconds is not None and ratio is not None:
            low, high = (record[f"latency_ratio_{end}_batch{size}"] for end in ("low", "high"))
            between = f", {low:.2f} to {high:.2f}" if low is not None and high is not None else ""
            rows.append(
                (f"latency, batch of {size}", f"{milliseconds:.2f} ms, {ratio:.2f} of the dense one's{between}")
            )
    rows.append(("training multiply-accumulates", _of_dense(record["train_macs"], record["dense_train_macs"])))
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]) + (
        f"\n\nLatencies were measured on {_machine(record)}, in turn with the dense network's."
    )


def _metric(task: Task, metric: float | None, samples: int) -> str:
    unit = f" {task.metric_unit}" if task.metric_unit else ""
    shown = "not a number" if metric is None else f"{metric * task.metric_scale:.4g}{unit}"
    if metric is not None and task.metric == "accuracy":
        low, high = (bound * task.metric_scale for bound in wilson(metric, samples))
        shown += f" ({low:.1f} to {high:.1f}, {CONFIDENCE:.0%} interval over {samples:,} images)"
    return shown


def _of_dense(part: int, whole: int | None) -> str:
    return f"{part:,}" + (f" ({part / whole:.0%} of the dense network's {whole:,})" if whole else "")


def _machine(record: Record) -> str:
    hardware: dict[str, Any] = record["hardware"] or {}
    device = hardware.get("gpu") if str(record["setup"]).startswith("cuda") else hardware.get("cpu")
    threads = hardware.get("threads")
    return f"{device} ({threads} thread{'' if threads == 1 else 's'}, set-up `{record['setup']}`)"


def _loading(cell: Cell, task: Task, alone: bool) -> str:
    if alone:
        return 'import nasbench_grow\n\nnetwork = nasbench_grow.load("model.safetensors")'
    module, colon, function = cell.backbone.partition(":")
    made = f"{function}(...)" if colon else f"timm.create_model({cell.backbone!r}, num_classes={task.num_classes})"
    first = f"from {module} import {function}" if colon else "import timm"
    return (
        f"{first}\nimport nasbench_grow\n\n"
        f'network = nasbench_grow.load("model.safetensors", model={made})  # the dense model, as in training'
    )


def _inputs(task: Task) -> str:
    """What the network takes and gives, for who must prepare it."""
    shape = " x ".join(map(str, task.input_shape))
    text = f"It takes a batch of inputs of {shape} and gives {' x '.join(map(str, task.output_shape()))} each"
    normalisation = getattr(task, "normalisation", None)
    if normalisation is not None:
        text += (
            f": pixels from 0 to 1, less the mean {_listed(normalisation.mean)}, divided by the standard deviation "
            f"{_listed(normalisation.std)}"
        )
    if isinstance(task, OwnImages):
        size = task.input_shape[-1]
        text += f"; the shorter side resized to {round(256 / 224 * size)}, the central {size} x {size} cut out"
        text += ". `network.class_names` are the names of the outputs in their order"
    return f"{text}."


def _listed(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:g}" for value in values) + ")"


def _making(cell: Cell, task: Task, record: Record) -> str:
    """Data, recipe, start and versions."""
    recipe = task.recipe.for_samples(cell.train_samples)
    lines = [
        f"- data: {task.summary}",
        f"- budget: {cell.budget:g} of the dense network's, seed {cell.seed}, epochs: {cell.epochs}",
        f"- recipe: SGD, batches of {recipe.batch_size}, learning rate {recipe.learning_rate:g}, momentum "
        f"{recipe.momentum:g}, weight decay {recipe.weight_decay:g}, linear warm-up, then a cosine to zero",
    ]
    settings = ", ".join(f"{name}={value}" for name, value in (record["settings"] or {}).items())
    lines.append(f"- settings of {cell.method}: {settings or 'none'}")
    if isinstance(task, OwnImages):
        known = {"crop": "crops of random size, mirrored", "shift": "crops of one size, mirrored", "none": "none"}
        name = task.augmentation
        lines.append(
            f"- augmentation: {known[name] if name in SUITE_AUGMENTATIONS else f'crops, mirrored, {name} of timm'}"
        )
        if task.checkpoint_sha256 is not None:
            lines.append(
                "- start: a checkpoint, whose weights fill the dense model; each filter and layer that joins the "
                f"network brings its own of them (sha256 {task.checkpoint_sha256[:16]})"
            )
    versions: dict[str, Any] = record["versions"] or {}
    named = ("python", "torch", "timm", "nasbench_grow")
    lines.append("- versions: " + ", ".join(f"{name} {versions[name]}" for name in named if versions.get(name)))
    lines.append(f"- begun {record['started_at']}, {record['total_s']:.0f} s in all")
    return "\n".join(lines)
