"""Marks of tests that need a set-up which not every machine can run."""

import pytest

from nasbench_grow.harness.setups import SETUPS


def _only_with(setup: str) -> pytest.MarkDecorator:
    available, reason = SETUPS[setup].available()
    return pytest.mark.skipif(not available, reason=reason)


only_with_channels_last = _only_with("cpu-channels-last")
only_with_bf16 = _only_with("cpu-bf16")
IN_BOTH_LAYOUTS = pytest.mark.parametrize(
    "setup", ["cpu", pytest.param("cpu-channels-last", marks=only_with_channels_last)]
)
