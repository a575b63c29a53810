"""From a checkpoint's graph to a compiled module: the whole pipeline, as one list."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path
from typing import Any, Protocol

from xdsl.context import Context
from xdsl.dialects.builtin import Builtin, ModuleOp
from xdsl.dialects.func import Func
from xdsl.parser import Parser
from xdsl.utils.exceptions import ParseError, VerifyException

from tessera_compiler.device_driver import DeviceOptions, compile_for_devices
from tessera_compiler.errors import InvalidGraph, UnsupportedModel
from tessera_compiler.graph import pipeline as graph_pipeline
from tessera_compiler.graph.dialect import GRAPH
from tessera_compiler.graph.evaluator import entry_function
from tessera_compiler.graph.text import ExactPrinter
from tessera_compiler.module import CompiledModule, merge_recipes
from tessera_compiler.schedule import dialect as schedule
from tessera_compiler.schedule.device_blocking import DeviceBlocking
from tessera_compiler.schedule.linear_maps import tuned_for
from tessera_compiler.schedule.passes.choose_numerics import KV_DTYPES, ChooseNumerics
from tessera_compiler.schedule.passes.find_peaks import FindPeaks
from tessera_compiler.schedule.passes.flatten_concats import FlattenConcats
from tessera_compiler.schedule.passes.form_groups import FormGroups
from tessera_compiler.schedule.passes.join_rounding import JoinRounding
from tessera_compiler.schedule.passes.mark_layers import MarkLayers
from tessera_compiler.schedule.passes.plan_memory import PlanMemory
from tessera_compiler.schedule.passes.plan_phases import PlanPhases
from tessera_compiler.schedule.passes.plan_tiles import Blocking, PlanTiles, blockings_of
from tessera_compiler.targets.cpu.target import CLASSES, compile_cpu
from tessera_compiler.targets.program import ProgramLimits, describe_program
from tessera_compiler.targets.reference.target import compile_reference
from tessera_compiler.tile.dialect import Tile
from tessera_compiler.tile.lowering.lower import LoweredProgram, lower_groups

DTYPES = ("fp32", "bf16", "int8", "int4")
"""Of the weights of a program for processors; `device_driver.DEVICE_DTYPES` are those of programs for devices."""


class Pass(Protocol):
    def apply(self, module: ModuleOp) -> None: ...


@dataclass(frozen=True)
class CompileOptions:
    dtype: str
    max_model_len: int
    vocab_size: int
    kv_dtype: str = "auto"
    """Of the KV cache: `choose_numerics.KV_DTYPES`."""
    max_tokens: int = 512
    """The most tokens that one step may have; a longer prompt is computed in several."""
    layer_paths: tuple[str, ...] = ()
    """Modules whose outputs a program makes readable, for finding where numerics go astray."""
    classes: tuple[str, ...] = CLASSES
    """CPU classes; with none, and devices, nothing is compiled for this side."""
    tuned: Mapping[str, tuple[Blocking, ...]] = field(default_factory=dict)
    devices: tuple[str, ...] = ()
    """GPU targets, of `architectures.ARCHITECTURES`."""
    device_max_tokens: int = 8192
    device_tuned: Mapping[str, tuple[DeviceBlocking, ...]] = field(default_factory=dict)


def schedule_passes(options: CompileOptions) -> tuple[Pass, ...]:
    """What turns simplified Graph IR into a planned program, in order."""
    return (
        MarkLayers(options.layer_paths),
        ChooseNumerics(options.dtype, options.kv_dtype),
        FindPeaks(),
        FlattenConcats(),
        FormGroups(heads=True),
        JoinRounding(quantized=True),
        PlanTiles(options.classes, options.tuned),
        PlanPhases(),
        PlanMemory(),
    )


def pipeline(options: CompileOptions) -> tuple[Pass, ...]:
    """Everything between the importer and the lowering to tiles, in order."""
    return (*graph_pipeline.PASSES, *schedule_passes(options))


Observer = Callable[[str, str], None]
"""Called with the name of a stage and the text of the module after it."""


def compile_module(
    module: ModuleOp, options: CompileOptions, observe: Observer | None = None, *, done: int = 0
) -> CompiledModule:
    """Compiles imported Graph IR; `module` is changed in place. It is verified after every pass.

    A module read back from a dump goes on after the `done` passes of the pipeline that it has been through.
    """
    if options.kv_dtype not in KV_DTYPES:
        raise UnsupportedModel(f"a KV cache holds {', '.join(KV_DTYPES)}; found {options.kv_dtype!r}.")
    if options.devices and options.kv_dtype != "auto":
        raise UnsupportedModel(
            f"what a KV cache holds is chosen for processors alone; found {options.kv_dtype!r} for "
            f"{options.devices[0]}. Leave it at 'auto', or compile for processors and devices apart."
        )
    graph_ir = ""
    simplified: ModuleOp | None = None
    if options.devices and done > len(graph_pipeline.PASSES):
        raise InvalidGraph("devices have a schedule of their own: resume from a dump of Graph IR to compile for them")
    for_host = bool(options.classes) or not options.devices
    for number, each in enumerate(pipeline(options) if for_host else graph_pipeline.PASSES):
        if number >= done:
            each.apply(module)
            module.verify()
            if observe is not None:
                observe(type(each).__name__, print_ir(module))
        if number == len(graph_pipeline.PASSES) - 1 and number >= done - 1:
            graph_ir = print_ir(module)
            simplified = module.clone() if options.devices else None
    compiled = compile_planned(module, options, graph_ir, observe) if for_host else _nothing(options, graph_ir)
    return compiled if simplified is None else _with_devices(compiled, simplified, options, observe)


def _nothing(options: CompileOptions, graph_ir: str) -> CompiledModule:
    """Without a processor to compile for, devices are all there is."""
    return CompiledModule(
        graph_ir, "", "", (), (), options.dtype, options.max_model_len, options.vocab_size, schedules={}
    )


def compile_planned(
    module: ModuleOp, options: CompileOptions, graph_ir: str = "", observe: Observer | None = None
) -> CompiledModule:
    """Compiles a planned program: what the last pass of the pipeline leaves."""
    groups = [op for op in entry_function(module).body.block.ops if isinstance(op, schedule.GroupOp)]
    lowered = lower_groups(groups, options.classes)
    tile_ir = print_kernels(lowered)
    if observe is not None:
        observe("LowerToTiles", tile_ir)
    limits = ProgramLimits(options.max_tokens, options.max_model_len, options.vocab_size)
    shared = describe_program(module, lowered, limits)
    return CompiledModule(
        graph_ir=graph_ir,
        schedule_ir=print_ir(module),
        tile_ir=tile_ir,
        targets=(
            compile_cpu(shared.description, lowered, options.classes),
            compile_reference(shared.description, groups, lowered),
        ),
        weights=shared.weights,
        dtype=options.dtype,
        max_model_len=options.max_model_len,
        vocab_size=options.vocab_size,
        schedules=_schedules(groups, lowered, options),
    )


def _with_devices(
    compiled: CompiledModule, module: ModuleOp, options: CompileOptions, observe: Observer | None
) -> CompiledModule:
    """Adds the GPU targets, compiled from the simplified graph in `module`."""

    def watch(stage: str, current: ModuleOp) -> None:
        if observe is not None:
            observe(stage, print_ir(current))

    limits = ProgramLimits(
        min(options.device_max_tokens, max(options.max_model_len, options.max_tokens)),
        options.max_model_len,
        options.vocab_size,
    )
    wanted = DeviceOptions(options.devices, options.dtype, limits, options.layer_paths, options.device_tuned)
    devices = compile_for_devices(module, wanted, watch)
    texts = {"schedule_ir.tssa": print_ir(devices.schedule_ir), "tile_ir.tssa": print_ir(devices.tile_ir)}
    if observe is not None:
        observe("DeviceLowerToTiles", texts["tile_ir.tssa"])
    files = {name: text.encode() for name, text in texts.items()}
    targets = tuple(replace(target, files={**target.files, **files}) for target in devices.targets)
    return replace(
        compiled,
        targets=(*compiled.targets, *targets),
        weights=merge_recipes(compiled.weights, devices.weights),
        schedules={**(compiled.schedules if options.classes else {}), **devices.schedules},
    )


def _schedules(groups: list[schedule.GroupOp], lowered: LoweredProgram, options: CompileOptions) -> dict[str, Any]:
    chosen: dict[str, Any] = {}
    for group, name in zip(groups, lowered.names, strict=True):
        if group.kind.data == "linear" and name not in chosen:
            chosen[name] = {
                "tuned": list(tuned_for(group)),
                "blocking": {
                    cpu_class: [[b.max_tokens or None, b.rows, b.panels * 16] for b in blockings_of(group, cpu_class)]
                    for cpu_class in options.classes
                },
            }
    return {"cpu": chosen}


def print_ir(module: ModuleOp) -> str:
    """A module in MLIR's generic form; the same module always gives the same text."""
    stream = StringIO()
    ExactPrinter(stream=stream, print_generic_format=True).print_op(module)
    return stream.getvalue() + "\n"


def print_kernels(lowered: LoweredProgram) -> str:
    """All kernels of a program, as one module."""
    kernels = lowered.kernels()
    return print_ir(ModuleOp([kernels[symbol].clone() for symbol in sorted(kernels)]))


def parse_ir(text: str) -> ModuleOp:
    """Reads and verifies a module of any of the three dialects; raises InvalidGraph if the text is none."""
    context = Context()
    for dialect in (Builtin, Func, GRAPH, schedule.SCHEDULE, Tile):
        context.load_dialect(dialect)
    try:
        module = Parser(context, text).parse_module()
        module.verify()
    except (ParseError, VerifyException) as error:
        raise InvalidGraph(f"this text is not valid Tessera IR: {error}") from error
    return module


def dump_to(directory: Path) -> Observer:
    """An observer that writes each stage to its own file, `NN_Stage.tssa`: NN passes have been through it."""
    directory.mkdir(parents=True, exist_ok=True)
    count = 0

    def observe(stage: str, text: str) -> None:
        nonlocal count
        (directory / f"{count:02}_{stage}.tssa").write_text(text, encoding="utf-8")
        count += 1

    return observe
