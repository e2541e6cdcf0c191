"""The tables of ``docs/models.md``, computed from the records."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

from nasbench_grow.dev.bench.record import Record, table
from nasbench_grow.dev.model_table.kinds import KINDS
from nasbench_grow.structure.exactness import TOLERANCE

TARGET = 0.9
"""Share of the models that must be exact and can lose the rest of their MACs."""
MOST_LEFT = 0.2
"""Share of its MACs that a model's smallest sub-network may have to count as one that can grow from little."""
_OUTPUT = "its channels are the model's output"


def problem(record: Record) -> str | None:
    """Why a model does not hold what the suite promises, in words; None if it does."""
    if record["reason"]:
        return str(record["reason"])
    if not record["groups"]:
        return "no channels can be removed"
    for network in record["networks"]:
        if network["error"] is None:
            return "output is not a number"
        if network["error"] > TOLERANCE:
            return f"output differs by {network['error']:.1e}"
        if network["macs"] != network["counted_macs"]:
            return f"MACs are {network['counted_macs']}, not {network['macs']}"
        if not all(loss < float("inf") for loss in network["losses"]):
            return "loss is not finite"
        if network["without_gradient"]:
            return f"no gradient for {network['without_gradient'][0]}"
    return None


def grows(record: Record) -> bool:
    """Whether a model is exact and its smallest sub-network has at most :data:`MOST_LEFT` of its MACs."""
    return problem(record) is None and record["left"] <= MOST_LEFT


def tables(records: Sequence[Record], models: int) -> str:
    """Everything that stands on the page, as Markdown; ``models`` is how many there are to be examined."""
    if not records:
        return "No records yet: `make model-table`"
    number = sum(map(grows, records))
    parts = [
        f"**{number} of {len(records)} models are exact and have at most {MOST_LEFT:.0%} of their MACs left** in the "
        f"smallest structure ({number / len(records):.0%}; the target is {TARGET:.0%} of them)."
    ]
    if len(records) < models:
        parts.append(f"**{len(records)} of {models} models are examined.** The others: `make model-table`")
    parts.append(_summary(records))
    for kind in (*KINDS.values(), None):
        of_kind = [record for record in records if record.get("kind") == kind]
        if of_kind:
            parts += [f"### {kind or 'unknown'}", _table(of_kind)]
    parts += ["### What stays whole", "\n".join(line for record in records for line in _whole(record))]
    return "\n\n".join([*parts, _origin(records)])


def _summary(records: Sequence[Record]) -> str:
    """How many models of each kind are exact, and how many of those can lose most of their MACs."""
    rows = []
    for kind in (*KINDS.values(), None):
        of_kind = [record for record in records if record.get("kind") == kind]
        if of_kind:
            exact, growing = sum(problem(record) is None for record in of_kind), sum(map(grows, of_kind))
            rows.append([kind or "unknown", len(of_kind), exact, growing, f"{growing / len(of_kind):.0%}"])
    return table(["kind", "models", "exact", f"and at most {MOST_LEFT:.0%} left", "share"], rows)


def _table(records: Sequence[Record]) -> str:
    header = ["model", "family", "input", "parameters", "groups", "filters", "layers", "MACs left", "exact"]
    cells: list[Callable[[Record], object]] = [
        lambda record: f"`{record['name']}`",
        lambda record: record["family"],
        lambda record: ", ".join("x".join(map(str, shape)) or "1" for shape in record["input"]),
        lambda record: f"{record['parameters'] / 1e6:.1f} M",
        lambda record: record["groups"],
        lambda record: record["filters"],
        lambda record: record["layers"],
        lambda record: f"{record['left']:.1%}",
        lambda record: problem(record) or "yes",
        lambda record: len(_fixed(record)),
        lambda record: f"{record['discovery_s']:.0f} s",
    ]
    rows = [[_cell(cell, record) for cell in cells] for record in records]
    return table([*header, "stays whole", "discovery"], rows)


def _cell(cell: Callable[[Record], object], record: Record) -> str:
    """The text of a cell, a dash where the examination did not come that far."""
    try:
        return str(cell(record)).replace("|", "\\|")
    except KeyError:
        return "\N{EN DASH}"


def _fixed(record: Record) -> dict[str, str]:
    """The modules whose channels cannot be removed beside those of the output, each with the reason."""
    return {name: reason for name, reason in record["fixed"].items() if reason != _OUTPUT}


def _whole(record: Record) -> list[str]:
    """A line of a list about what stays whole in a model: each kind of reason, with how often and the first example."""
    examples: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for name, reason in _fixed(record).items() if "fixed" in record else ():
        kind, _, detail = reason.partition(" (")
        examples[kind.partition(" to ")[0]].append((name, f"{kind} ({detail}" if detail else kind))
    reasons = [f"{len(found)} as `{found[0][0]}`: {found[0][1]}" for found in examples.values()]
    return [f"- `{record['name']}`: {'; '.join(reasons)}"] if reasons else []


def _origin(records: Sequence[Record]) -> str:
    """The line under the tables that says where their numbers come from."""
    dates = sorted(record["started_at"][:10] for record in records)
    newest = max(records, key=lambda record: record["started_at"])
    machine, versions = newest["hardware"], newest["versions"]
    libraries = ", ".join(f"{name} {versions[name]}" for name in ("timm", "torchvision", "torch", "torch-pruning"))
    codes = Counter(str(record["code_version"]) for record in records)
    return (
        f"{len(records)} models, examined from {dates[0]} to {dates[-1]} on {machine['cores']} cores of "
        f"{machine['cpu']}, {machine['memory_gib']} GiB, {libraries}; code "
        f"{', '.join(f'{code} ({count} models)' for code, count in codes.items())}."
    )
