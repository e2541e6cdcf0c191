"""The example of docs/adding-a-method.md, installed as a package of its own and run from the command line."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "adding-a-method.md").read_text()


@pytest.fixture
def installed(tmp_path):
    """A folder on the import path with the page's code and the entry point that the page declares."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (declaration,) = re.findall(r"shallow = \"my_package.shallow:(\w+)\"", PAGE)
    package = tmp_path / "site" / "my_package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "shallow.py").write_text(code)
    metadata = tmp_path / "site" / "my_package-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[nasbench_grow.methods]\nshallow = my_package.shallow:{declaration}\n")
    return tmp_path / "site"


def test_a_method_from_outside_runs_within_its_budget(installed, tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(installed), str(ROOT)])}
    (command,) = re.findall(r"^nasbench-grow (run --method shallow .*)$", PAGE, re.MULTILINE)
    words = [*command.split(), "--train-samples", "64", "--results", str(tmp_path / "results"), "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "nasbench_grow.cli", *words], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout.splitlines()[-1])
    assert record["method"] == "shallow"
    assert 0.3 * record["dense_macs"] < record["macs"] <= 0.5 * record["dense_macs"]
    assert record["train_macs"] * record["dense_macs"] == record["dense_train_macs"] * record["macs"]
