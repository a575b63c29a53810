"""Objects made of small LLVM IR, linked and then run, or (aarch64) read back instruction by instruction."""

from __future__ import annotations

import ctypes
import mmap
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tessera_compiler.targets.cpu.elf_format import LinkError
from tessera_compiler.targets.cpu.elf_linker import link
from tessera_compiler.targets.cpu.object_code import (
    CPU_CLASSES,
    FUNCTION_ALIGNMENT,
    ObjectCodeError,
    compile_ir,
    emit_relocatable,
)
from tessera_runtime.executor.cpu.object_check import check_object
from tessera_runtime.executor.cpu.processor import machine_of_class, missing_features, read_processor

CONSTANTS = """
@table = private unnamed_addr constant [4 x double] [double 1.5, double 2.5, double 3.5, double 4.5], align 32
@bytes = private unnamed_addr constant [4 x i8] c"\\07\\08\\09\\0A", align 1

define double @look_up(i64 %index) {
  %place = getelementptr double, ptr @table, i64 %index
  %value = load double, ptr %place
  ret double %value
}

define i64 @second_byte() {
  %value = load volatile i8, ptr getelementptr (i8, ptr @bytes, i64 1)
  %wide = zext i8 %value to i64
  ret i64 %wide
}

@half = private unnamed_addr constant i16 1001, align 2
@word = private unnamed_addr constant i32 1002, align 4
@long = private unnamed_addr constant i64 1003, align 8
@four = private unnamed_addr constant <4 x i32> <i32 1, i32 2, i32 3, i32 1004>, align 16

define i64 @all_sizes() {
  %a = load volatile i16, ptr @half
  %b = load volatile i32, ptr @word
  %c = load volatile i64, ptr @long
  %v = load volatile <4 x i32>, ptr @four
  %d = extractelement <4 x i32> %v, i64 3
  %wa = zext i16 %a to i64
  %wb = zext i32 %b to i64
  %wd = zext i32 %d to i64
  %ab = add i64 %wa, %wb
  %cd = add i64 %c, %wd
  %all = add i64 %ab, %cd
  ret i64 %all
}

define internal i64 @twice(i64 %value) noinline {
  %result = shl i64 %value, 1
  ret i64 %result
}

define i64 @through_a_call(i64 %value) {
  %doubled = call i64 @twice(i64 %value)
  %result = add i64 %doubled, 1
  ret i64 %result
}

define ptr @own_address() {
  ret ptr @second_byte
}

define i64 @many_ways(i64 %way, ptr %sink) {
  switch i64 %way, label %other [
    i64 0, label %a
    i64 1, label %b
    i64 2, label %c
    i64 3, label %d
    i64 4, label %e
  ]
a:
  store volatile i64 1, ptr %sink
  br label %other
b:
  store volatile i8 2, ptr %sink
  br label %other
c:
  store volatile i16 3, ptr %sink
  br label %other
d:
  store volatile i32 4, ptr %sink
  br label %other
e:
  store volatile float 5.0, ptr %sink
  br label %other
other:
  %result = phi i64 [10, %a], [20, %b], [30, %c], [40, %d], [50, %e], [60, %0]
  ret i64 %result
}
"""
NAMES = ("look_up", "second_byte", "all_sizes", "through_a_call", "own_address", "many_ways")


@pytest.fixture(scope="module")
def best_class() -> str:
    return next(name for name, entry in CPU_CLASSES.items() if _runs_here(name, list(entry.required_flags)))


def _runs_here(name: str, flags: list[str]) -> bool:
    return not missing_features(name, {"features": flags}, read_processor())


@pytest.fixture
def run_in(tmp_path: Path) -> Iterator[Callable[..., Callable[[str, object], ctypes._CFuncPtr]]]:
    """Maps an object; gives a function from a symbol and a C prototype to something callable."""
    maps = []

    def load(data: bytes, machine: str, names: tuple[str, ...]) -> Callable[[str, object], ctypes._CFuncPtr]:
        path = tmp_path / f"{len(maps)}.so"
        path.write_bytes(data)
        with path.open("rb") as file:
            region = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_EXEC)
        maps.append(region)
        base = np.frombuffer(region, np.uint8).ctypes.data
        symbols = check_object(data, machine, names).symbols
        return lambda name, prototype: prototype(base + symbols[name])

    yield load


