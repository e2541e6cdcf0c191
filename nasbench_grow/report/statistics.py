"""Means over seeds with their intervals, verdicts on many of them, and the interval of a share: the only statistics of
the report."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from scipy.special import ndtri, stdtr, stdtrit

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over ``n`` seeds with the half-width of its interval and the two-sided p-value of a mean of zero (both
    NaN for fewer than two seeds)."""

    n: int
    mean: float
    half_width: float
    p: float

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside the interval; False without an interval."""
        return self.p < 1 - CONFIDENCE


def estimate(values: Iterable[float]) -> Estimate:
    """Mean with Student t interval at :data:`CONFIDENCE` and t test; missing values (NaN) are left out.

    The half-width is ``t(n - 1) * s / sqrt(n)`` with the sample standard deviation ``s``.
    """
    known = [float(value) for value in values if not math.isnan(value)]
    n = len(known)
    mean = math.fsum(known) / n if n else math.nan
    if n < 2:
        return Estimate(n, mean, math.nan, math.nan)
    error = math.sqrt(math.fsum((value - mean) ** 2 for value in known) / (n - 1) / n)
    t = abs(mean) / error if error else math.inf if mean else 0.0
    return Estimate(n, mean, float(stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * error, 2 * float(stdtr(n - 1, -t)))


def holm(ps: Iterable[float]) -> list[float]:
    """The p-values adjusted by Holm: those below ``1 - CONFIDENCE`` hold for all together; NaN stays NaN."""
    ps = list(ps)
    order = sorted((at for at, p in enumerate(ps) if not math.isnan(p)), key=lambda at: ps[at])
    adjusted, largest = [math.nan] * len(ps), 0.0
    for rank, at in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * ps[at]))
        adjusted[at] = largest
    return adjusted


def wilson(share: float, n: int) -> tuple[float, float]:
    """The interval at :data:`CONFIDENCE` of a probability of which ``n`` independent trials gave ``share`` (Wilson's
    score interval); it stays within 0 and 1 and has a width for shares of 0 and 1 too."""
    z = float(ndtri((1 + CONFIDENCE) / 2))
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)
