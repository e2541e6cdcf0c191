"""The examples of docs/adding-a-method.md, installed as a package of its own and run by the command."""

import json
import re
import shlex
from pathlib import Path

import pytest

from nasbench_grow import cli
from nasbench_grow.harness import registry

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "adding-a-method.md").read_text()
CODE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
DECLARED = re.findall(r'^(\w+) = "my_package\.(\w+):(\w+)"$', PAGE, re.MULTILINE)
COMMANDS = re.findall(r"^nasbench-grow (run .*)$", PAGE, re.MULTILINE)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder on the import path with the page's code and the entry points that the page declares."""
    site = tmp_path_factory.mktemp("site")
    package = site / "my_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    for (_, module, _), code in zip(DECLARED, CODE, strict=True):
        (package / f"{module}.py").write_text(code)
    metadata = site / "my_package-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    points = "".join(f"{name} = my_package.{module}:{cls}\n" for name, module, cls in DECLARED)
    (metadata / "entry_points.txt").write_text(f"[nasbench_grow.methods]\n{points}")
    return site


@pytest.mark.parametrize("code", CODE, ids=[name for name, _, _ in DECLARED])
def test_an_example_is_forty_lines_of_code(code):
    assert (
        sum(bool(line.strip()) and not line.lstrip().startswith(("from ", "import ")) for line in code.splitlines())
        <= 40
    )


@pytest.mark.parametrize("command", COMMANDS, ids=[name for name, _, _ in DECLARED])
def test_a_method_from_outside_runs_within_its_budget(installed, tmp_path, monkeypatch, capsys, command):
    monkeypatch.syspath_prepend(installed)
    registry.methods.cache_clear()
    try:
        code = cli.main(
            [*shlex.split(command), "--train-samples", "128", "--results", str(tmp_path / "results"), "--json"]
        )
    finally:
        registry.methods.cache_clear()
    assert code == 0
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert record["meets_budget"]
    assert (record["search_macs"] > 0) == (record["family"] == "search")
