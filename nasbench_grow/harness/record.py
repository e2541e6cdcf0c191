"""A record: what is kept of a finished cell, for ever.

This file is the one place that knows a record's fields, and the one rule by which a file is judged to be a record: the
results folder (:mod:`nasbench_grow.harness.store`) and the frames that users read
(:mod:`nasbench_grow.report.frames`) both ask :func:`read`. A record that an older version wrote is read as one of
today's:
fields that did not exist then have their default, which is null unless the older version meant something definite, and
what was called otherwise has the name of today.
"""

from __future__ import annotations

import re
from typing import Any, Literal

from nasbench_grow.base.errors import UserError

Record = dict[str, Any]

SCHEMA = 3
"""Raise this with every change of meaning of a field, and say in :func:`read` what older records meant. A new field
needs no new number."""

BUDGET_LIMIT = 0.02
"""Largest distance of the returned network's MACs from the budget, as a share of the dense ones, that meets it."""

STATUSES = ("ok", "failed", "diverged", "skipped")
"""``skipped``: the method says that it cannot run on this task or backbone; ``error`` holds its reason."""

Kind = Literal["text", "whole", "number", "flag", "object"]

FIELDS: dict[str, Kind] = {
    # which cell
    "run_key": "text",
    "schema": "whole",
    "method": "text",
    "family": "text",
    "settings": "object",
    "task": "text",
    "backbone": "text",
    "setup": "text",
    "budget": "number",
    "seed": "whole",
    "epochs": "whole",
    "train_samples": "whole",
    "profile": "text",
    "comparison_key": "text",
    "method_key": "text",
    "source_key": "text",
    # how it ended
    "status": "text",
    "error": "text",
    # the metric
    "metric": "text",
    "higher_is_better": "flag",
    "metric_scale": "number",
    "metric_unit": "text",
    "val_metric": "number",
    "soft_val_metric": "number",
    "test_metric": "number",
    # the network returned
    "params": "whole",
    "dense_params": "whole",
    "macs": "whole",
    "dense_macs": "whole",
    "meets_budget": "flag",
    "weights_sha256": "text",
    # what training took
    "train_macs": "whole",
    "dense_train_macs": "whole",
    "search_macs": "whole",
    "source_macs": "whole",
    "calibration_macs": "whole",
    "wall_s": "number",
    "cpu_s": "number",
    "search_s": "number",
    "total_s": "number",
    "peak_memory_bytes": "whole",
    # latency, measured in turn with the dense network's
    "latency_ms_batch1": "number",
    "latency_ratio_batch1": "number",
    "latency_ratio_low_batch1": "number",
    "latency_ratio_high_batch1": "number",
    "latency_ms_batch64": "number",
    "latency_ratio_batch64": "number",
    "latency_ratio_low_batch64": "number",
    "latency_ratio_high_batch64": "number",
    # where and when
    "beside": "whole",
    "hardware": "object",
    "versions": "object",
    "code_version": "text",
    "started_at": "text",
}
"""Every field of a record, in the order in which it is written, and its kind; any may be null but those of
:data:`REQUIRED`. ``docs/results.md`` gives meaning and unit."""

REQUIRED = ("run_key", "method", "task", "backbone", "setup", "budget", "seed", "status")


def read(value: Any, key: str) -> Record:
    """The record of cell ``key`` that a JSON file held, as one of today's schema.

    Fields that this version does not know are kept.

    Raises:
        ValueError: it is no record of that cell; the message says why in a few words.
        UserError: a newer version wrote it, whose meanings are not known here; it is no damage.
    """
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    schema = value.get("schema")
    if isinstance(schema, int) and schema > SCHEMA:
        raise UserError(
            f"the record {key} has schema {schema}, but this version knows 1 to {SCHEMA}; update nasbench-grow, or "
            "give another results folder"
        )
    missing = [field for field in REQUIRED if value.get(field) is None]
    if missing:
        raise ValueError(f"no {', '.join(missing)}")
    if value["run_key"] != key:
        raise ValueError(f"holds the record of {value['run_key']!r}")  # a copy would count one run twice
    if value["status"] not in STATUSES:
        raise ValueError(f"unknown status {value['status']!r}")
    for field, kind in FIELDS.items():
        found = value.get(field)
        if found is not None and not _is(kind, found):
            raise ValueError(f"{field} is {found!r}")
    return {**dict.fromkeys(FIELDS), **_meant(value), **value, **_renamed(value)}


def is_settled(record: Record | None) -> bool:
    """Whether nothing is left to do for the cell: it is finished, or its method cannot run there."""
    return record is not None and record["status"] in ("ok", "skipped")


LAST_OF_GROW = 2
"""The last schema whose ``grow`` is today's ``scaled``."""

_FAMILIES = {
    **dict.fromkeys(("dense", "uniform", "random", "retrain"), "control"),
    "l1": "pruning",
    **dict.fromkeys(("grow", "grow-paper"), "growing"),
}
"""Of the methods of schema 1."""


def _meant(old: Record) -> Record:
    """What a record of an older schema says without having a field for it."""
    if old.get("schema") is not None:
        return {}
    # Schema 1 knew three metrics and billed nothing but the training of the network returned.
    perplexity = old.get("metric") == "perplexity"
    return {
        "schema": 1,
        "family": _FAMILIES.get(str(old.get("method")).partition("[")[0]),
        "higher_is_better": not perplexity,
        "metric_scale": 1.0 if perplexity else 100.0,
        "metric_unit": "" if perplexity else "%",
        "search_macs": 0,
        "source_macs": 0,
        "calibration_macs": 0,
    }


def _renamed(old: Record) -> Record:
    """What is called otherwise today: up to schema 2 the method of today's ``scaled`` was called ``grow``."""
    if (old.get("schema") or 1) > LAST_OF_GROW:
        return {}
    method = "retrain[of=grow]" if old["method"] == "retrain" else old["method"]
    method = re.sub(r"\bgrow\b(?!-)", "scaled", method)
    return {"method": method, "family": "control"} if method.startswith("scaled") else {"method": method}


def _is(kind: Kind, value: Any) -> bool:
    if kind == "text":
        return isinstance(value, str)
    if kind == "object":
        return isinstance(value, dict)
    if kind == "flag":
        return isinstance(value, bool)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return kind == "number" or float(value).is_integer()
