"""What tasks, methods and whoever runs them know of each other; see ``docs/adding-a-method.md``."""

from nasbench_grow.contract.callback import Callback
from nasbench_grow.contract.growth import Growth, GrowthSettings, Widening, copy_filters, scale_consumers
from nasbench_grow.contract.job import SEARCH_SHARE, Job
from nasbench_grow.contract.method import FixedNetwork, Method, Run
from nasbench_grow.contract.pruning import (
    PruneAndTune,
    Pruning,
    PruningSettings,
    RoundsSettings,
    check_within_run,
    cut,
)
from nasbench_grow.contract.settings import MethodName, check_choices, check_positive, check_share, check_types
from nasbench_grow.contract.source import Source
from nasbench_grow.contract.stage import DivergedError, Restructuring, Stage
from nasbench_grow.contract.task import Batch, Recipe, Split, Splits, Task, TrainSplit
from nasbench_grow.structure.elastic import ElasticModel

__all__ = [
    "SEARCH_SHARE",
    "Batch",
    "Callback",
    "DivergedError",
    "ElasticModel",
    "FixedNetwork",
    "Growth",
    "GrowthSettings",
    "Job",
    "Method",
    "MethodName",
    "PruneAndTune",
    "Pruning",
    "PruningSettings",
    "Recipe",
    "Restructuring",
    "RoundsSettings",
    "Run",
    "Source",
    "Split",
    "Splits",
    "Stage",
    "Task",
    "TrainSplit",
    "Widening",
    "check_choices",
    "check_positive",
    "check_share",
    "check_types",
    "check_within_run",
    "copy_filters",
    "cut",
    "scale_consumers",
]
