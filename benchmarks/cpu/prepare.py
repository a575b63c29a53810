"""Makes every engine's files of one model, all of them of the same weights."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cpu.settings import PACKAGES, Files

ROOT = Path(__file__).resolve().parent.parent.parent
GGUF_KINDS = ("Q4_0", "Q8_0", "BF16")
# Groups of 128 do not divide SmolLM2's 576 columns; one group per row is the coarsest there is.
OPENVINO_VARIANTS = {
    "int8": ("--weight-format", "int8"),
    "int4-row": ("--weight-format", "int4", "--sym", "--group-size", "-1", "--ratio", "1.0"),
    "int4-group64": ("--weight-format", "int4", "--sym", "--group-size", "64", "--ratio", "1.0"),
}

Say = Callable[[str], None]


@dataclass(frozen=True)
class Source:
    """A model as it came, or was made."""

    key: str
    title: str
    checkpoint: Path
    """A Hugging Face folder."""
    gguf: Path


@dataclass(frozen=True)
class Prepared:
    """The files, and why others are missing."""

    files: Files
    left_out: dict[str, str]


def prepare(
    source: Source, folder: Path, peers: Path, say: Say, *, keep_packages: bool, packages: Iterable[str] = PACKAGES
) -> Prepared:
    """Converted files are kept in `folder` from run to run; packages are made anew, because the compiler changes."""
    folder.mkdir(parents=True, exist_ok=True)
    files, left_out = Files(), {}
    for kind in GGUF_KINDS:
        target = folder / f"{source.key}.{kind}.gguf"
        command = [str(peers), "-m", "benchmarks.cpu.drivers.quantize_gguf", str(source.gguf), kind]
        if reason := _make(target, [*command, str(_partial(target))], say):
            left_out[f"llama.cpp {kind}"] = reason
        else:
            files.gguf[kind] = target
    for variant, options in OPENVINO_VARIANTS.items():
        target = folder / f"{source.key}.openvino-{variant}"
        command = [str(peers.with_name("optimum-cli")), "export", "openvino", "--model", str(source.checkpoint)]
        command += ["--task", "text-generation-with-past", *options]
        if reason := _make(target, [*command, str(_partial(target))], say):
            left_out[f"OpenVINO {variant}"] = reason
        else:
            files.openvino[variant] = target
    for name in packages:
        packing = PACKAGES[name]
        target = folder / f"{source.key}.{name}.tspkg"
        if not keep_packages:
            shutil.rmtree(target, ignore_errors=True)
        command = [sys.executable, "-m", "tessera", "pack", "--from-hf", str(source.checkpoint), "--no-verify"]
        command += ["--dtype", packing.dtype, *packing.options, "--out", str(_partial(target))]
        if reason := _make(target, command, say):
            left_out[f"Tessera {name}"] = reason
        else:
            files.packages[name] = target
    return Prepared(files, left_out)


def _partial(target: Path) -> Path:
    return target.with_name(f"partial-{target.name}")


def _make(target: Path, command: list[str], say: Say) -> str | None:
    """Runs the command, which makes the partial target, unless the target is there; returns why it failed."""
    if target.exists():
        return None
    say(f"making {target.name}")
    partial = _partial(target)
    _remove(partial)
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if result.returncode or not partial.exists():
        _remove(partial)
        lines = [line for line in (result.stderr or result.stdout).splitlines() if line.strip()]
        reason = lines[-1].strip()[:200] if lines else f"exit code {result.returncode}"
        say(f"  it failed: {reason}")
        return reason
    partial.rename(target)
    return None


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
