"""Marks of tests that need a set-up which not every machine can run."""

import pytest

from nasbench_grow.harness.setups import SETUPS


def only_with(setup: str) -> pytest.MarkDecorator:
    """Skips a test where this machine cannot run a set-up, with the reason."""
    available, reason = SETUPS[setup].available()
    return pytest.mark.skipif(not available, reason=reason)


only_with_channels_last = only_with("cpu-channels-last")
only_with_bf16 = only_with("cpu-bf16")
IN_BOTH_LAYOUTS = pytest.mark.parametrize(
    "setup", ["cpu", pytest.param("cpu-channels-last", marks=only_with_channels_last)]
)
