"""Decides whether a shared object is pure arithmetic, before it is mapped (docs/spec/native-object.md).

What is accepted is narrow: the file is its own memory image, of one readable and one executable segment, with nothing
to relocate, nothing to run at load, nothing to fetch from elsewhere, and no instruction that enters the kernel. So no
system loader is needed, and none is used.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from tessera_runtime.errors import ObjectRejected
from tessera_runtime.executor.cpu.instruction_lengths import UnknownInstruction, check_instructions

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_DYNAMIC = struct.Struct("<qQ")

_MACHINES = {"x86_64": 62, "aarch64": 183}
_SEGMENTS = {
    1: "LOAD",
    2: "DYNAMIC",
    3: "INTERP",
    4: "NOTE",
    7: "TLS",
    0x6474E551: "GNU_STACK",
    0x6474E552: "GNU_RELRO",
}
_HASH, _STRINGS, _SYMBOLS, _STRINGS_SIZE, _SYMBOL_SIZE = 4, 5, 6, 10, 11
_NEEDED = 1
_CONSTRUCTORS = {12: "INIT", 13: "FINI", 25: "INIT_ARRAY", 26: "FINI_ARRAY", 32: "PREINIT_ARRAY"}
_RELOCATIONS = {2: "PLTRELSZ", 3: "PLTGOT", 7: "RELA", 17: "REL", 22: "TEXTREL", 23: "JMPREL", 36: "RELR"}

# syscall, sysenter, and the only interrupt that Linux takes as a system call.
_X86_KERNEL_ENTRIES = (b"\x0f\x05", b"\x0f\x34", b"\xcd\x80")
_HINT = "Pack the model again with this version of Tessera, or get the package from a source you trust."


@dataclass(frozen=True)
class CheckedObject:
    """Where the parts of an object lie; offsets in the file and addresses from its start are the same."""

    mapped_bytes: int
    code_offset: int
    code_bytes: int
    symbols: dict[str, int]


def check_object(data: bytes, machine: str, exports: Iterable[str], *, page_bytes: int = 4096) -> CheckedObject:
    """Checks the bytes of a shared object for `machine` ("x86_64" or "aarch64") that must export `exports`.

    Raises ObjectRejected, which says what was found and where.
    """
    if len(data) < _HEADER.size:
        raise _rejected(f"it has {len(data)} bytes, fewer than an ELF header")
    header = _HEADER.unpack_from(data)
    if header[0][:7] != b"\x7fELF\x02\x01\x01":
        raise _rejected("it is not a little-endian ELF64 file")
    if header[1] != 3:
        raise _rejected(f"it is of ELF type {header[1]}, not a shared object")
    if header[2] != _MACHINES[machine]:
        found = next((name for name, number in _MACHINES.items() if number == header[2]), f"machine {header[2]}")
        raise _rejected(f"it is for {found}, not for {machine}")
    readable, code, dynamic = _check_segments(data, header, page_bytes)
    symbols = _check_dynamic(data, readable, code, dynamic)
    missing = sorted(set(exports) - symbols.keys())
    if missing:
        raise _rejected(f"it does not export {', '.join(missing)}")
    start, size = code
    padding = data[start + size : -(-(start + size) // page_bytes) * page_bytes]
    if padding.strip(b"\0"):
        raise _rejected(f"something other than zeros follows the code in its last page, at {start + size:#x}")
    if machine == "x86_64":
        _check_x86_64(data[start : start + size], start, symbols)
    else:
        _check_aarch64(data[start : start + size], start)
    return CheckedObject(start + size, start, size, symbols)


def _check_segments(
    data: bytes, header: tuple[int, ...], page_bytes: int
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Where the constants, the code and the dynamic section lie, each as (start, size)."""
    table, entry_size, count = header[5], header[9], header[10]
    if entry_size != _PROGRAM_HEADER.size or not 1 <= count <= 16:
        raise _rejected(f"it has {count} program headers of {entry_size} bytes")
    if table + count * entry_size > len(data):
        raise _rejected("its program headers lie past its end")
    found: dict[str, tuple[int, int]] = {}
    for index in range(count):
        kind, flags, offset, address, _physical, file_size, memory_size, _align = _PROGRAM_HEADER.unpack_from(
            data, table + index * entry_size
        )
        name = _SEGMENTS.get(kind, f"{kind:#x}")
        if name == "GNU_STACK":
            if flags & 1:
                raise _rejected("it asks for an executable stack")
            continue
        if name not in ("LOAD", "DYNAMIC"):
            raise _rejected(f"it has a segment of kind {name}")
        if flags & 2:
            raise _rejected(f"it has a writable segment at {address:#x}")
        if offset != address or file_size != memory_size or offset + file_size > len(data):
            raise _rejected(f"its segment at {address:#x} is not a part of the file as it lies")
        role = "dynamic" if name == "DYNAMIC" else "code" if flags & 1 else "readable"
        if role in found:
            raise _rejected(f"it has a second {role} segment at {address:#x}")
        found[role] = (offset, file_size)
    lacking = [role for role in ("readable", "code", "dynamic") if role not in found]
    if lacking:
        raise _rejected(f"it has no {' or '.join(lacking)} segment")
    readable, code, dynamic = found["readable"], found["code"], found["dynamic"]
    if readable[0] != 0 or code[0] % page_bytes or sum(readable) > code[0] or not code[1]:
        raise _rejected(f"its code at {code[0]:#x} does not start on a page of its own after the constants")
    if dynamic[0] + dynamic[1] > readable[1]:
        raise _rejected("its dynamic section does not lie among its constants")
    return readable, code, dynamic


