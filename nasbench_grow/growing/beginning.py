"""Which way of growing a set of hyper-parameters belongs to."""

from __future__ import annotations

from nasbench_grow.base.errors import UserError
from nasbench_grow.contract import ElasticModel, Job
from nasbench_grow.growing import relaxation, sampling, scaling
from nasbench_grow.growing.growing import Growing
from nasbench_grow.growing.relaxation import RelaxationSettings
from nasbench_grow.growing.sampling import SamplingSettings
from nasbench_grow.growing.scaling import ScalingSettings

Settings = SamplingSettings | ScalingSettings | RelaxationSettings


def begin(job: Job, settings: Settings) -> tuple[ElasticModel, Growing]:
    """The seed of a job's dense backbone, and what grows it in the way of ``settings``.

    Raises:
        UserError: ``settings`` are none of growing.
    """
    check_kind(settings)
    if isinstance(settings, SamplingSettings):
        return sampling.begin(job, settings)
    if isinstance(settings, ScalingSettings):
        return scaling.begin(job, settings)
    return relaxation.begin(job, settings)


def check_kind(settings: object) -> None:
    """Raise UserError unless ``settings`` are of a way of growing."""
    if not isinstance(settings, Settings):
        raise UserError(
            f"settings {settings!r} cannot be used; give SamplingSettings, ScalingSettings, RelaxationSettings or None"
        )
