"""Picks the target of a package that this machine runs best, and loads it."""

from __future__ import annotations

from collections.abc import Callable

from tessera_runtime.errors import AbiMismatch, DeviceLost, DriverUnavailable, LaunchFailed, TargetUnavailable
from tessera_runtime.executor.gpu.opening import open_driver, open_gpu_executor
from tessera_runtime.executor.gpu.targets import FAMILIES, family_of
from tessera_runtime.executor.interface import Executor
from tessera_runtime.package.reader import Package

PREFERENCE = ("cpu", "reference")
"""Targets without a device, the fastest first; those of GPUs go before them."""


def load_executor(
    package: Package,
    *,
    target: str | None = None,
    threads: int | None = None,
    notice: Callable[[str], None] | None = None,
) -> Executor:
    """An executor for the package, ready for `allocate_cache`.

    With `target`, that one or an error. Without, the fastest that the package has and this machine can run; `notice` is
    told in a sentence if that is the slow reference, or if a device is there and cannot be used, or this runtime cannot
    read its program. Raises `TargetUnavailable` when there is none.
    """
    if target is not None:
        return _load(package, target, threads, notice)
    reason: Exception | None = None
    for name, load in _candidates(package, threads, notice):
        try:
            executor = load()
        except (TargetUnavailable, AbiMismatch, DeviceLost, LaunchFailed) as error:
            if isinstance(error, AbiMismatch) and name not in FAMILIES:
                raise
            # With devices of two vendors to try, the absence of one says nothing about the other.
            reason = error if _is_a_surprise(error) and not _is_a_surprise(reason) else reason or error
            continue
        if notice is not None and name == "reference":
            why = f": {_words(reason)}" if reason is not None else ", the only target this package has for it."
            notice(f"Running on the NumPy reference, which is slow{why}")
        elif notice is not None and name == "cpu" and _is_a_surprise(reason):
            notice(f"Running on the CPU: {_words(reason)}")
        return executor
    if reason is not None:
        raise reason
    return _load(package, PREFERENCE[0], threads, notice)


def _candidates(
    package: Package, threads: int | None, notice: Callable[[str], None] | None
) -> list[tuple[str, Callable[[], Executor]]]:
    """What the package has, the fastest first. GPU targets of one family are one candidate: its device chooses."""
    names = [target.name for target in package.manifest.targets]
    candidates: list[tuple[str, Callable[[], Executor]]] = []
    for family in FAMILIES:
        targets = [name for name in names if family_of(name) == family]
        if targets:
            candidates.append((family, lambda f=family, t=targets: _load_gpu(package, f, t, notice)))  # type: ignore[misc]
    for name in PREFERENCE:
        if name in names:
            candidates.append((name, lambda n=name: _load(package, n, threads, notice)))  # type: ignore[misc]
    return candidates


def _load(package: Package, target: str, threads: int | None, notice: Callable[[str], None] | None) -> Executor:
    if target == "cpu":
        from tessera_runtime.executor.cpu.executor import open_cpu_executor

        program = package.program(target)
        return open_cpu_executor(program, package.path / "tile_kernels" / target, package.weights(), threads)
    if target == "reference":
        from tessera_runtime.executor.reference.executor import ReferenceExecutor

        return ReferenceExecutor(package.program(target), package.weights())
    family = family_of(target)
    if family is not None:
        package.program(target)  # one that the package does not have is the first thing to say
        return _load_gpu(package, family, [target], notice)
    raise TargetUnavailable(
        f"This runtime cannot execute the target {target!r}; it executes cpu, reference, cuda-… and hip-….",
        hint="Choose another --target.",
    )


def _load_gpu(package: Package, family: str, targets: list[str], notice: Callable[[str], None] | None) -> Executor:
    return open_gpu_executor(package, targets, lambda: open_driver(family), notice)


def _is_a_surprise(reason: Exception | None) -> bool:
    """Whether somebody may have expected the device to be used: no driver at all is what most machines have."""
    return reason is not None and not isinstance(reason, DriverUnavailable)


def _words(reason: Exception | None) -> str:
    return getattr(reason, "message", "")
