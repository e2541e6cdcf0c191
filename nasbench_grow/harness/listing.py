"""What ``nasbench-grow list`` shows: one row for each thing that can be named, with its name and a summary."""

from __future__ import annotations

from typing import Any

from nasbench_grow.base.errors import unknown
from nasbench_grow.contract.settings import help_of
from nasbench_grow.harness import registry
from nasbench_grow.harness.reproduce import cells_of

Row = dict[str, Any]


def listing(kind: str) -> list[Row]:
    """The rows of a kind ("methods", "tasks", "backbones", "setups" or "profiles"), each with name and summary."""
    makers = {
        "methods": _methods,
        "tasks": _tasks,
        "backbones": _backbones,
        "setups": _setups,
        "profiles": _profiles,
    }
    if kind not in makers:
        raise unknown("kind", kind, makers)
    return makers[kind]()


def _methods() -> list[Row]:
    return [
        {
            "name": name,
            "summary": f"{cls.summary} [{cls.family}{f'; {cls.citation}' if cls.citation else ''}]",
            "family": cls.family,
            "citation": cls.citation,
            "uses_budget": cls.uses_budget,
            "settings": help_of(cls.Settings),
        }
        for name, cls in registry.methods().items()
    ]


def _tasks() -> list[Row]:
    return [
        {
            "name": name,
            "summary": cls.summary,
            "metric": cls.metric,
            "higher_is_better": cls.higher_is_better,
            "input_shape": list(cls.input_shape),
            "classes": cls.num_classes,
        }
        for name, cls in registry.tasks().items()
    ]


def _backbones() -> list[Row]:
    return [{"name": name, "summary": summary} for name, summary in registry.backbones().items()]


def _setups() -> list[Row]:
    rows = []
    for name, setup in registry.setups().items():
        available, reason = setup.available()
        note = "" if available else f" (not available: {reason})"
        rows.append(
            {
                "name": name,
                "summary": setup.summary + note,
                "available": available,
                "device": setup.device,
                "channels_last": setup.channels_last,
                "granularity": setup.granularity,
                "precision": setup.precision,
                "adaptive": setup.adaptive,
                "compiled": setup.compiled,
                "graphs": setup.graphs,
                "processes": setup.processes(),
            }
        )
    return rows


def _profiles() -> list[Row]:
    return [
        {"name": name, "summary": f"{profile.summary}; {cells} cells", "cells": cells}
        for name, profile in registry.profiles().items()
        for cells in [len(cells_of(profile))]
    ]
