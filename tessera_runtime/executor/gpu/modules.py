"""Code objects, loaded when a kernel of theirs is launched for the first time."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from tessera_runtime.errors import DigestMismatch, DriverTooOld, FileMissing, TargetUnavailable
from tessera_runtime.executor.gpu.driver import Driver
from tessera_runtime.executor.gpu.program import GpuProgram


class ModuleLibrary:
    """The functions of a program's kernels on one device."""

    def __init__(self, driver: Driver, program: GpuProgram, folder: Path, *, compile_at_load: bool = False) -> None:
        """With `compile_at_load`, PTX is taken at once: the target is for an older architecture than the device's."""
        self._driver = driver
        self._program = program
        self._folder = folder
        self._compile_at_load = compile_at_load
        self._modules: dict[int, int] = {}
        self._functions: dict[str, int] = {}

    def function(self, kernel: str) -> int:
        """Raises `DriverTooOld`, `TargetUnavailable`, `DigestMismatch` or `FileMissing`, the first time."""
        found = self._functions.get(kernel)
        if found is None:
            described = self._program.kernels[kernel]
            if described.shared_bytes > self._driver.device.shared_bytes:
                raise TargetUnavailable(
                    f"The kernel {kernel!r} needs {described.shared_bytes} bytes of shared memory, and "
                    f"{self._driver.device.name} gives a block {self._driver.device.shared_bytes}.",
                    hint="Pack the model for this device.",
                )
            module = self._module(described.module)
            found = self._driver.function(module, described.entry, described.shared_bytes)
            self._functions[kernel] = found
        return found

    @property
    def loaded(self) -> int:
        return len(self._modules)

    def close(self) -> None:
        for module in self._modules.values():
            self._driver.unload_module(module)
        self._modules.clear()
        self._functions.clear()

    def _module(self, index: int) -> int:
        found = self._modules.get(index)
        if found is None:
            fallback = self._program.modules[index].fallback
            if self._compile_at_load and fallback is not None:
                found = self._load(fallback)
            else:
                try:
                    found = self._load(index)
                except DriverTooOld:
                    if fallback is None:
                        raise
                    found = self._load(fallback)
            self._modules[index] = found
        return found

    def _load(self, index: int) -> int:
        module = self._program.modules[index]
        try:
            code = (self._folder / module.file).read_bytes()
        except OSError as error:
            raise FileMissing(
                f"The program's code object {module.file!r} cannot be read: {error.strerror}.",
                hint="Get the package again, or pack the model again.",
            ) from None
        digest = hashlib.sha256(code).hexdigest()
        if digest != module.sha256:
            raise DigestMismatch(
                f"The code object {module.file!r} was altered: its SHA-256 is {digest}, the program says "
                f"{module.sha256}.",
                hint="Get the package again, or pack the model again.",
            )
        # PTX is text that must end in a zero; other kinds do not mind one more byte.
        return self._driver.load_module(np.frombuffer(code + b"\0", np.uint8))
