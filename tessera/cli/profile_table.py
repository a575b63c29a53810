"""Prints a profile for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tessera.cli.output import notice, print_facts, print_table, readable_count

if TYPE_CHECKING:
    from tessera.benchmarking.profile import KernelFigures, Profile, StepFigures

LONGEST_SOURCE = 56
COLUMNS = ("kernel", "what", "calls", "ms", "of step", "MB moved", "multiply-adds", "bound by", "of bound")


def print_profile(profile: Profile) -> None:
    print_facts(profile.package, [("executor", profile.executor)])
    for step in profile.steps:
        print()
        print_table(_title(step), COLUMNS, [_row(kernel, step) for kernel in _slowest_first(step)])
        peaks = step.peaks
        rates = ", ".join(f"{name} {rate / 1e9:,.0f}" for name, rate in peaks.multiply_adds_s.items())
        print(
            f"Meanwhile this machine read {peaks.memory_bytes_s / 1e9:.1f} GB/s from memory, "
            f"{peaks.cached_bytes_s / 1e9:.0f} from caches; G multiply-adds/s: {rates}."
        )
    for note in profile.notes:
        notice(note)


def _title(step: StepFigures) -> str:
    shape = step.shape
    return (
        f"{shape.tokens:,} tokens of {shape.sequences:,} sequences at context {shape.context:,}: "
        f"{1000 * step.seconds:.3f} ms, {shape.tokens / step.seconds:,.0f} tokens/s, "
        f"{step.bound_seconds / step.seconds:.0%} of bound, {step.barriers} barriers"
    )


def _slowest_first(step: StepFigures) -> list[KernelFigures]:
    return sorted(step.kernels, key=lambda kernel: -kernel.seconds)


def _row(kernel: KernelFigures, step: StepFigures) -> tuple[str, ...]:
    cost = kernel.cost
    moved = cost.weight_bytes + cost.buffer_bytes + cost.cache_bytes
    source = kernel.source if len(kernel.source) <= LONGEST_SOURCE else kernel.source[: LONGEST_SOURCE - 1] + "…"
    return (
        kernel.symbol + (" (default)" if kernel.tuned is False else ""),
        source,
        str(kernel.calls),
        f"{1000 * kernel.seconds:.3f}",
        f"{kernel.seconds / step.seconds:.1%}",
        f"{moved / 1e6:,.2f}",
        readable_count(cost.multiply_adds) if cost.multiply_adds else "-",
        kernel.bound_by,
        f"{kernel.bound_seconds / kernel.seconds:.0%}",
    )
