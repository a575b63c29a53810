"""The program of a GPU target as typed values: read once, checked once (docs/spec/program-gpu.md)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tessera_runtime.abi import GPU_ABIS
from tessera_runtime.errors import AbiMismatch, ProgramInvalid
from tessera_runtime.executor.gpu.grid import SYMBOLS, GridEntry, parse_entry
from tessera_runtime.executor.gpu.program_parts import integer, listed, mapping, one_of, text, truth

MODULE_KINDS = ("cubin", "ptx", "hsaco")
PARAMETER_KINDS = ("pointer", "i32", "i64", "f32", "tensor_map")
INPUTS = ("token_ids", "positions", "sequences", "block_tables", "logit_rows", "tiles", "singles", "draws")
SEATS = ("feedback", "token_counts", "bias", "bitmask")
RESULTS = ("ids", "logprobs")
SWIZZLES = (0, 32, 64, 128)
ELEMENT_BYTES = {"f32": 4, "bf16": 2, "f16": 2, "f8_e4m3": 1, "u8": 1, "i8": 1, "i16": 2, "i32": 4, "i64": 8}
_NAME = re.compile(r"[0-9a-f]{32}\.(cubin|ptx|hsaco)")
_MAPPED = ("buffer", "weight")
_POINTERS = ("buffer", "weight", "input", "cache_key", "cache_value", "seat", "result")


@dataclass(frozen=True)
class Module:
    file: str
    kind: str
    sha256: str
    size: int
    fallback: int | None


@dataclass(frozen=True)
class TensorMap:
    """A buffer or a weight as the copy engine sees it; the outermost axis comes first."""

    dtype: str
    shape: tuple[int | str, ...]
    strides: tuple[int, ...]
    """In bytes, of all axes but the innermost."""
    box: tuple[int, ...]
    swizzle: int


@dataclass(frozen=True)
class Kernel:
    name: str
    module: int
    entry: str
    warps: int
    shared_bytes: int
    parameters: tuple[str, ...]
    """What it does with each argument of its launches."""
    tensor_maps: tuple[TensorMap, ...]
    """Of each parameter that is one, in order."""
    scratch_pointers: int
    scratch_bytes: int
    scratch_alignment: int
    cluster: int
    dependent: bool

    @property
    def function_parameters(self) -> tuple[str, ...]:
        """All that its function takes: after each map its extents and strides, and scratch at the end."""
        maps = iter(self.tensor_maps)
        kinds: list[str] = []
        for parameter in self.parameters:
            kinds.append(parameter)
            if parameter == "tensor_map":
                rank = len(next(maps).shape)
                kinds += ["i32"] * rank + ["i64"] * rank
        return (*kinds, *["pointer"] * self.scratch_pointers)


@dataclass(frozen=True)
class Variant:
    limits: tuple[tuple[str, int], ...]
    kernel: str | None
    grid: tuple[GridEntry, ...]

    def holds(self, sizes: Mapping[str, int]) -> bool:
        return all(sizes[symbol] <= most for symbol, most in self.limits)


@dataclass(frozen=True)
class Argument:
    """`kind:name`, with `index` for the kinds that count."""

    kind: str
    name: str
    index: int = -1


@dataclass(frozen=True)
class Launch:
    group: str
    arguments: tuple[Argument, ...]
    writes: tuple[int, ...]
    updates: tuple[int, ...]
    layer: str


@dataclass(frozen=True)
class Buffer:
    name: str
    dtype: str
    shape: tuple[int, ...]
    """Of one row."""
    row_bytes: int
    rows: str | int
    per_token: int
    per_logit_row: int
    offset: int

    def place(self, tokens: int, logit_rows: int) -> tuple[int, int]:
        """Where it lies in the arena: offset and size."""
        rows = {"T": tokens, "L": logit_rows}[self.rows] if isinstance(self.rows, str) else self.rows
        return self.per_token * tokens + self.per_logit_row * logit_rows + self.offset, rows * self.row_bytes


@dataclass(frozen=True)
class Weight:
    name: str
    size: int


@dataclass(frozen=True)
class CacheLayer:
    key_offset: int
    key_bytes: int
    value_offset: int
    value_bytes: int


@dataclass(frozen=True)
class Cache:
    block_tokens: int
    bytes_per_block: int
    tile_tokens: int
    chunk_tokens: int
    layers: tuple[CacheLayer, ...]


@dataclass(frozen=True)
class Limits:
    max_tokens: int
    max_model_len: int
    vocab_size: int


@dataclass(frozen=True)
class GpuProgram:
    target: str
    driver: int
    warp_size: int
    limits: Limits
    weights: tuple[Weight, ...]
    buffers: tuple[Buffer, ...]
    arena: tuple[int, int, int]
    """Bytes, bytes per token, bytes per row of logits."""
    cache: Cache
    modules: tuple[Module, ...]
    kernels: dict[str, Kernel]
    groups: dict[str, tuple[Variant, ...]]
    launches: tuple[Launch, ...]
    layers: tuple[tuple[str, int, int], ...]
    """Module path, end, buffer."""
    output: int
    drawing: Mapping[str, tuple[Launch, ...]]
    """`greedy` and `full`; empty if the program does not draw."""
    seats: dict[str, int]
    """Bytes of a row."""
    graph_tokens: tuple[int, ...]

    def arena_bytes(self, tokens: int, logit_rows: int) -> int:
        return self.arena[0] + tokens * self.arena[1] + logit_rows * self.arena[2]

    def all_launches(self) -> Iterable[Launch]:
        yield from self.launches
        for launches in self.drawing.values():
            yield from launches


def read_program(raw: Mapping[str, Any]) -> GpuProgram:
    """Checks what can be checked without a step and a device; raises `AbiMismatch`, or `ProgramInvalid` with the first
    mistake."""
    if raw.get("abi") not in GPU_ABIS:
        raise AbiMismatch(
            f"The program is of ABI {raw.get('abi')}, and this runtime reads {', '.join(map(str, GPU_ABIS))} for GPUs.",
            hint="Pack the model again with this Tessera, or install the one that packed it.",
        )
    try:
        program = _read(raw)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise ProgramInvalid(f"The program cannot be read: {type(error).__name__} {error}.") from None
    _check(program)
    return program


def _read(raw: Mapping[str, Any]) -> GpuProgram:
    limits = mapping(raw, "limits", "program")
    arena = mapping(raw, "arena", "program")
    drawing = raw["drawing"]
    return GpuProgram(
        target=text(raw, "target", "program"),
        driver=integer(raw, "driver", "program"),
        warp_size=one_of(raw, "warp_size", (32, 64), "program"),
        limits=Limits(*(integer(limits, key, "limits", 1) for key in ("max_tokens", "max_model_len", "vocab_size"))),
        weights=tuple(Weight(text(w, "name", p), integer(w, "bytes", p)) for p, w in listed(raw, "weights")),
        buffers=tuple(_buffer(each, place) for place, each in listed(raw, "buffers")),
        arena=(
            integer(arena, "bytes", "arena"),
            integer(arena, "bytes_per_token", "arena"),
            integer(arena, "bytes_per_logit_row", "arena"),
        ),
        cache=_cache(mapping(raw, "cache", "program")),
        modules=tuple(_module(each, place) for place, each in listed(raw, "modules")),
        kernels={name: _kernel(name, each) for name, each in mapping(raw, "kernels", "program").items()},
        groups={name: _variants(name, each) for name, each in mapping(raw, "groups", "program").items()},
        launches=tuple(_launch(each, place) for place, each in listed(raw, "launches")),
        layers=tuple(
            (text(each, "path", place), integer(each, "end", place), integer(each, "buffer", place))
            for place, each in listed(raw, "layers")
        ),
        output=integer(raw, "output", "program"),
        drawing={}
        if drawing is None
        else {
            form: tuple(_launch(each, f"drawing.{place}") for place, each in listed(drawing, form))
            for form in ("greedy", "full")
        },
        seats={text(each, "name", place): integer(each, "row_bytes", place) for place, each in listed(raw, "seats")},
        graph_tokens=tuple(int(tokens) for tokens in raw["graph_tokens"]),
    )


def _buffer(raw: Mapping[str, Any], where: str) -> Buffer:
    rows = raw["rows"]
    if rows not in ("T", "L") and (type(rows) is not int or rows < 1):
        raise ProgramInvalid(f"{where} should have rows T, L or a number, not {rows!r}.")
    offset = mapping(raw, "offset", where)
    return Buffer(
        name=text(raw, "name", where),
        dtype=one_of(raw, "dtype", tuple(ELEMENT_BYTES), where),
        shape=tuple(int(extent) for extent in raw["shape"] if not isinstance(extent, str)),
        row_bytes=integer(raw, "row_bytes", where, 1, multiple=64),
        rows=rows,
        per_token=integer(offset, "tokens", where, multiple=64),
        per_logit_row=integer(offset, "logit_rows", where, multiple=64),
        offset=integer(offset, "bytes", where, multiple=64),
    )


def _cache(raw: Mapping[str, Any]) -> Cache:
    layers = []
    for where, layer in listed(raw, "layers", "cache."):
        layers.append(
            CacheLayer(
                key_offset=integer(layer, "key_offset", where, multiple=128),
                key_bytes=integer(layer, "key_bytes", where, 1, multiple=128),
                value_offset=integer(layer, "value_offset", where, multiple=128),
                value_bytes=integer(layer, "value_bytes", where, 1, multiple=128),
            )
        )
    block_tokens = integer(raw, "block_tokens", "cache", 1)
    return Cache(
        block_tokens=block_tokens,
        bytes_per_block=integer(raw, "bytes_per_block", "cache", 1, multiple=128),
        tile_tokens=integer(raw, "tile_tokens", "cache", 1),
        chunk_tokens=integer(raw, "chunk_tokens", "cache", block_tokens, multiple=block_tokens),
        layers=tuple(layers),
    )


def _module(raw: Mapping[str, Any], where: str) -> Module:
    file, sha256 = text(raw, "file", where), text(raw, "sha256", where)
    kind = one_of(raw, "kind", MODULE_KINDS, where)
    if not _NAME.fullmatch(file) or file != f"{sha256[:32]}.{kind}":
        raise ProgramInvalid(f"{where} should be in a file named after its digest and kind, not {file!r}.")
    fallback = raw["fallback"]
    return Module(file, kind, sha256, integer(raw, "bytes", where, 1), None if fallback is None else int(fallback))


def _kernel(name: str, raw: Mapping[str, Any]) -> Kernel:
    where = f"kernels.{name}"
    parameters = tuple(raw["parameters"])
    for parameter in parameters:
        if parameter not in PARAMETER_KINDS:
            raise ProgramInvalid(f"{where} has a parameter {parameter!r}, which is none of {PARAMETER_KINDS}.")
    maps = tuple(_tensor_map(each, place) for place, each in listed(raw, "tensor_maps", f"{where}."))
    if len(maps) != parameters.count("tensor_map"):
        raise ProgramInvalid(f"{where} has {len(maps)} tensor maps for {parameters.count('tensor_map')} parameters.")
    return Kernel(
        name=name,
        module=integer(raw, "module", where),
        entry=text(raw, "entry", where),
        warps=integer(raw, "warps", where, 1),
        shared_bytes=integer(raw, "shared_bytes", where),
        parameters=parameters,
        tensor_maps=maps,
        scratch_pointers=integer(raw, "scratch_pointers", where),
        scratch_bytes=integer(raw, "scratch_bytes", where),
        scratch_alignment=integer(raw, "scratch_alignment", where),
        cluster=integer(raw, "cluster", where, 1),
        dependent=truth(raw, "dependent", where),
    )


def _variants(name: str, raw: Mapping[str, Any]) -> tuple[Variant, ...]:
    variants = []
    for where, each in listed(raw, "variants", f"groups.{name}."):
        limits = tuple((symbol, int(most)) for symbol, most in mapping(each, "limits", where).items())
        for symbol, _ in limits:
            if symbol not in SYMBOLS:
                raise ProgramInvalid(f"{where} has a limit of {symbol!r}, which is no size of a step.")
        kernel, grid = each["kernel"], each["grid"]
        if kernel is not None and not 1 <= len(grid) <= 3:
            raise ProgramInvalid(f"{where} has a grid of {len(grid)} entries; 1 to 3 are possible.")
        variants.append(Variant(limits, kernel, tuple(parse_entry(entry, where) for entry in grid or ())))
    if not variants or variants[-1].limits:
        raise ProgramInvalid(f"groups.{name} needs a last variant without limits, for steps of any size.")
    return tuple(variants)


def _launch(raw: Mapping[str, Any], where: str) -> Launch:
    return Launch(
        group=text(raw, "group", where),
        arguments=tuple(_argument(each, where) for each in raw["args"]),
        writes=tuple(int(index) for index in raw["writes"]),
        updates=tuple(int(index) for index in raw["updates"]),
        layer=text(raw, "layer", where, empty=True),
    )


def _argument(raw: object, where: str) -> Argument:
    kind, _, name = str(raw).partition(":")
    known = {"input": INPUTS, "seat": SEATS, "result": RESULTS, "size": SYMBOLS}
    if kind in known:
        if name in known[kind]:
            return Argument(kind, name)
    elif kind in _POINTERS and name.isascii() and name.isdigit():
        return Argument(kind, name, int(name))
    raise ProgramInvalid(f"{where} has the argument {raw!r}, which names nothing that programs have.")


def _tensor_map(raw: Mapping[str, Any], where: str) -> TensorMap:
    shape, strides, box = tuple(raw["shape"]), tuple(raw["strides"]), tuple(raw["box"])
    if not 1 <= len(shape) <= 5 or len(box) != len(shape) or len(strides) != len(shape) - 1:
        raise ProgramInvalid(f"{where} needs 1 to 5 extents, as many of its box, and a stride less.")
    for extent in shape:
        if extent not in ("T", "L") and (type(extent) is not int or extent < 1):
            raise ProgramInvalid(f"{where} has the extent {extent!r}.")
    if any(type(stride) is not int or stride < 16 or stride % 16 for stride in strides):
        raise ProgramInvalid(f"{where} has strides {list(strides)}; they must be multiples of 16.")
    if any(type(extent) is not int or not 1 <= extent <= 256 for extent in box):
        raise ProgramInvalid(f"{where} has the box {list(box)}; extents lie in 1 to 256.")
    dtype = one_of(raw, "dtype", tuple(ELEMENT_BYTES), where)
    return TensorMap(dtype, shape, strides, box, one_of(raw, "swizzle", SWIZZLES, where))


def _check(program: GpuProgram) -> None:
    """What needs more than one part of the program."""
    for index, module in enumerate(program.modules):
        other = module.fallback
        if other is not None and (not 0 <= other < len(program.modules) or program.modules[other].kind != "ptx"):
            raise ProgramInvalid(f"modules[{index}] falls back on {other}, which is no module of PTX.")
    for kernel in program.kernels.values():
        if kernel.module >= len(program.modules):
            raise ProgramInvalid(f"kernels.{kernel.name} is in module {kernel.module}, which does not exist.")
        if kernel.scratch_bytes and not kernel.scratch_pointers:
            raise ProgramInvalid(f"kernels.{kernel.name} needs scratch and takes no pointer to it.")
    for name, variants in program.groups.items():
        for variant in variants:
            if variant.kernel is not None and variant.kernel not in program.kernels:
                raise ProgramInvalid(f"groups.{name} launches {variant.kernel!r}, which is no kernel.")
    used = {launch.group for launch in program.all_launches()}
    for launch in program.all_launches():
        _check_launch(program, launch)
    unused = sorted(set(program.groups) - used)
    if unused:
        raise ProgramInvalid(f"The group {unused[0]!r} is never launched.")
    if not 0 <= program.output < len(program.buffers):
        raise ProgramInvalid(f"`output` names buffer {program.output}, but there are {len(program.buffers)}.")
    output = program.buffers[program.output]
    if output.rows != "L" or output.dtype != "f32":
        raise ProgramInvalid("`output` should be a float32 buffer with a row for each row of logits.")
    if program.drawing and "feedback" not in program.seats:
        raise ProgramInvalid("A program that draws needs the seat memory `feedback`.")


def _check_launch(program: GpuProgram, launch: Launch) -> None:
    where = f"The launch of {launch.group!r}"
    counts = {
        "buffer": len(program.buffers),
        "weight": len(program.weights),
        "cache_key": len(program.cache.layers),
        "cache_value": len(program.cache.layers),
    }
    for argument in launch.arguments:
        if argument.kind in counts and not 0 <= argument.index < counts[argument.kind]:
            raise ProgramInvalid(f"{where} names {argument.kind} {argument.index}; there are {counts[argument.kind]}.")
        if argument.kind == "seat" and argument.name not in program.seats:
            raise ProgramInvalid(f"{where} names the seat memory {argument.name!r}, which the program does not list.")
    if launch.group not in program.groups:
        raise ProgramInvalid(f"{where} names a group that the program does not have.")
    for variant in program.groups[launch.group]:
        if variant.kernel is not None:
            _check_parameters(program.kernels[variant.kernel], launch, where)
            _check_maps(program, program.kernels[variant.kernel], launch, where)
    named = {argument.index for argument in launch.arguments if argument.kind == "buffer"}
    strangers = sorted((set(launch.writes) | set(launch.updates)) - named)
    if strangers or set(launch.writes) & set(launch.updates):
        raise ProgramInvalid(f"{where} writes and updates buffers that it does not name, or names one as both.")


def _check_parameters(kernel: Kernel, launch: Launch, where: str) -> None:
    if len(kernel.parameters) != len(launch.arguments):
        raise ProgramInvalid(
            f"{where} has {len(launch.arguments)} arguments, and the kernel {kernel.name!r} takes "
            f"{len(kernel.parameters)}."
        )
    for place, (parameter, argument) in enumerate(zip(kernel.parameters, launch.arguments, strict=True)):
        allowed = {"size": ("i32", "i64"), **dict.fromkeys(_MAPPED, ("pointer", "tensor_map"))}.get(
            argument.kind, ("pointer",)
        )
        if parameter not in allowed:
            raise ProgramInvalid(
                f"{where} passes {argument.kind}:{argument.name} as argument {place} of {kernel.name!r}, which is of "
                f"kind {parameter}."
            )


def _check_maps(program: GpuProgram, kernel: Kernel, launch: Launch, where: str) -> None:
    """Maps lie within what they are of, whatever the step."""
    mapped = [a for p, a in zip(kernel.parameters, launch.arguments, strict=True) if p == "tensor_map"]
    for argument, described in zip(mapped, kernel.tensor_maps, strict=True):
        rows = described.shape[0]
        row = described.strides[0] if described.strides else ELEMENT_BYTES[described.dtype]
        name = f"{argument.kind}:{argument.name}"
        if argument.kind == "weight":
            there: int | str = program.weights[argument.index].size // row
            fits = isinstance(rows, int) and rows <= int(there)
        else:
            buffer = program.buffers[argument.index]
            there, fits = buffer.rows, rows == buffer.rows and row == buffer.row_bytes
        if not fits:
            raise ProgramInvalid(f"{where} maps {rows} rows of {row} bytes of {name}, which has {there}.")
