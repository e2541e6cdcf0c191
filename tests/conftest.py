import os
from collections.abc import Iterator
from types import SimpleNamespace

import once
import pytest
from tiny_spaces import found_once

from nasbench_grow.harness import measure, registry
from nasbench_grow.structure import elastic


@pytest.fixture(scope="session", autouse=True)
def folder_of_the_run(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Where the processes of a test run find what one of them found."""
    own = tmp_path_factory.getbasetemp()
    once.folder = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session", autouse=True)
def spaces_of_tiny_networks() -> Iterator[None]:
    """Runs on the same tiny network need not find its space again each; the tests of discovery ask it themselves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(elastic, "find_space", found_once(elastic.find_space))
        yield


@pytest.fixture(autouse=True)
def short_latencies(monkeypatch, request):
    """Latencies are measured in a few rounds: but for its own, no test looks at what they are."""
    if request.module.__name__ == "test_latency":
        return
    monkeypatch.setattr(measure, "ROUNDS_S", 0.01)
    monkeypatch.setattr(measure, "LEAST_ROUNDS", 7)


@pytest.fixture(autouse=True)
def methods_as_they_are_now():
    """A method that a test puts into the registry is gone for the next test."""
    registry.method.cache_clear()
    yield
    registry.method.cache_clear()


@pytest.fixture(autouse=True)
def no_collecting(monkeypatch):
    """No garbage is collected before each cell: with all that tests import, that takes half a second."""
    monkeypatch.setattr(measure, "gc", SimpleNamespace(collect=lambda: 0))


@pytest.fixture
def unrendered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lay figures out, but skip the slow part: turning them into files."""
    from matplotlib.figure import Figure

    from nasbench_grow import report

    def laid_out(figure: Figure) -> dict[str, bytes]:
        figure.draw_without_rendering()
        return {"png": b"laid out"}

    monkeypatch.setattr(report, "rendered", laid_out)
