"""The tables of the questions about growing; every number is computed from the records."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from nasbench_grow.report.figures import Widths
from nasbench_grow.report.pairs import pair, pair_text
from nasbench_grow.report.statistics import deviation, estimate, spread_ratio
from nasbench_grow.report.studies import Study
from nasbench_grow.report.tables import Part, Table, compare, protocol_columns, seeds_text, time_share
from nasbench_grow.report.wording import MINUS, NOTHING, TIMES, floats, number, with_interval

BASELINE = "uniform"
"""What every variant is compared with besides the question's reference: the same cost without a search."""

_MEANS_NOTE = (
    f"Means over seeds, ± their 95 % Student t interval. MACs are those of the returned network ({TIMES} dense)"
)


def variants(name: str, title: str, studied: Sequence[Study]) -> Table:
    """A row for each variant and budget: test metric, paired differences to the reference and to uniform, costs."""
    data, parts = [], []
    for study in studied:
        rows = [_variant(study, method, budget) for method, budget in study.rows]
        data += rows
        columns = ("reference", "uniform")
        others = list(dict.fromkeys(row[f"other_{at}"] for at in columns for row in rows if row[f"n_{at}"]))
        unknown = [math.isnan(row["wall_share"]) for row in rows]
        in_shares = not all(unknown)
        partly = "; time is not compared where the number of threads was another" if any(unknown) else ""
        texts = pd.DataFrame([_variant_text(study, row, others, in_shares) for row in rows])
        note = (
            f"{_MEANS_NOTE}, training MACs and time those of its whole training"
            f"{f' ({TIMES} dense{partly})' if in_shares else ''}. {_paired_note(study, others)}"
        )
        parts.append(Part(study.own, note.strip(), texts))
    return Table(name, title, pd.DataFrame(data), parts)


def couples(name: str, title: str, studied: Sequence[Study], pairs: Sequence[tuple[str, str]]) -> Table:
    """A row for each budget and pair of methods: difference of the test metric, paired by seed."""
    data, parts = [], []
    for study in studied:
        rows = []
        for budget in study.budgets:
            for method, other in pairs:
                by_seed = study.differences(method, other, budget)
                if not by_seed.empty:
                    rows.append(pair(study.own, method, other, budget, by_seed))
        data += rows
        if rows:
            note = "Differences seed by seed at the same budget; ± is the 95 % Student t interval of their mean."
            parts.append(Part(study.own, note, pd.DataFrame([pair_text(study.own, row) for row in rows])))
    return Table(name, title, pd.DataFrame(data), parts)


def price(name: str, title: str, studied: Sequence[Study]) -> Table:
    """A row for each method and budget: what training cost, beside the metric that it reached."""
    data, parts = [], []
    for study in studied:
        rows = [_priced(study, method, budget) for method, budget in study.rows]
        data += rows
        note = (
            f"{_MEANS_NOTE}. Training MACs are given as a multiple of training dense for as many epochs, then of "
            "training the returned network from scratch for as many. Retraining does not pay for the search."
        )
        parts.append(Part(study.own, note, pd.DataFrame([_price_text(study, row) for row in rows])))
    return Table(name, title, pd.DataFrame(data), parts)


def stability(name: str, title: str, studied: Sequence[Study], widths: Widths) -> Table:
    """A row for each method and budget: how far the runs of many seeds lie apart, and how many went wrong."""
    data, parts = [], []
    for study in studied:
        rows = [_spread(study, method, budget, widths) for method, budget in study.rows]
        data += rows
        note = (
            f"std: sample standard deviation; {_over(study)}: its ratio to that of {study.question.reference}, with "
            "the 95 % interval for independent normal samples (F distribution). Off budget: largest distance of the "
            "MACs from the budget (share of dense). Narrowest: fewest channels of any layer of a returned network; 1 "
            "is a collapse."
        )
        parts.append(Part(study.own, note, pd.DataFrame([_spread_text(study, row) for row in rows])))
    return Table(name, title, pd.DataFrame(data), parts)


def _reached(study: Study, row: dict[str, Any]) -> dict[str, str]:
    """The first columns of a row: what was run, and the test metric that it reached."""
    block = study.own
    return {
        "budget": f"{row['budget']:g}",
        "method": f"`{row['method']}`",
        "seeds": seeds_text(row),
        f"test {block.metric_label}": with_interval(row["test_metric"], row["test_metric_half_width"], block.scale),
    }


def _variant(study: Study, method: str, budget: float) -> dict[str, Any]:
    """One variant at one budget, unrounded; the paired differences stand in columns ``*_reference``, ``*_uniform``."""
    row = compare(study.own, method, budget)
    row["wall_share"] = time_share(study.own.of(method, budget), study.everything.of("dense"))
    for at, other in (("reference", study.question.reference), ("uniform", BASELINE)):
        result = estimate(study.differences(method, other, budget))
        row |= {
            f"other_{at}": other,
            f"n_{at}": result.n,
            f"difference_{at}": result.mean,
            f"half_width_{at}": result.half_width,
        }
    return row


