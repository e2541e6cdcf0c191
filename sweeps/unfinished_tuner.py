"""An NNI tuner that hands out the unfinished cells of a profile, each once, and ends the experiment after the last."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from nni import NoMoreTrialError
from nni.tuner import Tuner

ROOT = Path(__file__).resolve().parent.parent


class UnfinishedTuner(Tuner):
    """Gives each trial one cell to run; learns nothing from the results.

    Args:
        profile: name of the profile, see ``nasbench-grow list profiles``.
        results: the results folder, relative to the repository's root.
        methods, tasks: keep these only (None = all), as ``nasbench-grow reproduce --methods --tasks`` does.
        setup: run the cells on this set-up of the machines that the trials run on (None = the profile's).
    """

    def __init__(
        self,
        profile: str,
        results: str,
        methods: list[str] | None = None,
        tasks: list[str] | None = None,
        setup: str | None = None,
    ) -> None:
        self.profile = profile
        self.results = ROOT / results
        self.methods, self.tasks, self.setup = methods, tasks, setup
        self.waiting: list[dict[str, Any]] | None = None

    def update_search_space(self, search_space: dict[str, Any]) -> None:
        """List the cells (NNI calls this once before the first trial; the search space is empty and ignored)."""
        if self.waiting is not None:
            return
        # Imported here and not at the top: NNI gives a tuner ten seconds to start, and these may need most of them.
        from nni.experiment import Experiment

        from nasbench_grow.harness import registry
        from nasbench_grow.harness.reproduce import cells_of, unfinished
        from nasbench_grow.harness.store import Store

        profile = registry.profile(self.profile)
        cells = unfinished(cells_of(profile, self.methods, self.tasks, self.setup), Store(self.results))
        self.waiting = [asdict(cell) for cell in cells]
        # A tuner that runs out of trials before the maximum leaves NNI 3.0 waiting forever: set the maximum to fit.
        port = urlsplit(os.environ["NNI_TUNER_COMMAND_CHANNEL"]).port
        Experiment.connect(port).update_max_trial_number(len(self.waiting))

    def generate_parameters(self, parameter_id: int, **kwargs: Any) -> dict[str, Any]:
        """The next cell, with where to keep its record."""
        if not self.waiting:
            raise NoMoreTrialError
        return {"cell": self.waiting.pop(0), "profile": self.profile, "results": str(self.results)}

    def receive_trial_result(self, parameter_id: int, parameters: Any, value: Any, **kwargs: Any) -> None:
        """Ignored: the next cell does not depend on any result."""
