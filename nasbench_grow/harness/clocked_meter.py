"""What a run has cost so far: seconds beside multiply-accumulates, by the same purposes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nasbench_grow.cost.meter import PURPOSES, TrainingMeter
from nasbench_grow.cost.stopwatch import Stopwatch


class ClockedMeter(TrainingMeter):
    """A meter with a stopwatch for each of its purposes, of which one runs while the method does.

    Args:
        processes: how many share each batch equally.
    """

    def __init__(self, processes: int = 1) -> None:
        super().__init__(processes)
        self.watches = {purpose: Stopwatch() for purpose in PURPOSES}
        self._running = False

    @property
    def wall_s(self) -> float:
        """Seconds on the wall, for all purposes."""
        return sum(watch.wall_s for watch in self.watches.values())

    @property
    def cpu_s(self) -> float:
        """Seconds of the processor, for all purposes."""
        return sum(watch.cpu_s for watch in self.watches.values())

    @contextmanager
    def running(self) -> Iterator[None]:
        """Time inside counts, for whatever purpose the method names."""
        self._start()
        try:
            yield
        finally:
            self._stop()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time inside does not count."""
        was_running = self._running
        self._stop()
        try:
            yield
        finally:
            if was_running:
                self._start()

    @contextmanager
    def spending_on(self, purpose: str) -> Iterator[None]:
        """Everything counted inside is for this purpose; a method may be left and entered again inside."""
        with self.paused():
            before, self.purpose = self.purpose, purpose
        try:
            yield
        finally:
            with self.paused():
                self.purpose = before

    def _start(self) -> None:
        self.watches[self.purpose].__enter__()
        self._running = True

    def _stop(self) -> None:
        if self._running:
            self.watches[self.purpose].__exit__(None, None, None)
        self._running = False

    def state_dict(self) -> dict[str, Any]:
        """The state to resume from."""
        seconds = {purpose: watch.state_dict() for purpose, watch in self.watches.items()}
        return {"macs": super().state_dict(), "seconds": seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state that :meth:`state_dict` gave."""
        super().load_state_dict(state["macs"])
        for purpose, watch in self.watches.items():
            watch.load_state_dict(state["seconds"][purpose])
