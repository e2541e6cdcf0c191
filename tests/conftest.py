import pytest

from nasbench_grow.harness import measure


@pytest.fixture(autouse=True)
def short_latencies(monkeypatch):
    """Latencies are measured in a few rounds: no test looks at what they are."""
    monkeypatch.setattr(measure, "ROUNDS_S", 0.01)
    monkeypatch.setattr(measure, "LEAST_ROUNDS", 7)
