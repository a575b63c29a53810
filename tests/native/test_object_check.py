"""Hostile and damaged objects are refused before they are mapped; harmless ones that only look so are not."""

from __future__ import annotations

import random
import struct
import time

import pytest

from tessera_compiler.targets.cpu.object_code import CPU_CLASSES, compile_ir
from tessera_runtime.errors import ObjectRejected
from tessera_runtime.executor.cpu.instruction_lengths import UnknownInstruction, check_instructions
from tessera_runtime.executor.cpu.native_object import EXPORTS
from tessera_runtime.executor.cpu.object_check import CheckedObject, check_object

PROGRAM_HEADERS, PROGRAM_HEADER = 64, 56


@pytest.fixture
def good(toy_objects) -> bytearray:
    return bytearray(toy_objects["x86-64-v4"])


def check(data: bytes, machine: str = "x86_64") -> CheckedObject:
    return check_object(bytes(data), machine, EXPORTS)


def test_what_the_compiler_makes_is_accepted(toy_objects):
    for name, data in toy_objects.items():
        found = check(data, "aarch64" if name == "aarch64" else "x86_64")
        assert set(EXPORTS) == found.symbols.keys()


def _dynamic(data: bytes) -> int:
    return struct.unpack_from("<Q", data, PROGRAM_HEADERS + 2 * PROGRAM_HEADER + 8)[0]


@pytest.mark.parametrize(
    ("tag", "words"),
    [
        (1, "needs the library"),
        (12, r"constructor or destructor \(INIT\)"),
        (13, r"\(FINI\)"),
        (25, r"\(INIT_ARRAY\)"),
        (26, r"\(FINI_ARRAY\)"),
        (32, r"\(PREINIT_ARRAY\)"),
        (7, r"relocations \(RELA\)"),
        (17, r"\(REL\)"),
        (22, r"\(TEXTREL\)"),
        (23, r"\(JMPREL\)"),
        (0x6FFFFEF5, "unexpected entry"),
        (0x7FFFFFFD, "unexpected entry"),
    ],
)
def test_dynamic_entries_that_do_something_are_refused(good, tag, words):
    # In place of the end marker; the section ends with its segment.
    struct.pack_into("<qQ", good, _dynamic(good) + 80, tag, 1)
    with pytest.raises(ObjectRejected, match=words):
        check(good)


def test_the_needed_library_is_named(good):
    struct.pack_into("<qQ", good, _dynamic(good) + 80, 1, 1)
    with pytest.raises(ObjectRejected, match="'tessera_abi'"):
        check(good)


@pytest.mark.parametrize(
    ("segment", "offset", "value", "words"),
    [
        (0, 0, 3, "kind INTERP"),
        (0, 0, 7, "kind TLS"),
        (0, 0, 0x6474E552, "kind GNU_RELRO"),
        (0, 4, 6, "writable segment at 0x0"),
        (1, 4, 7, "writable segment at 0x1000"),
        (0, 4, 5, "second code segment"),
        (1, 4, 4, "second readable segment"),
        (3, 4, 7, "executable stack"),
        (1, 16, 0x2000, "not a part of the file"),
        (1, 40, 1 << 40, "not a part of the file"),
        (2, 0, 1, "second readable segment"),
    ],
)
def test_segments_of_other_kinds_are_refused(good, segment, offset, value, words):
    struct.pack_into("<I" if offset < 8 else "<Q", good, PROGRAM_HEADERS + segment * PROGRAM_HEADER + offset, value)
    with pytest.raises(ObjectRejected, match=words):
        check(good)


def test_undefined_and_foreign_symbols_are_refused(good):
    table = struct.unpack_from("<Q", good, _dynamic(good) + 2 * 16 + 8)[0]
    second = table + 2 * 24
    changed = bytearray(good)
    struct.pack_into("<H", changed, second + 6, 0)
    with pytest.raises(ObjectRejected, match="'tessera_begin' is undefined"):
        check(changed)
    changed = bytearray(good)
    struct.pack_into("<Q", changed, second + 8, 64)
    with pytest.raises(ObjectRejected, match="not a function in its code"):
        check(changed)


def test_missing_exports_and_wrong_machines_are_refused(good, toy_objects):
    with pytest.raises(ObjectRejected, match="does not export tessera_magic"):
        check_object(bytes(good), "x86_64", [*EXPORTS, "tessera_magic"])
    with pytest.raises(ObjectRejected, match="is for aarch64, not for x86_64"):
        check(toy_objects["aarch64"])
    with pytest.raises(ObjectRejected, match="not a little-endian ELF64"):
        check(b"MZ" + bytes(good[2:]))


def test_code_hidden_behind_the_code_is_refused(good):
    found = check(good)
    good[found.code_offset + found.code_bytes + 3] = 0xC3
    with pytest.raises(ObjectRejected, match="follows the code"):
        check(good)


def _in_padding(data: bytearray, instruction: bytes) -> bytearray:
    """Plants an instruction where a function is followed by filler, and fills up with one-byte fillers."""
    found = check(data)
    code = bytes(data[found.code_offset : found.code_offset + found.code_bytes])
    starts = check_instructions(code)
    at = next(
        index
        for index in range(len(code))
        if starts[index]
        and code[index : index + 2] in (b"\x66\x66", b"\x66\x2e", b"\x0f\x1f")
        and not any(starts[index + 1 : index + 6])
    )
    length = next(size for size in range(1, 16) if at + size == len(code) or starts[at + size])
    changed = bytearray(data)
    changed[found.code_offset + at : found.code_offset + at + length] = instruction.ljust(length, b"\x90")
    return changed


