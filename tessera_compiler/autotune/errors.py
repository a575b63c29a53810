"""The mistakes that tuning reports."""

from __future__ import annotations

from tessera_compiler.errors import CompileError


class TuningError(CompileError):
    """Schedules cannot be tuned with what was given."""


class UnknownTuningTarget(TuningError):
    """The target has nothing that is tuned, or does not exist."""


class TuningDeviceMissing(TuningError):
    """This machine does not have the device to tune for."""


class TuningBudgetTooSmall(TuningError):
    """The time given does not suffice to measure even one kernel."""


class TuningCacheUnwritable(TuningError):
    """The folder for what was measured cannot be written."""


class TuningChangedResults(TuningError):
    """Two schedules of one kernel gave different bits: a defect of Tessera, and nothing of that kernel is kept."""
