"""Results folders that no training made: for tests of what reads them."""

from __future__ import annotations

import hashlib
import json
import math
import random
from pathlib import Path
from typing import Any

import pandas as pd

from nasbench_grow import results
from nasbench_grow.harness.record import SCHEMA
from nasbench_grow.report import tables
from nasbench_grow.report.block import Block, blocks_of

LAYERS = {"conv1": 16, "layer1.0.conv1": 16, "layer1.0.conv2": 16, "layer2.0.conv1": 32, "layer2.0.conv2": 32, "fc": 10}
DENSE_MACS = 40_000_000
SAMPLES = 5000
FAMILIES = {
    **dict.fromkeys(("dense", "uniform", "random", "retrain"), "control"),
    "l1": "pruning",
    **dict.fromkeys(("grow", "grow-paper"), "growing"),
}


def record(method: str = "grow", budget: float = 0.5, seed: int = 0, **changes: Any) -> dict[str, Any]:
    """A complete record with made-up figures; ``changes`` overrides fields."""
    epochs = changes.get("epochs", 4)
    told = ("task", "backbone", "setup", "epochs", "comparison_key", "method_key")
    identity = [method, budget, seed, *(str(changes.get(name)) for name in told)]
    macs = int(DENSE_MACS * budget)
    dense_train_macs = 3 * DENSE_MACS * SAMPLES * epochs
    return {
        "run_key": hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16],
        "method": method,
        "task": "synthetic",
        "backbone": "cifar_resnet20",
        "setup": "cpu",
        "budget": budget,
        "seed": seed,
        "status": "ok",
        "error": None,
        "schema": SCHEMA,
        "family": FAMILIES.get(method.partition("[")[0]),
        "settings": {},
        "comparison_key": "c" * 16,
        "method_key": "m" * 16,
        "metric": "accuracy",
        "higher_is_better": True,
        "metric_scale": 100.0,
        "metric_unit": "%",
        "val_metric": 0.6 + 0.01 * seed,
        "test_metric": 0.6 + 0.01 * seed,
        "soft_val_metric": 0.601 + 0.01 * seed,
        "params": 100_000,
        "dense_params": 270_000,
        "macs": macs,
        "dense_macs": DENSE_MACS,
        "train_macs": int(dense_train_macs * budget),
        "dense_train_macs": dense_train_macs,
        "meets_budget": None if method.startswith("dense") else True,
        "search_macs": 0,
        "source_macs": 0,
        "calibration_macs": 0,
        "wall_s": 100.0 * budget,
        "cpu_s": 90.0 * budget,
        "search_s": 0.0,
        "total_s": 110.0,
        "peak_memory_bytes": 512 * 2**20,
        "latency_ms_batch1": 2.0,
        "latency_ms_batch64": 20.0,
        **{f"latency_ratio_batch{size}": budget for size in (1, 64)},
        **{f"latency_ratio_low_batch{size}": budget - 0.05 for size in (1, 64)},
        **{f"latency_ratio_high_batch{size}": budget + 0.05 for size in (1, 64)},
        "epochs": epochs,
        "train_samples": SAMPLES,
        "profile": "synthetic",
        "weights_sha256": "0" * 64,
        "hardware": {
            "cpu": "Imaginary CPU",
            "cores": 2,
            "threads": 1,
            "memory_gib": 8.0,
            "gpu": None,
            "platform": "Linux",
        },
        "versions": {"python": "3.11.9", "torch": "2.15.0", "torch-pruning": "1.6.0", "nasbench_grow": "0.1.0"},
        "code_version": "abc1234",
        "started_at": "2026-01-02T03:04:05+00:00",
    } | changes


def failed(method: str, budget: float, seed: int, status: str = "failed", **changes: Any) -> dict[str, Any]:
    """The record of a cell that did not end well: no figures."""
    figures = ("val_metric", "test_metric", "soft_val_metric", "params", "macs", "meets_budget", "train_macs", "wall_s")
    figures += ("cpu_s", "peak_memory_bytes", "latency_ms_batch1", "latency_ms_batch64", "total_s")
    figures += tuple(f"latency_ratio_{end}batch{size}" for end in ("", "low_", "high_") for size in (1, 64))
    return record(method, budget, seed, **dict.fromkeys(figures), **{"status": status, "error": "it broke"} | changes)


