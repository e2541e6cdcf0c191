"""Means over seeds and their intervals: the only statistics of the report."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from scipy.special import stdtrit

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over ``n`` seeds with the half-width of its interval (NaN for fewer than two seeds)."""

    n: int
    mean: float
    half_width: float

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        return self.mean - self.half_width

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        return self.mean + self.half_width

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside the interval; False without an interval."""
        return abs(self.mean) > self.half_width


def estimate(values: Iterable[float]) -> Estimate:
    """Mean and two-sided Student t interval at :data:`CONFIDENCE`; missing values (NaN) are left out.

    The half-width is ``t(n - 1) * s / sqrt(n)`` with the sample standard deviation ``s``.
    """
    known = [float(value) for value in values if not math.isnan(value)]
    n = len(known)
    if n == 0:
        return Estimate(0, math.nan, math.nan)
    mean = math.fsum(known) / n
    if n == 1:
        return Estimate(1, mean, math.nan)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in known) / (n - 1))
    quantile = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2))
    return Estimate(n, mean, quantile * deviation / math.sqrt(n))
