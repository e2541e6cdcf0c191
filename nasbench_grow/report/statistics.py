"""Means and spreads over seeds with their intervals: the only statistics of the report."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from scipy.special import fdtri, stdtrit

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
    quantile = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2))
    return Estimate(n, mean, quantile * deviation(known) / math.sqrt(n))


def deviation(values: Iterable[float]) -> float:
    """The sample standard deviation; NaN for fewer than two known values."""
    known = [float(value) for value in values if not math.isnan(value)]
    if len(known) < 2:
        return math.nan
    mean = math.fsum(known) / len(known)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in known) / (len(known) - 1))


@dataclass(frozen=True)
class Ratio:
    """How many times as large something is, with the ends of its interval (all NaN where it is not defined)."""

    value: float
    low: float
    high: float


def spread_ratio(values: Iterable[float], reference: Iterable[float]) -> Ratio:
    """Standard deviation of ``values`` as a multiple of that of ``reference``, with its interval at :data:`CONFIDENCE`.

    The interval is that of two independent normal samples: the ratio of the variances over that of the populations
    follows the F distribution. Missing values (NaN) are left out.
    """
    mine = [value for value in values if not math.isnan(value)]
    others = [value for value in reference if not math.isnan(value)]
    below = deviation(others)
    if math.isnan(deviation(mine)) or math.isnan(below) or below == 0:
        return Ratio(math.nan, math.nan, math.nan)
    ratio = deviation(mine) / below
    low, high = (
        ratio / math.sqrt(float(fdtri(len(mine) - 1, len(others) - 1, share)))
        for share in ((1 + CONFIDENCE) / 2, (1 - CONFIDENCE) / 2)
    )
    return Ratio(ratio, low, high)