@pytest.mark.parametrize("instruction", [b"\x0f\x05", b"\x0f\x34", b"\xcd\x80"])
def test_system_calls_are_refused(good, instruction):
    with pytest.raises(ObjectRejected, match="system call"):
        check(_in_padding(good, instruction))


def test_the_same_bytes_in_an_immediate_are_accepted():
    text = "define i64 @f() {\n ret i64 u0x1180cd2233050f44\n}"
    data = compile_ir(text, CPU_CLASSES["x86-64-v4"], ["f"])
    assert b"\x0f\x05" in data and b"\xcd\x80" in data
    check_object(data, "x86_64", ["f"])


def test_a_jump_into_an_immediate_is_refused():
    # mov eax, 0x05…; jmp to its second byte
    code = b"\xb8\x0f\x05\xc3\x90" + b"\xeb\xfa" + b"\xc3"
    with pytest.raises(UnknownInstruction):
        check_instructions(code)
    assert sum(check_instructions(b"\xb8\x0f\x05\xc3\x90" + b"\xeb\xf9" + b"\xc3")) == 3


@pytest.mark.parametrize("word", [0xD4000001, 0xD4001FE1, 0xD4000002, 0xD4000003, 0xD4400000])
def test_aarch64_system_calls_are_refused(toy_objects, word):
    data = bytearray(toy_objects["aarch64"])
    found = check(data, "aarch64")
    struct.pack_into("<I", data, found.code_offset + 8, word)
    with pytest.raises(ObjectRejected, match="system call"):
        check(data, "aarch64")
    struct.pack_into(
        "<I", data, found.code_offset + 8, 0xD4200020
    )  # brk: stops the program, asks the kernel for nothing
    check(data, "aarch64")


@pytest.mark.parametrize(
    ("instruction", "length"),
    [
        ("c3", 1),
        ("f3 90", 2),
        ("48 8b 04 25 00 00 00 00", 8),
        ("48 8d 05 11 22 33 44", 7),
        ("48 b8 01 02 03 04 05 06 07 08", 10),
        ("66 b8 01 02", 4),
        ("48 c7 c1 31 f8 ff ff", 7),
        ("66 c7 00 01 02", 5),
        ("f6 c1 08", 3),
        ("f7 d8", 2),
        ("f7 c1 01 02 03 04", 6),
        ("f0 48 0f c1 8f c0 00 00 00", 9),
        ("66 66 66 66 66 66 2e 0f 1f 84 00 00 00 00 00", 15),
        ("c5 f8 77", 3),
        ("c4 e2 b1 f7 ff", 5),
        ("c4 e3 7d 19 c1 01", 6),
        ("62 f1 7c 48 58 c1", 6),
        ("62 f2 76 48 52 84 88 00 01 00 00", 11),
        ("62 f3 fd 48 1b c1 01", 7),
        ("62 f1 7c 48 28 44 24 01", 8),
        ("62 f1 7d 48 72 f0 10", 7),
        ("67 e8 00 00 00 00", 6),
    ],
)
def test_lengths_of_instructions(instruction, length):
    code = bytes.fromhex(instruction)
    starts = check_instructions(code + b"\x90" * 16)
    assert len(code) == length
    assert list(starts[: length + 1]) == [1] + [0] * (length - 1) + [1]


@pytest.mark.parametrize(
    "instruction",
    [
        "0f 05",
        "0f 34",
        "0f 35",
        "0f 07",
        "cd 80",
        "cc",
        "ce",
        "cf",
        "f4",
        "fa",
        "e4 10",
        "ec",
        "6c",
        "f1",
        "0f 01 c1",
        "0f 01 d0",
        "0f 22 c0",
        "0f 30",
        "0f a2",
        "0f 00 c0",
        "ff 18",
        "ff 28",
        "cb",
        "9a 00 00 00 00 00 00",
        "64 48 8b 04 25 28 00 00 00",
        "65 48 8b 00",
        "f3 0f ae d0",
        "0f c7 f0",
        "c7 f8 00 00 00 00",
        "8f e8 78 c0 c1 00",
        "d5 00 90",
        "62 f5 7c 48 58 c1",
        "62 f9 7c 48 58 c1",
        "62 f1 78 48 58 c1",
        "48 c5 f8 77",
        "66 e8 00 00 00 00",
        "66 66 66 66 66 66 66 66 66 66 66 66 66 66 66 90",
        "48 b8 01 02",
    ],
)
def test_instructions_that_arithmetic_does_not_need(instruction):
    code = bytes.fromhex(instruction)
    with pytest.raises(UnknownInstruction):
        check_instructions(code if len(code) == 4 else code + b"\x90" * 16)


def test_every_truncation_is_refused_or_harmless(good):
    needed = check(good).mapped_bytes
    for size in [*range(0, 400), *range(400, needed, 97), needed - 1]:
        with pytest.raises(ObjectRejected):
            check(good[:size])
    check(good[:needed])


def test_damage_is_refused_in_words(good):
    """Whatever a byte of the tables becomes, the check says yes or no, and never stumbles."""
    chance = random.Random(7)
    readable = struct.unpack_from("<Q", good, PROGRAM_HEADERS + 32)[0]
    refused = 0
    for _ in range(3000):
        damaged = bytearray(good)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(readable)] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
        try:
            check(damaged)
        except ObjectRejected:
            refused += 1
    assert refused > 1500


def test_large_objects_are_checked_quickly(good):
    found = check(good)
    code = bytes(good[found.code_offset : found.code_offset + found.code_bytes])
    large = code * (500_000 // len(code))
    started = time.perf_counter()
    check_instructions(large)
    # 0.15 s on an idle machine of 2026.
    assert time.perf_counter() - started < 1.5