def test_constants_calls_and_tables(best_class, run_in):
    integer = ctypes.c_int64
    data = compile_ir(CONSTANTS, CPU_CLASSES[best_class], NAMES)
    function = run_in(data, machine_of_class(best_class), NAMES)
    look_up = function("look_up", ctypes.CFUNCTYPE(ctypes.c_double, integer))
    assert [look_up(index) for index in range(4)] == [1.5, 2.5, 3.5, 4.5]
    second_byte = function("second_byte", ctypes.CFUNCTYPE(integer))
    assert second_byte() == 8
    assert function("all_sizes", ctypes.CFUNCTYPE(integer))() == 4010
    assert function("through_a_call", ctypes.CFUNCTYPE(integer, integer))(20) == 41
    own_address = function("own_address", ctypes.CFUNCTYPE(ctypes.c_void_p))
    assert own_address() == ctypes.cast(second_byte, ctypes.c_void_p).value
    sink = ctypes.c_int64()
    many_ways = function("many_ways", ctypes.CFUNCTYPE(integer, integer, ctypes.c_void_p))
    assert [many_ways(way, ctypes.addressof(sink)) for way in range(6)] == [10, 20, 30, 40, 50, 60]


def test_several_objects_become_one(best_class, run_in):
    entry = CPU_CLASSES[best_class]
    caller = "declare i64 @callee(i64)\ndefine i64 @caller(i64 %v) {\n %r = call i64 @callee(i64 %v)\n ret i64 %r\n}"
    callee = "define i64 @callee(i64 %v) {\n %r = mul i64 %v, 7\n ret i64 %r\n}"
    data = link([emit_relocatable(caller, entry), emit_relocatable(callee, entry)], ["caller"])
    function = run_in(data, machine_of_class(best_class), ("caller",))
    assert function("caller", ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64))(6) == 42
    assert check_object(data, machine_of_class(best_class), ["caller"]).symbols.keys() == {"caller"}


@pytest.mark.parametrize("name", CPU_CLASSES)
def test_equal_text_gives_equal_bytes(name):
    data = compile_ir(CONSTANTS, CPU_CLASSES[name], NAMES)
    assert data == compile_ir(CONSTANTS, CPU_CLASSES[name], NAMES)
    assert b"/" not in data.replace(b"\x2f\x00", b"")[-400:], "a path of the building machine is in the object"


@pytest.mark.parametrize("name", CPU_CLASSES)
def test_every_class_passes_the_check(name):
    data = compile_ir(CONSTANTS, CPU_CLASSES[name], NAMES)
    assert check_object(data, machine_of_class(name), NAMES).symbols.keys() == set(NAMES)


@pytest.mark.parametrize("name", CPU_CLASSES)
def test_functions_start_where_no_other_moves_them(name):
    found = check_object(compile_ir(CONSTANTS, CPU_CLASSES[name], NAMES), machine_of_class(name), NAMES)
    assert len(found.symbols) > 2 and not any(start % FUNCTION_ALIGNMENT for start in found.symbols.values())


def test_zeroing_loops_do_not_become_memset(best_class):
    loop = """
    define void @zero(ptr %to, i64 %count) {
    entry:
      br label %head
    head:
      %i = phi i64 [0, %entry], [%next, %head]
      %place = getelementptr i64, ptr %to, i64 %i
      store i64 0, ptr %place
      %next = add i64 %i, 1
      %more = icmp ult i64 %next, %count
      br i1 %more, label %head, label %done
    done:
      ret void
    }"""
    compile_ir(loop, CPU_CLASSES[best_class], ["zero"])


