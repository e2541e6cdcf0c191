from types import SimpleNamespace

import pytest

from nasbench_grow.harness import measure, registry


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