def _variant_text(study: Study, row: dict[str, Any], others: list[str], in_shares: bool) -> dict[str, str]:
    """One variant at one budget for reading, its time as a share of dense's or in seconds."""
    by_other = {row[f"other_{at}"]: at for at in ("uniform", "reference")}
    compared = {
        f"{MINUS} {other}": with_interval(
            row[f"difference_{by_other[other]}"], row[f"half_width_{by_other[other]}"], study.own.scale, "+"
        )
        for other in others
    }
    time = {f"time ({TIMES} dense)": number(row["wall_share"], 2)} if in_shares else {"time (s)": _seconds(row)}
    return {
        **_reached(study, row),
        **compared,
        "MACs": number(row["macs_share"], 3),
        "training MACs": number(row["train_macs_share"], 3),
        **time,
    }


def _paired_note(study: Study, others: list[str]) -> str:
    """What the columns of paired differences hold, where there are any."""
    if not others:
        return ""
    unit = "points" if study.own.in_percent else study.own.metric
    heads = " and ".join(f"{MINUS} {other}" for other in others)
    return f"{heads}: difference of the test {study.own.metric} ({unit}), seed by seed."


def _priced(study: Study, method: str, budget: float) -> dict[str, Any]:
    """One method at one budget with its training MACs as a share of training the returned network from scratch."""
    cells = study.own.of(method, budget)
    scratch = cells["dense_train_macs"].astype(float) * cells["macs_share"]
    row = compare(study.own, method, budget)
    row["train_macs_of_scratch"] = estimate(floats(cells["train_macs"] / scratch)).mean
    return row


def _price_text(study: Study, row: dict[str, Any]) -> dict[str, str]:
    """One method at one budget for reading."""
    return {
        **_reached(study, row),
        "MACs": number(row["macs_share"], 3),
        f"training MACs ({TIMES} dense)": number(row["train_macs_share"], 3),
        f"({TIMES} from scratch)": number(row["train_macs_of_scratch"], 3),
        "training (s)": _seconds(row),
    }


def _spread(study: Study, method: str, budget: float, widths: Widths) -> dict[str, Any]:
    """One method at one budget: spread over seeds, unrounded."""
    cells, reference = study.own.of(method, budget), study.own.of(study.question.reference)
    row = compare(study.own, method, budget)
    metric = list(floats(cells["test_metric"]))
    ratio = spread_ratio(metric, floats(reference["test_metric"]))
    kept = ("budget", "method", "cells", "finished", "failed", "diverged", "test_metric")
    return {
        **protocol_columns(study.own),
        **{name: row[name] for name in kept},
        "deviation": deviation(metric),
        "lowest": min(metric, default=math.nan),
        "highest": max(metric, default=math.nan),
        "reference": study.question.reference,
        "deviation_ratio": ratio.value,
        "deviation_ratio_low": ratio.low,
        "deviation_ratio_high": ratio.high,
        "off_budget": max((cells["macs_share"] - budget).abs(), default=math.nan),
        "narrowest": _narrowest(widths(list(cells["run_key"]))),
    }


def _narrowest(widths: pd.DataFrame) -> float:
    """The smallest width of any layer after the last epoch of any run; NaN where no history is kept."""
    last = widths["epoch"] == widths.groupby("run_key")["epoch"].transform("max")
    return float(widths.loc[last, "width"].min()) if last.any() else math.nan


def _spread_text(study: Study, row: dict[str, Any]) -> dict[str, str]:
    """One method at one budget for reading."""
    scale = study.own.scale
    ratio = f"{row['deviation_ratio']:.2f} ({row['deviation_ratio_low']:.2f} to {row['deviation_ratio_high']:.2f})"
    comparable = row["method"] != row["reference"] and not math.isnan(row["deviation_ratio"])
    return {
        "method": f"`{row['method']}`",
        "budget": f"{row['budget']:g}",
        "seeds": str(row["cells"]),
        "failed": str(row["failed"] + row["diverged"]),
        f"mean test {study.own.metric_label}": number(row["test_metric"] * scale, 2),
        "std": number(row["deviation"] * scale, 2),
        "min": number(row["lowest"] * scale, 2),
        "max": number(row["highest"] * scale, 2),
        _over(study): ratio if comparable else NOTHING,
        "off budget": number(row["off_budget"], 3),
        "narrowest": number(row["narrowest"], 0),
    }


def _over(study: Study) -> str:
    """The head of the column that compares spreads."""
    return f"std / {study.question.reference}"


def _seconds(row: dict[str, Any]) -> str:
    """Training time for reading."""
    return number(row["wall_s"], 1)
