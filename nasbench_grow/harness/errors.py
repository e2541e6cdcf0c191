"""Why a cell has no result, where that is not the fault of the code that ran it."""

from __future__ import annotations

from nasbench_grow.base.errors import UserError


class DeviceError(UserError):
    """The device does not work any more: nothing more can be run in this process."""


class SourceError(UserError):
    """The cell that this one begins with did not leave what it needs."""


class SkippedError(Exception):
    """The method has no meaning for this task or backbone; the message says why."""