def _check_dynamic(
    data: bytes, readable: tuple[int, int], code: tuple[int, int], dynamic: tuple[int, int]
) -> dict[str, int]:
    """The exported symbols; every one must be a function of the object itself."""
    entries: dict[int, int] = {}
    needed: list[int] = []
    for tag, value in _DYNAMIC.iter_unpack(data[dynamic[0] : dynamic[0] + dynamic[1] // _DYNAMIC.size * _DYNAMIC.size]):
        if tag == 0:
            break
        if tag == _NEEDED:
            needed.append(value)
        elif tag in _CONSTRUCTORS:
            raise _rejected(f"it has a constructor or destructor ({_CONSTRUCTORS[tag]})")
        elif tag in _RELOCATIONS:
            raise _rejected(f"it has relocations ({_RELOCATIONS[tag]})")
        elif tag not in (_HASH, _STRINGS, _SYMBOLS, _STRINGS_SIZE, _SYMBOL_SIZE) or tag in entries:
            raise _rejected(f"its dynamic section has an unexpected entry ({tag})")
        else:
            entries[tag] = value
    if entries.keys() != {_HASH, _STRINGS, _SYMBOLS, _STRINGS_SIZE, _SYMBOL_SIZE} or entries[_SYMBOL_SIZE] != 24:
        raise _rejected("its dynamic section is incomplete")
    constants = data[: readable[1]]
    names = constants[entries[_STRINGS] : entries[_STRINGS] + entries[_STRINGS_SIZE]]
    if needed:
        raise _rejected(f"it needs the library {', '.join(repr(_name(names, value)) for value in needed)}")
    if entries[_HASH] + 8 > len(constants):
        raise _rejected("its hash table lies outside of its constants")
    count = struct.unpack_from("<I", constants, entries[_HASH] + 4)[0]
    table = constants[entries[_SYMBOLS] : entries[_SYMBOLS] + count * _SYMBOL.size]
    if len(table) != count * _SYMBOL.size:
        raise _rejected("its symbol table lies outside of its constants")
    symbols: dict[str, int] = {}
    for name_offset, info, _other, section, value, _size in list(_SYMBOL.iter_unpack(table))[1:]:
        name = _name(names, name_offset)
        if section == 0:
            raise _rejected(f"its symbol {name!r} is undefined")
        if info & 15 != 2 or not code[0] <= value < code[0] + code[1]:
            raise _rejected(f"its symbol {name!r} is not a function in its code")
        symbols[name] = value
    return symbols


def _name(names: bytes, offset: int) -> str:
    end = names.find(b"\0", offset)
    if end < 0:
        raise _rejected("a symbol name lies outside of its string table")
    return names[offset:end].decode("ascii", "backslashreplace")


def _check_x86_64(code: bytes, start: int, symbols: dict[str, int]) -> None:
    if not any(entry in code for entry in _X86_KERNEL_ENTRIES):
        return  # not at any offset, so not in any instruction either
    try:
        starts = check_instructions(code)
    except UnknownInstruction as error:
        shown = code[error.offset : error.offset + 8].hex(" ")
        raise _rejected(
            f"the instruction at {start + error.offset:#x} ({shown}) is a system call, or none that arithmetic needs"
        ) from None
    for name, address in symbols.items():
        if not starts[address - start]:
            raise _rejected(f"its symbol {name!r} points into the middle of an instruction")


def _check_aarch64(code: bytes, start: int) -> None:
    if len(code) % 4 or start % 4:
        raise _rejected("its code is not a whole number of instructions")
    words = np.frombuffer(code, "<u4")
    # svc, hvc, smc, hlt and dcps: exceptions that a program can ask for, save brk, which only stops it.
    calls = np.flatnonzero(((words & 0xFF000000) == 0xD4000000) & ((words & 0xFFE0001F) != 0xD4200000))
    if len(calls):
        raise _rejected(
            f"the instruction at {start + 4 * int(calls[0]):#x} ({int(words[calls[0]]):08x}) is a system call"
        )


def _rejected(reason: str) -> ObjectRejected:
    return ObjectRejected(f"The shared object is refused: {reason}.", hint=_HINT)
