"""A hand-written document with generated blocks between markers."""

from __future__ import annotations

import re
from collections.abc import Mapping

from nasbench_grow.base.errors import UserError, unknown

_MARKER = re.compile(r"<!-- (/?)ablation(?: (\S+))? -->")


def names(text: str) -> list[str]:
    """The names of a document's blocks, in order.

    Raises:
        UserError: a block is opened or closed without the other.
    """
    found, opened = [], ""
    for marker in _MARKER.finditer(text):
        closing, name = bool(marker[1]), marker[2]
        line = text.count("\n", 0, marker.start()) + 1
        if closing != bool(opened) or closing == bool(name):
            wanted = f"'<!-- /ablation -->' to close {opened!r}" if opened else "'<!-- ablation NAME -->'"
            raise UserError(f"line {line} of the document has {marker[0]!r} where {wanted} belongs; put that before it")
        opened = name or ""
        found += [name] if name else []
    if opened:
        raise UserError(f"block {opened!r} of the document is not closed; put '<!-- /ablation -->' after it")
    return found


def fill(text: str, contents: Mapping[str, str]) -> str:
    """The document with every block's content replaced, and nothing else changed.

    Raises:
        UserError: a block has no content of its name, or is not closed.
    """
    for name in names(text):
        if name not in contents:
            raise unknown("block of the document", name, contents, hint="rename its marker <!-- ablation NAME -->")
    block = re.compile(r"(<!-- ablation (\S+) -->).*?(<!-- /ablation -->)", re.DOTALL)
    return block.sub(lambda match: f"{match[1]}\n\n{contents[match[2]]}\n\n{match[3]}", text)
