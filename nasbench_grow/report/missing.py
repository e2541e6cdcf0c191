"""What a results folder does not hold yet of the profiles that were run into it."""

from __future__ import annotations

import pandas as pd

from nasbench_grow.base.errors import UserError
from nasbench_grow.harness.profiles import PROFILES
from nasbench_grow.harness.record import SCHEMA
from nasbench_grow.harness.reproduce import cells_of

COLUMNS = ["profile", "task", "backbone", "setup", "epochs", "budget", "method", "seeds"]


def missing(frame: pd.DataFrame) -> pd.DataFrame:
    """The cells neither finished nor skipped, a row for each method and budget with the seeds that it lacks.

    Args:
        frame: cells as :func:`nasbench_grow.report.frames.load` gives them. Their profiles and set-ups say what was
            planned; cells of no profile, of one that is not known here or names what is not installed, or of an older
            schema, whose keys are no longer given out, plan nothing.
    """
    settled = set(frame.loc[frame["status"].isin(["ok", "skipped"]), "run_key"])
    planned = frame[frame["profile"].isin(list(PROFILES)) & (frame["schema"] == SCHEMA)]
    seeds: dict[tuple[object, ...], list[int]] = {}
    for profile, setup in sorted(set(zip(planned["profile"], planned["setup"], strict=True))):
        try:
            cells = cells_of(PROFILES[profile], setup=setup)
        except UserError:
            continue
        for cell in cells:
            if cell.run_key() not in settled:
                row = profile, cell.task, cell.backbone, cell.setup, cell.epochs, cell.budget, cell.method
                seeds.setdefault(row, []).append(cell.seed)
    return pd.DataFrame([(*row, ", ".join(map(str, found))) for row, found in seeds.items()], columns=COLUMNS)