def history(of: dict[str, Any]) -> dict[str, Any]:
    """A plausible history of the run that ``of`` records: growing methods rise to their budget, the others stand."""
    draw = random.Random(of["run_key"])
    growing = of["method"].startswith("grow")
    epochs = []
    for epoch in range(1, of["epochs"] + 1):
        progress = epoch / of["epochs"]
        target = of["budget"] * min(1.0, 1.5 * progress) if growing else of["budget"]
        cost = max(0.002, target + (draw.gauss(0, 0.01) if growing else 0.0))
        share = math.sqrt(cost)
        widths = {name: max(1, round(full * share * draw.uniform(0.8, 1))) for name, full in LAYERS.items()}
        widths = {name: min(width, LAYERS[name]) for name, width in widths.items()} | {"fc": 10}
        if of["method"] == "dense":
            widths = dict(LAYERS)
        if growing and progress < 0.4:
            del widths["layer2.0.conv1"], widths["layer2.0.conv2"]
        epochs.append(
            {
                "epoch": epoch,
                "loss": 2.3 * math.exp(-1.5 * progress) + draw.gauss(0, 0.03),
                "learning_rate": 0.1 * (1 - progress),
                "val_metric": (of["val_metric"] or 0.1) * (1 - math.exp(-4 * progress)) + draw.gauss(0, 0.005),
                "macs": int(cost * DENSE_MACS),
                "train_macs": int(3 * DENSE_MACS * SAMPLES * epoch * cost),
                "wall_s": 100.0 * of["budget"] * progress,
                "widths": widths,
                "log": {"target": target, "cost": cost} if growing else {},
            }
        )
    return {"run_key": of["run_key"], "epochs": epochs}


def write(folder: Path, records: list[dict[str, Any]], with_histories: bool = True) -> Path:
    """Lay the records, and histories for them, out as a results folder; returns it."""
    for kind in ("records", "histories"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for one in records:
        (folder / "records" / f"{one['run_key']}.json").write_text(json.dumps(one))
        if with_histories:
            (folder / "histories" / f"{one['run_key']}.json").write_text(json.dumps(history(one)))
    return folder


def full_comparison(epochs: int = 10) -> list[dict[str, Any]]:
    """Six methods, two budgets, three seeds, with scattered figures: for looking at the figures."""
    draw = random.Random(0)
    quality = {"dense": 0.62, "uniform": 0.59, "random": 0.57, "l1": 0.585, "grow": 0.60, "grow-paper": 0.56}
    training = {"dense": 1.0, "uniform": 1.0, "random": 1.0, "l1": 1.4, "grow": 0.85, "grow-paper": 0.7}
    records = []
    for method, accuracy in quality.items():
        for budget in [1.0] if method == "dense" else [0.25, 0.5]:
            for seed in range(3):
                one = record(method, budget, seed, epochs=epochs)
                accuracy_here = accuracy + 0.06 * (budget - 1) + draw.gauss(0, 0.006)
                effort = min(1.0, budget * training[method] * draw.uniform(0.97, 1.03))
                one["test_metric"] = accuracy_here
                one["val_metric"] = accuracy_here + draw.gauss(0, 0.003)
                one["soft_val_metric"] = one["val_metric"] + draw.gauss(0, 0.001)
                one["macs"] = int(DENSE_MACS * (budget + (draw.gauss(0, 0.006) if budget < 1 else 0)))
                one["train_macs"] = int(one["dense_train_macs"] * effort)
                one["wall_s"] = 200 * (0.2 + 0.8 * effort) * draw.uniform(0.97, 1.03)
                records.append(one)
    return records


def blocks(folder: Path) -> list[Block]:
    """The blocks of a results folder."""
    return blocks_of(results.load(folder))


def table_of(folder: Path, which: Any) -> pd.DataFrame:
    """The unrounded numbers of a table of a results folder."""
    found = blocks(folder)
    return (which(found, results.histories(folder)) if which is tables.requirements else which(found)).data


def seeds(method: str, metrics: list[float], budget: float = 0.5, **changes: Any) -> list[dict[str, Any]]:
    """A record for each seed with these metrics, validation and test alike."""
    return [
        record(method, budget, seed, val_metric=value, test_metric=value, **changes)
        for seed, value in enumerate(metrics)
    ]
