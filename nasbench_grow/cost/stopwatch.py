"""Seconds of the clock on the wall beside seconds of the processor: where they part, the machine was busy."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType


class Stopwatch:
    """Sums the time spent inside it: ``with stopwatch: ...``, as often as wanted, but not within itself.

    Args:
        wall: reads the clock on the wall, in seconds.
        cpu: reads the processor time that all threads of this process have used, in seconds; other processes, such as
            those that decode images, do not count.
    """

    def __init__(
        self, wall: Callable[[], float] = time.perf_counter, cpu: Callable[[], float] = time.process_time
    ) -> None:
        self._read = lambda: (wall(), cpu())
        self._before = (0.0, 0.0)
        self._started: tuple[float, float] | None = None

    def __enter__(self) -> Stopwatch:
        assert self._started is None, "a stopwatch that runs cannot be started"
        self._started = self._read()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._before, self._started = self._so_far(), None

    @property
    def wall_s(self) -> float:
        """Seconds on the wall so far, those of the stretch that runs included."""
        return self._so_far()[0]

    @property
    def cpu_s(self) -> float:
        """Seconds of the processor so far, those of the stretch that runs included."""
        return self._so_far()[1]

    def add(self, wall_s: float, cpu_s: float) -> None:
        """Count seconds that were spent elsewhere."""
        self._before = (self._before[0] + wall_s, self._before[1] + cpu_s)

    def state_dict(self) -> dict[str, float]:
        """The seconds so far."""
        wall_s, cpu_s = self._so_far()
        return {"wall_s": wall_s, "cpu_s": cpu_s}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Add to the seconds that another stopwatch had counted, as if it had not stopped."""
        self._before = (state["wall_s"], state["cpu_s"])

    def _so_far(self) -> tuple[float, float]:
        wall_s, cpu_s = self._before
        if self._started is not None:
            (wall, cpu), (wall_then, cpu_then) = self._read(), self._started
            wall_s, cpu_s = wall_s + wall - wall_then, cpu_s + cpu - cpu_then
        return wall_s, cpu_s
