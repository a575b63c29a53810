"""Runs emitted Triton source in Triton's own interpreter, on NumPy arrays, with no GPU and no torch.

The interpreter multiplies the raw bits of bfloat16, so sources are emitted with `widen`; and it works on memory, so
bfloat16 buffers, which are float32 arrays to Tile IR's interpreter, are handed over as their sixteen bits.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import triton
import triton.language
from numpy.typing import NDArray
from triton.runtime import JITFunction, interpreter

from tessera_compiler.targets.reference.interpreter import grid_size
from tessera_compiler.targets.triton.emission import Source, emit_source
from tessera_compiler.tile import dialect
from tessera_compiler.tile.float8 import float8_bits, float8_values
from tessera_compiler.tile.types import element_name

_patch_tensor = interpreter._patch_lang_tensor


def _patch_tensor_for_every_numpy(tensor: Any, scope: Any) -> None:
    """NumPy 2.4 no longer makes an integer of an array of one, which the interpreter's loops do."""
    _patch_tensor(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.reshape(-1)[0]))


@contextmanager
def _interpreted() -> Iterator[None]:
    """Triton's own functions are meant for the interpreter only if a variable was set when it was first imported, which
    may be long ago; so they are exchanged while a kernel runs."""
    exchanged = [
        (module, name, value)
        for module in (triton.language, triton.language.standard, triton.language.math)
        for name, value in vars(module).items()
        if isinstance(value, JITFunction)
    ]
    before = triton.knobs.runtime.interpret
    for module, name, value in exchanged:
        setattr(module, name, interpreter.InterpretedFunction(value.fn))
    triton.knobs.runtime.interpret = True
    interpreter._patch_lang_tensor = _patch_tensor_for_every_numpy
    try:
        yield
    finally:
        interpreter._patch_lang_tensor = _patch_tensor
        triton.knobs.runtime.interpret = before
        for module, name, value in exchanged:
            setattr(module, name, value)


Array = NDArray[Any]
STORED = {"f32": np.float32, "bf16": np.uint16, "f16": np.float16, "i8": np.int8, "u8": np.uint8, "i32": np.int32}
TORCH_NAMES = {
    "f32": "float32",
    "bf16": "bfloat16",
    "f16": "float16",
    "f8_e4m3": "uint8",
    "i8": "int8",
    "u8": "uint8",
    "i32": "int32",
}
ELEMENTS = {"*fp32": np.float32, "*i16": np.int16, "*i32": np.int32, "*i64": np.int64}
"""What stands behind the pointers of a source that was written by hand."""


class _Pointer:
    """What the interpreter takes for a tensor: an address and the name of an element."""

    def __init__(self, array: Array, name: str):
        self.array = array
        self.dtype = name

    def data_ptr(self) -> int:
        return int(self.array.ctypes.data)


class _Executor(interpreter.GridExecutor):  # type: ignore[misc]
    """Runs on host memory as it is, where the original copies tensors of torch there and back."""

    def _init_args_hst(self, args_dev: Any, kwargs: Any) -> tuple[Any, Any]:
        return list(args_dev), dict(kwargs)

    def _restore_args_dev(self, args_dev: Any, args_hst: Any, kwargs: Any, kwargs_hst: Any) -> None:
        pass


def load_module(text: str, folder: Path, name: str) -> ModuleType:
    """Imports a source, with `@triton.jit` meaning the interpreter."""
    path = folder / f"{name}.py"
    path.write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[name]
    return module


def run_in_triton(kernel: dialect.KernelOp, buffers: Sequence[Array], folder: Path, **counts: int) -> list[Array]:
    """What the buffers hold after all instances of a kernel; `counts` as `run_kernel` takes them."""
    source = emit_source(kernel, widen=True)
    elements = [element_name(buffer.type) for buffer in kernel.buffers]
    stored = [_stored(buffer, element) for buffer, element in zip(buffers, elements, strict=True)]
    sizes = {"tokens": 0, "logit_rows": 0, "table_width": 0, **counts}
    grid = tuple(
        grid_size(
            entry,
            sizes["tokens"],
            sizes["logit_rows"],
            sizes.get("tiles", 0),
            sizes.get("singles", 0),
            sizes.get("chunks", 1),
        )
        for entry in kernel.grid_entries
    )
    pointers = [_Pointer(array, TORCH_NAMES[element]) for array, element in zip(stored, elements, strict=True)]
    arguments = [*pointers, *(np.int32(sizes[name]).item() for name in ("tokens", "logit_rows", "table_width"))]
    with _interpreted():
        function = getattr(load_module(source.text, folder, source.symbol), source.symbol)
        if all(grid):
            _Executor(function.fn, function.arg_names, grid)(*arguments)
    return [_as_given(array, element) for array, element in zip(stored, elements, strict=True)]


def run_source(source: Source, arrays: Sequence[Array], grid: tuple[int, ...], folder: Path) -> None:
    """Runs a source all of whose parameters are pointers, on the arrays themselves."""
    for (name, kind), array in zip(source.signature, arrays, strict=True):
        assert array.dtype == ELEMENTS[kind] and array.flags.c_contiguous, name
    with _interpreted():
        function = getattr(load_module(source.text, folder, source.symbol), source.symbol)
        _Executor(function.fn, function.arg_names, grid)(*(_Pointer(each, str(each.dtype)) for each in arrays))


def _stored(values: Array, element: str) -> Array:
    if element == "bf16":
        return np.ascontiguousarray(values.astype(np.float32).view(np.uint32) >> np.uint32(16), dtype=np.uint16)
    if element == "f8_e4m3":
        return float8_bits(values)
    return np.array(values, dtype=STORED[element], order="C")


def _as_given(values: Array, element: str) -> Array:
    if element == "bf16":
        return (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return float8_values(values) if element == "f8_e4m3" else values
