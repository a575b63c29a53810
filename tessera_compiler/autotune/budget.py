"""The time that tuning may take."""

from __future__ import annotations

from tessera_compiler.autotune.errors import TuningBudgetTooSmall

LEAST_BUDGET = 5.0
"""Seconds; with less, not one kernel could be measured on any machine."""


def require_budget(budget: float) -> None:
    """Raises TuningBudgetTooSmall for one that cannot suffice."""
    if budget < LEAST_BUDGET:
        raise TuningBudgetTooSmall(
            f"A budget of {budget:g} s is not enough to measure anything. Give at least `--budget {LEAST_BUDGET:g}s`."
        )


def too_small(budget: float, kernels: int) -> TuningBudgetTooSmall:
    """What to say where it did not suffice."""
    return TuningBudgetTooSmall(
        f"{budget:g} s were not enough to measure one of {kernels} kernels. Give a larger --budget."
    )
