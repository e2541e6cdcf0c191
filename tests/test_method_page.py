"""The page of methods is what the methods' own files say, and every setting is explained."""

from __future__ import annotations

from nasbench_grow.dev.method_page import PAGE, page
from nasbench_grow.harness import registry


def test_the_committed_page_is_what_make_methods_writes() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run `make methods`"


def test_every_built_in_method_and_each_of_its_settings_is_explained() -> None:
    text = page()
    built_in = [cls for cls in registry.methods().values() if cls.__module__.startswith("nasbench_grow.")]
    assert all(f"### `{cls.name}`" in text for cls in built_in)
    assert [row for row in text.splitlines() if row.startswith("| `") and row.endswith("|  |")] == []
