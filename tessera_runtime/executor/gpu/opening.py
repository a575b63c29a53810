"""From a package to a GPU executor: the driver, the target that fits the device, the weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from tessera_runtime.errors import DriverTooOld, TargetUnavailable
from tessera_runtime.executor.gpu.driver import Device, Driver
from tessera_runtime.executor.gpu.executor import GpuExecutor
from tessera_runtime.executor.gpu.program import GpuProgram, read_program
from tessera_runtime.executor.gpu.targets import Fit, fitting_targets
from tessera_runtime.executor.gpu.weights import FileSource
from tessera_runtime.package.reader import Package

OpenDriver = Callable[[], Driver]


class HasPrograms(Protocol):
    """An opened package, as far as it is asked here."""

    def program(self, target: str) -> dict[str, Any]: ...


def open_driver(family: str) -> Driver:
    """The driver of a family on this machine. Raises `DriverUnavailable`."""
    if family == "cuda":
        from tessera_runtime.executor.cuda.driver import open_cuda_driver

        return open_cuda_driver()
    from tessera_runtime.executor.hip.driver import open_hip_driver

    return open_hip_driver()


def open_gpu_executor(
    package: Package,
    targets: Sequence[str],
    open_it: OpenDriver,
    notice: Callable[[str], None] | None = None,
) -> GpuExecutor:
    """The executor of the first of `targets`, all of one family, that the device runs.

    Raises `TargetUnavailable`, or a class below it, if there is none; the message is about the target that fits best.
    """
    reason: TargetUnavailable | None = None
    driver = open_it()
    device = driver.device
    driver.close()
    for fit in fitting_targets(device, targets):
        try:
            executor = _open(package, fit, runnable_program(device, fit, package), open_it)
        except TargetUnavailable as error:
            reason = reason or error
            continue
        if fit.compile_at_load and notice is not None:
            notice(
                f"The package has no code for {device.name} ({device.architecture}); the driver compiles that of "
                f"{fit.target}, which takes a while."
            )
        return executor
    if reason is not None:
        raise reason
    own = f"{device.family}-{device.architecture}"
    raise TargetUnavailable(
        f"This machine has {device.name}, which runs {own}, and the package was built for {', '.join(targets)}.",
        hint=f"Build it with `tessera pack … --target {own}`.",
    )


def runnable_program(device: Device, fit: Fit, package: HasPrograms) -> GpuProgram:
    """The program of a target that fits the device. Raises `TargetUnavailable`, or a class below it, if the device
    cannot run it after all; whether it has enough memory is seen when something is loaded."""
    program = read_program(package.program(fit.target))
    if fit.compile_at_load:
        _require_ptx(program)
    if 0 < device.driver_version < program.driver:
        raise DriverTooOld(
            f"The code of {fit.target} needs a driver for CUDA {_version(program.driver)}, and this machine's is "
            f"for {_version(device.driver_version)}.",
            hint="Update the driver, or serve with --target cpu.",
        )
    if device.warp_size != program.warp_size:
        raise TargetUnavailable(
            f"The code of {fit.target} is for warps of {program.warp_size} threads, and {device.name} has "
            f"warps of {device.warp_size}.",
            hint="Pack the model for this device.",
        )
    return program


def _open(package: Package, fit: Fit, program: GpuProgram, open_it: OpenDriver) -> GpuExecutor:
    driver = open_it()
    try:
        source = FileSource(package.weights())
    except BaseException:
        driver.close()
        raise
    try:
        # From here on the driver is the executor's to close.
        return GpuExecutor(
            driver,
            program,
            package.path / "tile_kernels" / fit.target,
            source,
            compile_at_load=fit.compile_at_load,
        )
    finally:
        source.close()


def _require_ptx(program: GpuProgram) -> None:
    used = {kernel.module for kernel in program.kernels.values()}
    for index in sorted(used):
        module = program.modules[index]
        if module.kind != "ptx" and module.fallback is None:
            raise TargetUnavailable(
                f"The code of {program.target} runs on no other architecture: {module.file!r} has no PTX.",
                hint="Build the package for this device.",
            )


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"
