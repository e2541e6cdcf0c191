"""Generated blocks of hand-written documents."""

from __future__ import annotations

import pytest

from nasbench_grow.base.blocks import fill, names
from nasbench_grow.base.errors import UserError

PAGE = "# Title\n\n<!-- report:a -->\nstale\n<!-- /report:a -->\n\nBy hand.\n\n<!-- bench:b -->\n<!-- /bench:b -->\n"


def test_blocks_are_filled_and_everything_else_stays() -> None:
    filled = fill(PAGE, {"report:a": "| new |\n"})
    assert filled == PAGE.replace("\nstale\n", "\n\n| new |\n\n")
    assert fill(filled, {"report:a": "| new |"}) == filled
    assert names(PAGE, "report") == ["report:a"] and names(PAGE, "bench") == ["bench:b"]


def test_a_comment_that_is_no_marker_is_left_alone() -> None:
    text = "<!-- a remark -->\n" + PAGE
    assert fill(text, {"bench:b": "x"}).startswith("<!-- a remark -->\n# Title")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("no markers", "unknown block of the document 'report:a'.*write the lines '<!-- report:a -->'"),
        ("<!-- report:a -->", "'report:a' of the document is not closed; put '<!-- /report:a -->' after it"),
        ("\n<!-- /report:a -->", "line 2 of the document has '<!-- /report:a -->'"),
        ("<!-- report:a -->\n<!-- report:a -->", "line 2 of the document has '<!-- report:a -->'"),
        ("<!-- report:a -->\n<!-- /report:b -->", "line 2 .*'<!-- /report:a -->'"),
    ],
)
def test_wrong_markers_are_refused(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        fill(text, {"report:a": "content"})
