"""Picks the target of a package that this machine runs best, and loads it."""

from __future__ import annotations

from collections.abc import Callable

from tessera_runtime.errors import TargetUnavailable
from tessera_runtime.executor.interface import Executor
from tessera_runtime.package.reader import Package

PREFERENCE = ("cpu", "reference")
"""Targets this runtime can execute, the fastest first."""


def load_executor(
    package: Package,
    *,
    target: str | None = None,
    threads: int | None = None,
    notice: Callable[[str], None] | None = None,
) -> Executor:
    """An executor for the package, ready for `allocate_cache`.

    With `target`, that one or an error. Without, the fastest that the package has and this machine can run; if that is
    the slow reference, `notice` is told so in a sentence. Raises `TargetUnavailable` when there is none.
    """
    if target is not None:
        return _load(package, target, threads)
    available = [name for name in PREFERENCE if package.manifest.target(name) is not None]
    reason: TargetUnavailable | None = None
    for name in available:
        try:
            executor = _load(package, name, threads)
        except TargetUnavailable as error:
            reason = reason or error
            continue
        if name == "reference" and notice is not None:
            why = f": {reason.message}" if reason is not None else ", the only target this package has for it."
            notice(f"Running on the NumPy reference, which is slow{why}")
        return executor
    if reason is not None:
        raise reason
    return _load(package, PREFERENCE[0], threads)


def _load(package: Package, target: str, threads: int | None) -> Executor:
    program = package.program(target)
    if target == "cpu":
        from tessera_runtime.executor.cpu.executor import open_cpu_executor

        return open_cpu_executor(program, package.path / "tile_kernels" / target, package.weights(), threads)
    if target == "reference":
        from tessera_runtime.executor.reference.executor import ReferenceExecutor

        return ReferenceExecutor(program, package.weights())
    raise TargetUnavailable(
        f"This runtime cannot execute the target {target!r}; it executes {' and '.join(PREFERENCE)}.",
        hint="Choose another --target.",
    )
