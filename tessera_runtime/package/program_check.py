"""Checks that a program hangs together: what docs/spec/program.md says about it and a reader can decide without running
it.

Each function raises `ProgramInvalid` (or `WeightsInvalid`) with the first mistake it finds, and returns a sentence on
what it saw.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from tessera_runtime.errors import ProgramInvalid, WeightsInvalid
from tessera_runtime.executor.cpu.weight_table import physical_shape
from tessera_runtime.package.safetensors_reader import TensorEntry

INPUTS = ("token_ids", "positions", "sequences", "block_tables", "logit_rows", "tiles")
ELEMENT_BYTES = {"f32": 4, "bf16": 2, "u8": 1, "i8": 1, "i32": 4}
STORED_AS = {"u4": "u8"}
"""Dtypes of weights that safetensors has no word for: two `u4` share a byte."""
ROW_ALIGNMENT = 64

Value = TypeVar("Value")


def check_weights(program: Mapping[str, Any], tensors: Mapping[str, TensorEntry]) -> str:
    """Every weight of the program is in the shards with its dtype and its physical shape."""
    size = 0
    for index, weight in enumerate(_items(program, "weights")):
        name, layout = _key(weight, "name", str, f"weights[{index}]"), _key(weight, "layout", str, f"weights[{index}]")
        dtype, shape = _key(weight, "dtype", str, f"weights[{index}]"), _key(weight, "shape", list, f"weights[{index}]")
        entry = tensors.get(name)
        if entry is None:
            raise WeightsInvalid(f"The program needs the tensor {name!r}, which is not among the weights.")
        expected = physical_shape(tuple(shape), layout)
        if entry.tag != STORED_AS.get(dtype, dtype) or entry.shape != expected:
            raise WeightsInvalid(
                f"The tensor {name!r} should be {dtype} {list(expected)} but is {entry.tag} {list(entry.shape)}."
            )
        size += entry.size
    return f"{len(program['weights'])} tensors, {size} bytes"


def check_launches(program: Mapping[str, Any], cache_layers: int) -> str:
    """Every launch names a known group and arguments in range: the set of kernels is closed."""
    groups = program["groups"]
    ranges = {"buffer": len(program["buffers"]), "weight": len(program["weights"])}
    ranges |= {"cache_key": cache_layers, "cache_value": cache_layers}
    if any(layer["dtype"] == "i8" for layer in program["cache"]["layers"]):
        ranges |= {"cache_key_scale": cache_layers, "cache_value_scale": cache_layers}
    used = set()
    for index, launch in enumerate(_items(program, "launches")):
        where = f"launches[{index}]"
        group = _key(launch, "group", str, where)
        if group not in groups:
            raise ProgramInvalid(f"{where} launches the group {group!r}, which the program does not have.")
        used.add(group)
        for argument in _key(launch, "args", list, where):
            _check_argument(str(argument), ranges, where)
        _key(launch, "barrier", bool, where)
    unused = sorted(set(groups) - used)
    if unused:
        raise ProgramInvalid(f"The group {unused[0]!r} is never launched.")
    output = program["output"]
    if not 0 <= output < ranges["buffer"]:
        raise ProgramInvalid(f"`output` names buffer {output}, but there are {ranges['buffer']}.")
    if "peaks" in program:
        _check_peaks(program)
    return f"{len(program['launches'])} launches of {len(groups)} groups"


def _check_peaks(program: Mapping[str, Any]) -> None:
    peaks = _key(program, "peaks", dict, "the program")
    index, columns = (_key(peaks, key, int, "peaks") for key in ("buffer", "columns"))
    if not 0 <= index < len(program["buffers"]) or columns < 1:
        raise ProgramInvalid(f"`peaks` names buffer {index} and runs of {columns} columns.")
    buffer, runs = program["buffers"][index], -(-program["limits"]["vocab_size"] // columns)
    if (buffer["dtype"], buffer["rows"], buffer["shape"]) != ("f32", "L", [runs]):
        raise ProgramInvalid(f"The peaks of each row of logits are {runs} numbers of f32, which buffer {index} is not.")


def _check_argument(argument: str, ranges: Mapping[str, int], where: str) -> None:
    kind, _, value = argument.partition(":")
    if argument == "scratch" or (kind == "input" and value in INPUTS):
        return
    if kind in ranges and value.isascii() and value.isdigit() and int(value) < ranges[kind]:
        return
    raise ProgramInvalid(f"{where} has the argument {argument!r}, which names nothing in the program.")


def check_kernels(program: Mapping[str, Any]) -> str:
    """Every group has kernels in every CPU class, each with a symbol, a grid, and a range of T that leaves none out."""
    if program["target"] != "cpu":
        return "interpreted"
    classes = _key(program, "classes", dict, "the program")
    if not classes:
        raise ProgramInvalid("The program has no CPU class.")
    count = 0
    for name, entry in classes.items():
        kernels = _key(entry, "kernels", dict, f"classes.{name}")
        different = sorted(set(kernels) ^ set(program["groups"]))
        if different:
            raise ProgramInvalid(f"The kernels of class {name!r} and the groups differ in {different[0]!r}.")
        for group, variants in kernels.items():
            _check_variants(variants, program["limits"]["max_tokens"], f"classes.{name}.kernels.{group}")
            count += len(variants)
    return f"{count} kernels for {', '.join(sorted(classes))}"


def _check_variants(variants: Any, max_tokens: int, where: str) -> None:
    if not isinstance(variants, list) or not variants:
        raise ProgramInvalid(f"{where} has no kernel.")
    reached = 0
    for variant in variants:
        _check_kernel(variant, where)
        if "then" in variant:
            _check_kernel(_key(variant, "then", dict, where), where)
        if "min_width" in variant:
            # Narrower steps take one that comes later.
            _key(variant, "min_width", int, where)
            continue
        bound = variant.get("max_tokens")
        if bound is not None and (type(bound) is not int or bound <= reached):
            raise ProgramInvalid(f"{where} has kernels out of order: max_tokens {bound!r} after {reached}.")
        reached = max_tokens if bound is None else bound
    if reached < max_tokens:
        raise ProgramInvalid(f"{where} has no kernel for steps of more than {reached} tokens.")


def _check_kernel(kernel: Mapping[str, Any], where: str) -> None:
    _key(kernel, "symbol", str, where)
    for entry in _key(kernel, "grid", list, where):
        symbol, _, divisor = str(entry).partition("/")
        of_rows = symbol in ("T", "L") and (not divisor or divisor.isdigit())
        if not (str(entry).isdigit() or entry in ("Q", "C") or of_rows):
            raise ProgramInvalid(f"{where} has the grid entry {entry!r}.")


def check_arena(program: Mapping[str, Any]) -> str:
    """No two buffers that live at the same time overlap, and none leaves the arena, whatever T and L are."""
    limits, arena = program["limits"], program["arena"]
    tokens = _key(limits, "max_tokens", int, "limits")
    lifetimes = _lifetimes(program)
    has_scratch = any("scratch" in launch["args"] for launch in program["launches"])
    shapes = sorted({(t, row) for t in (1, 2, tokens) for row in (0, 1, t)})
    for t, row in shapes:
        total = arena["bytes"] + t * arena["bytes_per_token"] + row * arena["bytes_per_logit_row"]
        room = total - arena["bytes"] if has_scratch else total
        placed = [(*_extent(program, index, t, row), index) for index in sorted(lifetimes)]
        for start, end, index in placed:
            if start < 0 or end > room:
                raise ProgramInvalid(
                    f"The buffer {index} leaves the arena in a step of {t} tokens and {row} logit rows."
                )
        _check_overlaps(placed, lifetimes)
    return f"{len(program['buffers'])} buffers in {arena['bytes_per_token']} bytes per token"


def _check_overlaps(placed: list[tuple[int, int, int]], lifetimes: Mapping[int, tuple[int, int]]) -> None:
    placed = sorted(entry for entry in placed if entry[0] < entry[1])
    live: list[tuple[int, int]] = []
    for start, end, index in placed:
        live = [(other_end, other) for other_end, other in live if other_end > start]
        first, last = lifetimes[index]
        for _, other in live:
            if lifetimes[other][0] <= last and first <= lifetimes[other][1]:
                raise ProgramInvalid(f"The buffers {other} and {index} are alive together and overlap in memory.")
        live.append((end, index))


def _lifetimes(program: Mapping[str, Any]) -> dict[int, tuple[int, int]]:
    """First and last launch that names each buffer; what the program gives lives to the end."""
    lifetimes: dict[int, tuple[int, int]] = {}
    for index, launch in enumerate(program["launches"]):
        for argument in launch["args"]:
            if argument.startswith("buffer:"):
                buffer = int(argument.removeprefix("buffer:"))
                lifetimes[buffer] = (lifetimes.get(buffer, (index, index))[0], index)
    for output in (program["output"], program.get("peaks", {}).get("buffer")):
        if output in lifetimes:
            lifetimes[output] = (lifetimes[output][0], len(program["launches"]))
    return lifetimes


def _extent(program: Mapping[str, Any], index: int, tokens: int, logit_rows: int) -> tuple[int, int]:
    where = f"buffers[{index}]"
    buffer = program["buffers"][index]
    row_bytes = _key(buffer, "row_bytes", int, where)
    offset = _key(buffer, "offset", dict, where)
    if row_bytes % ROW_ALIGNMENT or buffer.get("rows") not in ("T", "L") or buffer.get("dtype") not in ELEMENT_BYTES:
        raise ProgramInvalid(f"{where} should have rows T or L, a known dtype, and rows of a multiple of 64 bytes.")
    start = offset["tokens"] * tokens + offset["logit_rows"] * logit_rows + offset["bytes"]
    return start, start + row_bytes * (tokens if buffer["rows"] == "T" else logit_rows)


def check_cache(program: Mapping[str, Any]) -> str:
    """The layers of a cache block lie in it without overlap, each aligned."""
    cache = program["cache"]
    size, positions = cache["bytes_per_block"], cache["block_tokens"]
    extents = []
    for index, layer in enumerate(cache["layers"]):
        element = ELEMENT_BYTES.get(layer["dtype"])
        if element is None:
            raise ProgramInvalid(f"cache.layers[{index}] has the unknown dtype {layer['dtype']!r}.")
        if layer["dtype"] == "i8":
            first = layer["key_offset"]
            extents.append((first, first + layer["heads"] * _bytes_of_head(program, layer, positions, index), index))
            continue
        for part in ("key", "value"):
            start = layer[f"{part}_offset"]
            width = _cached_width(program, layer[f"{part}_dim"], part, element)
            extents.append((start, start + layer["heads"] * width * positions * element, index))
    _check_extents(extents, size, "leaves its block")
    return f"{len(cache['layers'])} layers, {size} bytes for {positions} positions"


def _check_extents(extents: list[tuple[int, int, int]], size: int, what: str) -> None:
    reached = 0
    for start, end, index in sorted(extents):
        if start < reached or end > size or start % ROW_ALIGNMENT:
            raise ProgramInvalid(f"Layer {index} of the cache overlaps another or {what} of {size} bytes.")
        reached = end


def _bytes_of_head(program: Mapping[str, Any], layer: Mapping[str, Any], positions: int, index: int) -> int:
    """What a head of bytes takes: its keys, its values and the scales of both, which must lie in it."""
    size: int = layer["head_bytes"]
    extents = []
    for part in ("key", "value"):
        start = layer[f"{part}_offset"] - layer["key_offset"]
        extents.append((start, start + _cached_width(program, layer[f"{part}_dim"], part, 1) * positions, index))
        start = layer[f"{part}_scale_offset"] - layer["key_offset"]
        extents.append((start, start + positions * ELEMENT_BYTES["f32"], index))
    if size % ROW_ALIGNMENT:
        raise ProgramInvalid(f"The heads of layer {index} of the cache are {size} bytes, no multiple of 64.")
    _check_extents(extents, size, "leaves a head")
    return size


def _cached_width(program: Mapping[str, Any], width: int, part: str, element: int) -> int:
    """Elements that a position takes in a part of the cache: from ABI 2 on, a CPU's panels are padded."""
    if program["abi"] < 2 or program["target"] != "cpu":
        return width
    multiple = 16 if part == "value" else ELEMENT_BYTES["f32"] // element
    return -(-width // multiple) * multiple


def shielded(check: Callable[[], Value], what: str) -> Value:
    """Runs a check; a program so malformed that reading it fails becomes `ProgramInvalid` too."""
    try:
        return check()
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise ProgramInvalid(f"The {what} of the program cannot be read: {type(error).__name__} {error}.") from None


def _items(program: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    return list(program[key])


def _key(entry: Mapping[str, Any], key: str, kind: type, where: str) -> Any:
    value = entry.get(key)
    if type(value) is not kind:
        raise ProgramInvalid(f"{where} should have a {kind.__name__} under {key!r}, not {value!r}.")
    return value
