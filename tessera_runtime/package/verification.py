"""Everything about a package that can be checked without running it and without what it was made from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tessera_runtime.errors import PackageNotFound, TesseraError
from tessera_runtime.package.gpu_program_check import gpu_checks, is_gpu_target
from tessera_runtime.package.memory_check import check_device_memory, check_memory
from tessera_runtime.package.program_check import (
    check_arena,
    check_cache,
    check_kernels,
    check_launches,
    check_weights,
    shielded,
)
from tessera_runtime.package.reader import Package, open_package


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    passed: bool
    detail: str
    """What was seen, or what is wrong."""


@dataclass(frozen=True)
class VerificationReport:
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)


def verify_package(path: Path) -> VerificationReport:
    """Checks files and digests, the manifest, every target's program, and that the tokenizer can be read.

    Raises `PackageNotFound` if there is no package; anything else that is wrong is a failed check of the report.
    """
    checks: list[Check] = []
    package: Package | None = None

    def run(name: str, action: Callable[[], str]) -> None:
        try:
            checks.append(Check(name, True, action()))
        except PackageNotFound:
            raise
        except TesseraError as error:
            checks.append(Check(name, False, str(error)))

    def open_it() -> str:
        nonlocal package
        package = open_package(path, verify="digests")
        size = sum(entry.size for entry in package.manifest.files)
        return f"{len(package.manifest.files)} files, {size} bytes, all digests match"

    run("files", open_it)
    if package is None:
        return VerificationReport(tuple(checks))
    opened: Package = package
    for target in opened.manifest.targets:
        _check_target(opened, target.name, run)
    run("tokenizer", lambda: _check_tokenizer(opened))
    return VerificationReport(tuple(checks))


def _check_target(package: Package, target: str, run: Callable[[str, Callable[[], str]], None]) -> None:
    loaded: list[dict[str, Any]] = []

    def load() -> str:
        program = package.program(target)
        loaded.append(program)
        return f"ABI {program['abi']}"

    run(f"{target}: abi", load)
    if not loaded:
        return
    program, memory = loaded[0], package.manifest.memory
    checks: dict[str, Callable[[], str]] = {
        "weights": lambda: check_weights(program, package.weights().entries),
        "launches": lambda: check_launches(program, len(program["cache"]["layers"])),
        "kernels": lambda: check_kernels(program),
        "arena": lambda: check_arena(program),
        "cache": lambda: check_cache(program),
        "memory plan": lambda: check_memory(memory, program),
    }
    if is_gpu_target(target):
        checks = gpu_checks(
            program,
            lambda: package.weights().entries,
            lambda name: package.read_bytes(f"tile_kernels/{target}/{name}"),
        )
        checks["memory plan"] = lambda: check_device_memory(memory.devices.get(target), program)
    if target == "cpu":
        checks["objects"] = lambda: _check_objects(package, program)
    for name, check in checks.items():

        def action(check: Callable[[], str] = check, name: str = name) -> str:
            return shielded(check, name)

        run(f"{target}: {name}", action)


def _check_objects(package: Package, program: dict[str, Any]) -> str:
    from tessera_runtime.executor.cpu.object_check import check_object
    from tessera_runtime.executor.cpu.processor import machine_of_class

    for name, entry in program["classes"].items():
        try:
            check_object(
                package.read_bytes(f"tile_kernels/cpu/{entry['object']}"), machine_of_class(name), program["exports"]
            )
        except TesseraError as error:
            raise type(error)(f"{name}: {error.message}", hint=error.hint) from None
    return f"{len(program['classes'])} objects, no undefined symbol, no system call"


def _check_tokenizer(package: Package) -> str:
    from tessera_runtime.text.assets import read_text_assets
    from tessera_runtime.text.tokenizer import Tokenizer

    folder = package.path / "tokenizer"
    tokenizer = Tokenizer(folder)
    assets = read_text_assets(folder, tokenizer)
    chat = "chat template" if assets.chat_templates else "no chat template"
    return f"{tokenizer.vocab_size} tokens, {chat}"
