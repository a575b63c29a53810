"""`tessera pack`: a checkpoint becomes a verified package. The order of things, from the outside."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import msgspec

from tessera_compiler.module import CompiledModule
from tessera_compiler.targets.triton.architectures import ARCHITECTURES, ONLY_FOR_DEVICES
from tessera_pack.checkpoint import Checkpoint
from tessera_pack.errors import OptionInvalid
from tessera_pack.memory_plan import main_program, memory_plan
from tessera_pack.mesh import parse_mesh
from tessera_pack.safetensors_writer import SafetensorsLayout, TensorPlan
from tessera_pack.sources import ResolvedSource, resolve_source
from tessera_pack.text_files import write_text_files
from tessera_pack.weights import pack_weights, physical_shape
from tessera_pack.writer import PackageWriter
from tessera_runtime.package.manifest import (
    Autotune,
    Compat,
    Evidence,
    KvCache,
    Manifest,
    Mesh,
    Model,
    Name,
    Target,
    Version,
)
from tessera_runtime.package.paths import program_path, shard_path
from tessera_runtime.package.reader import open_package
from tessera_runtime.package.sizes import exact_size, readable_size

TARGETS = ("cpu", *ARCHITECTURES)
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class PackOptions:
    """What `tessera pack` was asked for; exactly one of `from_hf` and `from_gguf` is given."""

    out: Path
    from_hf: str | None = None
    from_gguf: Path | None = None
    name: str | None = None
    version: str = "1.0.0"
    dtype: str = "bf16"
    kv_dtype: str = "auto"
    """What the KV cache holds: `bf16`, `int8` or `fp32`; `auto` is `fp32` with weights of `fp32`, else `bf16`."""
    targets: tuple[str, ...] = ("cpu",)
    mesh: str = "tp=1,pp=1,dp=1"
    max_model_len: int | None = None
    verify: bool = True
    dump_ir: Path | None = None
    cpu_classes: tuple[str, ...] | None = None
    """Only these CPU classes, for a package that need not run elsewhere; without it, all."""


@dataclass
class PackReport:
    """What was packed, and how long each phase took."""

    out: Path
    manifest: Manifest
    size: int
    seconds: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        evidence = self.manifest.evidence
        return {
            "out": str(self.out),
            "name": self.manifest.name,
            "version": self.manifest.version,
            "dtype": self.manifest.dtype,
            "kv_dtype": self.manifest.kv_cache.dtype,
            "bytes": self.size,
            "seconds": {phase: round(seconds, 3) for phase, seconds in self.seconds.items()},
            "evidence": None if evidence is None else _numbers(evidence),
        }

    def summary(self) -> list[tuple[str, str]]:
        """For people: (what, value)."""
        rows = [
            ("name", f"{self.manifest.name} {self.manifest.version}"),
            ("model", f"{self.manifest.model.architecture}, {self.manifest.model.parameters / 1e6:.1f} M parameters"),
            ("dtype", f"{self.manifest.dtype}, KV cache {self.manifest.kv_cache.dtype}"),
            ("size", readable_size(self.size)),
        ]
        evidence = self.manifest.evidence
        if evidence is None:
            rows.append(("evidence", "none: packed without verification"))
        else:
            rows.append(
                (
                    "evidence",
                    f"top-1 agreement {evidence.top1_agreement:.2%}, KL {evidence.kl:.2g}, perplexity "
                    f"{evidence.perplexity_delta:+.3%} against {evidence.reference.split(',')[0]} in fp32",
                )
            )
        took = ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in self.seconds.items())
        rows.append(("seconds", f"{sum(self.seconds.values()):.1f} ({took})"))
        return rows


def pack(options: PackOptions, *, progress: Progress) -> PackReport:
    """Packs a checkpoint. The package appears at `options.out` whole, or not at all.

    Raises `PackError`, or `CompileError` for models that are not compiled.
    """
    unknown = [target for target in options.targets if target not in TARGETS]
    if unknown or not options.targets:
        raise OptionInvalid(
            f"Packages are built for {', '.join(TARGETS)}; found {', '.join(unknown) or 'no target'}.",
            hint="Use --target cpu, or the newest of the others that your GPU runs.",
        )
    if options.dtype in ONLY_FOR_DEVICES and "cpu" in options.targets:
        raise OptionInvalid(
            f"Only GPUs compute with {options.dtype}; found the target cpu.",
            hint="Use --dtype bf16 or int8, or pack for GPUs apart: --target cuda-sm90 --no-verify.",
        )
    if options.verify and "cpu" not in options.targets:
        raise OptionInvalid(
            "A package is verified on the CPU of this machine, for which it is not built.",
            hint="Add --target cpu, or leave the evidence out with --no-verify.",
        )
    if options.kv_dtype != "auto" and (others := [target for target in options.targets if target != "cpu"]):
        raise OptionInvalid(
            f"What a KV cache holds is chosen for cpu alone; found --kv-dtype {options.kv_dtype} with {others[0]}.",
            hint="Leave it out: GPUs keep bf16, and fp32 with --dtype fp32. Or pack for cpu apart.",
        )
    mesh = parse_mesh(options.mesh, options.targets)
    _check_identity(options)
    clock = _Clock(progress)
    with PackageWriter(options.out) as writer, clock.phase("read"), _resolved(options) as source:
        checkpoint = Checkpoint(source.directory)
        # Before the long work: that a tokenizer is missing should not take a minute to find.
        write_text_files(writer, source.directory)
        clock.next("compile")
        facts, compiled, names = _compile(source.directory, checkpoint, options)
        clock.next("write")
        writer.require_space(_estimate(compiled))
        _write_compiled(writer, compiled)
        _write_weights(writer, compiled, checkpoint, names, progress)
        manifest = _manifest(options, mesh, source, facts, compiled, writer)
        manifest = writer.seal(manifest)
        if options.verify:
            clock.next("verify")
            manifest = _with_evidence(writer, manifest, source.directory, progress)
        clock.next("publish")
        size = sum(entry.size for entry in writer.entries)
        out = writer.publish()
    return PackReport(out, manifest, size, clock.seconds)


def _check_identity(options: PackOptions) -> None:
    """Raises `OptionInvalid` for a name or version that a manifest cannot have."""
    for option, value, kind, rule in (
        ("--name", options.name, Name, "letters, digits, '.', '_' and '-', at most 128, the first a letter or digit"),
        ("--version", options.version, Version, "three numbers such as 1.0.0, and a suffix such as -rc1 if needed"),
    ):
        if value is None:
            continue
        try:
            msgspec.convert(value, kind)
        except msgspec.ValidationError:
            raise OptionInvalid(f"The {option[2:]} of a package has {rule}; found {value[:140]!r}.") from None


def _name_of(source: ResolvedSource) -> str:
    """A package's name made from that of its source, which may hold anything that a folder's name may."""
    return re.sub("[^A-Za-z0-9._-]+", "-", source.name).strip("-._")[:128] or "model"


@contextmanager
def _resolved(options: PackOptions) -> Iterator[ResolvedSource]:
    with resolve_source(options.from_hf, options.from_gguf) as source:
        yield source


class _Clock:
    """Which phase is under way, and how long the ones before took."""

    def __init__(self, progress: Progress):
        self.seconds: dict[str, float] = {}
        self._progress = progress
        self._name = ""
        self._start = 0.0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self._begin(name)
        yield
        self._end()

    def next(self, name: str) -> None:
        self._end()
        self._begin(name)

    def _begin(self, name: str) -> None:
        self._name, self._start = name, time.perf_counter()
        self._progress(name, 0, 0)

    def _end(self) -> None:
        self.seconds[self._name] = time.perf_counter() - self._start
        self._progress(self._name, 1, 1)


@dataclass(frozen=True)
class _ModelFacts:
    config: dict[str, Any]
    layers: int
    parameters: int


def _compile(
    directory: Path, checkpoint: Checkpoint, options: PackOptions
) -> tuple[_ModelFacts, CompiledModule, dict[str, str]]:
    from tessera_compiler.driver import CompileOptions, compile_module, dump_to, print_ir
    from tessera_compiler.frontends.huggingface import import_checkpoint
    from tessera_compiler.frontends.weight_names import resolve_weight_names
    from tessera_compiler.schedule.device_tuned_cache import load_device_tuned
    from tessera_compiler.schedule.tuned_cache import load_tuned, shipped_cache
    from tessera_compiler.targets.cpu.target import CLASSES

    imported = import_checkpoint(directory, options.max_model_len)
    names = resolve_weight_names(imported.weights, checkpoint.names(), imported.base_prefix, imported.aliases)
    for needed, shape in imported.weights.items():
        checkpoint.require(names[needed], shape)
    observe = dump_to(options.dump_ir) if options.dump_ir is not None else None
    if observe is not None:
        observe("Import", print_ir(imported.module))
    devices = tuple(dict.fromkeys(target for target in options.targets if target != "cpu"))
    settings = CompileOptions(
        dtype=options.dtype,
        kv_dtype=options.kv_dtype,
        max_model_len=imported.max_model_len,
        vocab_size=imported.vocab_size,
        layer_paths=imported.layer_paths,
        classes=_cpu_classes(options, CLASSES),
        tuned=load_tuned(shipped_cache(), "cpu"),
        devices=devices,
        device_tuned=load_device_tuned(shipped_cache(), devices),
    )
    compiled = compile_module(imported.module, settings, observe)
    # Not what the checkpoint holds: it may hold a tied tensor twice, or tensors that the model does not use.
    parameters = sum(math.prod(shape) for shape in imported.weights.values())
    return _ModelFacts(imported.config, len(imported.layer_paths), parameters), compiled, names


def _cpu_classes(options: PackOptions, known: tuple[str, ...]) -> tuple[str, ...]:
    if "cpu" not in options.targets:
        return ()
    return known if options.cpu_classes is None else options.cpu_classes


def _plans(compiled: CompiledModule) -> list[TensorPlan]:
    return [TensorPlan(recipe.name, recipe.dtype, physical_shape(recipe)) for recipe in compiled.weights]


def _estimate(compiled: CompiledModule) -> int:
    files = sum(len(data) for target in compiled.targets for data in target.files.values())
    return SafetensorsLayout(_plans(compiled)).file_size + files + 2**24


def _write_compiled(writer: PackageWriter, compiled: CompiledModule) -> None:
    writer.write_text("graph_ir.tssa", compiled.graph_ir)
    if any(target.name == "cpu" for target in compiled.targets):
        writer.write_text("tile_kernels/cpu/schedule_ir.tssa", compiled.schedule_ir)
        writer.write_text("tile_kernels/cpu/tile_ir.tssa", compiled.tile_ir)
    for target in compiled.targets:
        writer.write_text(program_path(target.name), _json(target.program))
        for name, data in sorted(target.files.items()):
            writer.write_bytes(f"tile_kernels/{target.name}/{name}", data)
    for target_name, chosen in compiled.schedules.items():
        writer.write_text(f"schedule_cache/{target_name}.json", _json(chosen))


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, indent=1) + "\n"


def _write_weights(
    writer: PackageWriter, compiled: CompiledModule, checkpoint: Checkpoint, names: dict[str, str], progress: Progress
) -> None:
    layout = SafetensorsLayout(_plans(compiled), {"format": "tessera", "dtype": compiled.dtype})

    def arrays() -> Iterator[Any]:
        for done, packed in enumerate(pack_weights(compiled.weights, checkpoint, names)):
            progress("weights", done + 1, len(compiled.weights))
            yield packed.array

    writer.write_weights(shard_path(0, 0), layout, arrays())


def _manifest(
    options: PackOptions,
    mesh: Mesh,
    source: ResolvedSource,
    facts: _ModelFacts,
    compiled: CompiledModule,
    writer: PackageWriter,
) -> Manifest:
    programs = {target.name: target.program for target in compiled.targets}
    cache = main_program(programs)["cache"]
    pages = max(1, -(-compiled.max_model_len // cache["block_tokens"]))
    config = facts.config
    return Manifest(
        format=1,
        name=_name_of(source) if options.name is None else options.name,
        version=options.version,
        entry="main.decode_graph",
        mesh=mesh,
        dtypes=tuple(dict.fromkeys([options.dtype, "fp32"])),
        kv_cache=KvCache(
            pages=pages, page_size=exact_size(cache["bytes_per_block"]), swap="none", dtype=_kv_dtype(cache)
        ),
        autotune=Autotune(required=False, min_arch="x86-64-v3" if "cpu" in programs else next(iter(programs))),
        compat=Compat(api="openai-v1"),
        dtype=options.dtype,
        model=Model(
            architecture=str((config.get("architectures") or [config["model_type"]])[0]),
            model_type=str(config["model_type"]),
            parameters=facts.parameters,
            vocab_size=compiled.vocab_size,
            layers=facts.layers,
            hidden_size=int(config.get("hidden_size") or config.get("n_embd") or 1),
            context_length=compiled.max_model_len,
        ),
        memory=memory_plan(programs, SafetensorsLayout(_plans(compiled)).file_size),
        targets=tuple(
            Target(name=name, abi=each["abi"], classes=tuple(each.get("classes", {})))
            for name, each in programs.items()
        ),
        source=source.manifest,
        tessera_version=_tessera_version(),
        licence=source.licence,
        files=(),
    )


def _kv_dtype(cache: dict[str, Any]) -> Literal["fp32", "bf16", "fp16", "int8"]:
    """Of the layers, which are alike; a model without attention keeps nothing, in whichever dtype."""
    kinds: dict[str, Literal["fp32", "bf16", "fp16", "int8"]]
    kinds = {"f32": "fp32", "bf16": "bf16", "f16": "fp16", "i8": "int8"}
    return kinds[next((layer["dtype"] for layer in cache["layers"]), "f32")]


def _with_evidence(writer: PackageWriter, manifest: Manifest, directory: Path, progress: Progress) -> Manifest:
    from tessera_pack.evidence import collect_evidence

    # Sizes are enough: every byte was hashed a moment ago, as it was written.
    evidence = collect_evidence(open_package(writer.path, verify="sizes"), directory, progress)
    return writer.seal(msgspec.structs.replace(manifest, evidence=evidence))


def _numbers(evidence: Evidence) -> dict[str, float]:
    return {
        "max_logit_error": evidence.max_logit_error,
        "mean_logit_error": evidence.mean_logit_error,
        "kl": evidence.kl,
        "top1_agreement": evidence.top1_agreement,
        "perplexity_delta": evidence.perplexity_delta,
    }


def _tessera_version() -> str:
    try:
        return version("tessera")
    except PackageNotFoundError:
        return "0.0.0"
