"""Writes ``docs/methods.md``: every built-in method as its own file describes it, with its settings."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import sys
import textwrap
from itertools import pairwise
from pathlib import Path
from typing import Any

from nasbench_grow.contract import Method
from nasbench_grow.contract.settings import help_of
from nasbench_grow.harness import registry

PAGE = Path(__file__).parents[2] / "docs" / "methods.md"

_FAMILIES = {
    "growing": "Growing",
    "pruning": "Pruning",
    "search": "Architecture search",
    "control": "Controls",
}

_HEAD = """# Methods

Every method of the suite, in the words of its own file; written by `make methods`. `nasbench-grow list methods` lists
them in short, and [adding a method](adding-a-method.md) says how to write one. A setting is changed in brackets:
`--method 'l1[start=trained]'`.
"""


def page() -> str:
    """The whole page, in Markdown."""
    built_in = {name: cls for name, cls in registry.methods().items() if cls.__module__.startswith("nasbench_grow.")}
    parts = [_HEAD]
    for family, title in _FAMILIES.items():
        members = [cls for _, cls in sorted(built_in.items()) if cls.family == family]
        if members:
            parts += [f"## {title}\n", *map(_section, members)]
    return "\n".join(parts)


def _section(cls: type[Method]) -> str:
    """One method: its summary, citation, docstring and settings."""
    module = sys.modules[cls.__module__]
    text = _in_markdown(inspect.cleandoc(module.__doc__ or ""))
    rows = [f"| `{line}` | {about} |" for line, about in zip(help_of(cls.Settings), _about(cls.Settings), strict=True)]
    table = ["| setting | |", "|---|---|", *rows, ""] if rows else []
    source = Path(inspect.getfile(cls)).name
    cited = f" *{cls.citation}.*" if cls.citation else ""
    heading = [f"### `{cls.name}`", "", f"[{source}](../baselines/{source}).{cited}", "", text, ""]
    return "\n".join([*heading, *table])


def _about(kind: type[Any]) -> list[str]:
    """What the settings' own docstrings say, in the order of the fields."""
    said: dict[str, str] = {}
    for base in reversed(kind.__mro__[:-1]):
        (body,) = (node.body for node in ast.parse(textwrap.dedent(inspect.getsource(base))).body)  # type: ignore[attr-defined]
        for field, text in pairwise(body):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
            ):
                said[field.target.id] = _in_markdown(" ".join(str(text.value.value).split())).replace("|", "\\|")
    return [said.get(field.name, "") for field in dataclasses.fields(kind)]


def _in_markdown(text: str) -> str:
    """A docstring's markup as Markdown's."""
    return re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text).replace("``", "`")


def main() -> None:
    """Writes the page."""
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
