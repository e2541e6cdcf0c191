"""A hand-written document with generated blocks: what stands between ``<!-- NAME -->`` and ``<!-- /NAME -->``.

A name has a kind before its first colon, e.g. ``bench:step_time``; comments without a colon are none of ours.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from nasbench_grow.base.errors import UserError, unknown

_MARKER = re.compile(r"<!-- (/?)(\w+:\S+) -->")


def names(text: str, kind: str) -> list[str]:
    """The names of a document's blocks of a kind, in order.

    Raises:
        UserError: a block is opened or closed without the other.
    """
    found, opened = [], ""
    for marker in _MARKER.finditer(text):
        closing, name = bool(marker[1]), marker[2]
        if not name.startswith(f"{kind}:"):
            continue
        if closing != bool(opened) or (closing and name != opened):
            wanted = f"<!-- /{opened} -->" if opened else f"<!-- {name} -->"
            line = text.count("\n", 0, marker.start()) + 1
            raise UserError(f"line {line} of the document has {marker[0]!r} before {wanted!r}; put that before it")
        opened = "" if closing else name
        found += [] if closing else [name]
    if opened:
        raise UserError(f"block {opened!r} of the document is not closed; put '<!-- /{opened} -->' after it")
    return found


def fill(text: str, contents: Mapping[str, str]) -> str:
    """The document with the content of each named block replaced, and nothing else changed.

    Raises:
        UserError: the document has no such block, or does not close it.
    """
    for name, content in contents.items():
        known = names(text, name.partition(":")[0])
        if name not in known:
            hint = f"write the lines '<!-- {name} -->' and '<!-- /{name} -->' where it belongs"
            raise unknown("block of the document", name, known, hint=hint)
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        head, _, rest = text.partition(begin)
        text = f"{head}{begin}\n\n{content.strip()}\n\n{end}{rest.partition(end)[2]}"
    return text