def test_vectors_of_sixteen_use_full_registers():
    text = """
    define void @add(ptr %to, ptr %from) {
      %a = load <16 x float>, ptr %to
      %b = load <16 x float>, ptr %from
      %c = fadd <16 x float> %a, %b
      store <16 x float> %c, ptr %to
      ret void
    }"""
    relocatable = emit_relocatable(text, CPU_CLASSES["x86-64-v4"])
    assert b"\x62\xf1\x7c\x48" in relocatable, "no instruction on 512 bits although the class has them"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("declare void @malloc()\ndefine void @f() {\n call void @malloc()\n ret void\n}", "undefined: malloc"),
        ("define void @g() {\n ret void\n}", "exported symbols f"),
        ("@v = global i32 7\ndefine ptr @f() {\n ret ptr @v\n}", r"writable section .data"),
        ("@v = global i32 0\ndefine ptr @f() {\n ret ptr @v\n}", r"writable section .bss"),
        (
            "@v = thread_local global i32 3\ndefine i32 @f() {\n %r = load i32, ptr @v\n ret i32 %r\n}",
            "writable section",
        ),
    ],
)
def test_what_cannot_stand_alone_is_refused(text, words):
    for entry in CPU_CLASSES.values():
        with pytest.raises(LinkError, match=words):
            compile_ir(text, entry, ["f"])


def test_two_definitions_and_two_machines_are_refused():
    text = "define void @f() {\n ret void\n}"
    one, other = (emit_relocatable(text, CPU_CLASSES[name]) for name in ("x86-64-v3", "aarch64"))
    with pytest.raises(LinkError, match="one definition of f"):
        link([one, one], ["f"])
    with pytest.raises(LinkError, match="one machine"):
        link([one, other], ["f"])


def test_wrong_ir_is_a_sentence():
    with pytest.raises(ObjectCodeError, match="LLVM refused the IR generated for aarch64"):
        compile_ir("define void @f() {\n ret i32 1\n}", CPU_CLASSES["aarch64"], ["f"])


def test_aarch64_addresses_lead_to_the_constants():
    data = compile_ir(CONSTANTS, CPU_CLASSES["aarch64"], NAMES)
    found = check_object(data, "aarch64", NAMES)
    words = struct.unpack(f"<{found.code_bytes // 4}I", data[found.code_offset :][: found.code_bytes])

    def addresses_in(name: str) -> Iterator[int]:
        """Follows each `adrp` or `adr` and the first instruction after it that completes the address."""
        start = (found.symbols[name] - found.code_offset) // 4
        pages: dict[int, int] = {}
        for index in range(start, len(words)):
            word, place = words[index], found.code_offset + 4 * index
            if word == 0xD65F03C0:  # ret
                return
            immediate = _signed((word >> 5 & 0x7FFFF) << 2 | word >> 29 & 3, 21)
            if word & 0x9F000000 == 0x90000000:
                pages[word & 31] = (place >> 12) + immediate << 12
            elif word & 0x9F000000 == 0x10000000:
                yield place + immediate
            elif word & 0xFFC00000 == 0x91000000 and word >> 5 & 31 in pages:
                yield pages.pop(word >> 5 & 31) + (word >> 10 & 0xFFF)
            elif word & 0x3B000000 == 0x39000000 and word >> 5 & 31 in pages:
                is_vector = word & 0xFFC00000 == 0x3DC00000
                yield pages.pop(word >> 5 & 31) + ((word >> 10 & 0xFFF) << (4 if is_vector else word >> 30))

    table = struct.pack("<4d", 1.5, 2.5, 3.5, 4.5)
    assert [data[at : at + 32] for at in addresses_in("look_up")] == [table]
    assert [data[at] for at in addresses_in("second_byte")] == [8]
    constants = [data[at : at + size] for at, size in zip(addresses_in("all_sizes"), (2, 4, 8, 16), strict=True)]
    assert constants == [
        struct.pack("<H", 1001), struct.pack("<I", 1002), struct.pack("<Q", 1003), struct.pack("<4I", 1, 2, 3, 1004),
    ]  # fmt: skip
    assert list(addresses_in("own_address")) == [found.symbols["second_byte"]]
    calls = [
        found.code_offset + 4 * index + _signed(word & 0x3FFFFFF, 26) * 4
        for index, word in enumerate(words)
        if word >> 26 == 0b100101
    ]
    callee = struct.unpack_from("<2I", data, calls[0])
    assert len(calls) == 1 and callee == (0xD37FF800, 0xD65F03C0)  # lsl x0, x0, #1; ret


def _signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> bits - 1 else value
