"""Searches repeated on the table: what a multi-trial search finds for what it spends, without training anything.

::

    runs = simulate(Table.load(), "regularized_evolution", budget=0.25, repetitions=500)
    quantiles(runs)

A trial of so many epochs scores what the table says after them, and costs what the network had been trained for by
then. (A trial of the method itself goes through a whole schedule in its few epochs; the table has the first epochs of a
long one.) Regret is that of the incumbent, the network with the best score so far, trained to the end: how far its
validation accuracy is below the best of the table within the budget.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pandas as pd

from nasbench_grow.base.errors import UserError
from nasbench_grow.harness import registry
from nasbench_grow.oracle.grid import GRID, Architecture
from nasbench_grow.oracle.table import KEYS, Table

if TYPE_CHECKING:
    from nasbench_grow.oracle.nni_grid import GridSpace

SPENT = (0.25, 0.5, 1.0, 2.0, 3.0)
"""Costs at which :func:`quantiles` looks, in trainings of the dense network."""


def simulate(
    table: Table, method: str, budget: float, *, repetitions: int = 500, epochs: int = 3, total: float = 3.0
) -> pd.DataFrame:
    """Repeats a search by its strategy alone, each time with another seed.

    Args:
        table: of all that can be tried.
        method: a multi-trial search, e.g. ``random_search``, its settings in brackets; those that say how long trials
            are and what they may cost do not count here.
        budget: MACs that a network may cost, as a share of ResNet-20's.
        repetitions: how many searches.
        epochs: of a trial, from 1 to those of the table.
        total: what a search may spend, in trainings of ResNet-20.

    Returns:
        A row for each trial: ``method``, ``repetition``, ``trial``, ``train_macs`` (in trainings of ResNet-20) and
        ``seconds`` spent so far, and the ``regret`` of the incumbent, 0 to 1.

    Raises:
        UserError: the method is no multi-trial search, or nothing is within the budget.
    """
    search = registry.method(method)
    if not hasattr(search, "strategy"):
        raise UserError(f"{method!r} draws no trials that a table could answer; give random_search or another such")
    best = table.query(*table.best(budget)).val
    table.query(*table.best(budget), epoch=epochs)  # refuses epochs out of range
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # NNI's, of classes that it does not know
        from nasbench_grow.oracle.nni_grid import GridSpace
    space, dense = GridSpace(table, budget), table.query(*max(GRID)).train_macs
    mean = sum(table.query(*each, epoch=epochs).train_macs for each in space.within) / len(space.within)
    trials = max(1, int(total * dense / mean))
    rows = []
    for seed in range(repetitions):
        strategy = partial(search.strategy, SimpleNamespace(seed=seed), len(KEYS), trials)
        for trial, (macs, seconds, val) in enumerate(_search(table, strategy, space, epochs, total * dense), 1):
            rows.append((seed, trial, macs / dense, seconds, best - val))
    return pd.DataFrame(rows, columns=["repetition", "trial", "train_macs", "seconds", "regret"]).assign(method=method)


def quantiles(runs: pd.DataFrame, spent: Sequence[float] = SPENT) -> pd.DataFrame:
    """Mean and quartiles of the regret once a search has spent so much, over its repetitions.

    Args:
        runs: what :func:`simulate` gave, of one method or of several.
        spent: costs, in trainings of ResNet-20. A search that has no trial by then has no part in it.

    Returns:
        A row for each method and cost: ``method``, ``train_macs``, ``mean``, ``low``, ``median``, ``high``.
    """
    rows = []
    for method, of_method in runs.groupby("method"):
        for cost in spent:
            last = of_method[of_method["train_macs"] <= cost].groupby("repetition")["regret"].last()
            low, median, high = (last.quantile(share) for share in (0.25, 0.5, 0.75))
            rows.append((method, cost, last.mean(), low, median, high))
    return pd.DataFrame(rows, columns=["method", "train_macs", "mean", "low", "median", "high"])


def _search(
    table: Table, strategy: Callable[[], Any], space: GridSpace, epochs: int, limit: float
) -> Iterator[tuple[int, float, float]]:
    """One search of at most ``limit`` MACs: after each of its trials the MACs and seconds spent and the validation
    accuracy of the incumbent at the end of its training."""
    from nasbench_grow.growing.nni_draws import Draws

    scores: dict[Architecture, float] = {}
    macs, seconds = 0, 0.0
    with Draws(strategy, space) as draws:
        for drawn, _ in draws.untried(scores, space.network):
            entry = table.query(*drawn, epoch=epochs)
            macs, seconds = macs + entry.train_macs, seconds + entry.seconds
            if macs > limit:
                break
            scores[drawn] = entry.val
            yield macs, seconds, table.query(*max(scores, key=lambda each: scores[each])).val
