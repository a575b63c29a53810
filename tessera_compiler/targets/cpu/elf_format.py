"""What the linker needs of little-endian ELF64: reading relocatable objects, packing the tables of a shared one."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

FILE_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
SECTION_HEADER = struct.Struct("<IIQQQQIIQQ")
PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
SYMBOL = struct.Struct("<IBBHQQ")
RELOCATION = struct.Struct("<QQq")
DYNAMIC_ENTRY = struct.Struct("<qQ")

IDENTIFICATION = b"\x7fELF\x02\x01\x01" + bytes(9)
TYPE_RELOCATABLE, TYPE_SHARED = 1, 3
MACHINE_X86_64, MACHINE_AARCH64 = 62, 183
MACHINE_NAMES = {MACHINE_X86_64: "x86_64", MACHINE_AARCH64: "aarch64"}

SECTION_PROGRAM_BITS, SECTION_SYMBOLS, SECTION_STRINGS, SECTION_RELA, SECTION_HASH = 1, 2, 3, 4, 5
SECTION_DYNAMIC, SECTION_NO_BITS, SECTION_REL, SECTION_DYNAMIC_SYMBOLS, SECTION_UNWIND = 6, 8, 9, 11, 0x70000001
FLAG_WRITE, FLAG_ALLOCATED, FLAG_EXECUTABLE, FLAG_THREAD_LOCAL = 1, 2, 4, 0x400

SYMBOL_LOCAL, SYMBOL_GLOBAL, SYMBOL_WEAK = 0, 1, 2
SYMBOL_OBJECT, SYMBOL_FUNCTION = 1, 2
INDEX_UNDEFINED, INDEX_RESERVED = 0, 0xFF00

SEGMENT_LOAD, SEGMENT_DYNAMIC, SEGMENT_STACK = 1, 2, 0x6474E551
EXECUTE, WRITE, READ = 1, 2, 4

DYNAMIC_NULL, DYNAMIC_HASH, DYNAMIC_STRINGS, DYNAMIC_SYMBOLS = 0, 4, 5, 6
DYNAMIC_STRINGS_SIZE, DYNAMIC_SYMBOL_SIZE = 10, 11


class LinkError(Exception):
    """An object that cannot become a freestanding shared object; a defect of the code generator."""


@dataclass(frozen=True)
class Section:
    name: str
    kind: int
    flags: int
    data: bytes
    link: int
    info: int
    alignment: int


@dataclass(frozen=True)
class Symbol:
    name: str
    value: int
    size: int
    binding: int
    kind: int
    section: int


@dataclass(frozen=True)
class Relocation:
    offset: int
    kind: int
    symbol: int
    addend: int


@dataclass(frozen=True)
class RelocatableObject:
    machine: int
    sections: tuple[Section, ...]
    symbols: tuple[Symbol, ...]

    def relocations(self, target: int) -> Iterable[Relocation]:
        """Those that apply to section number `target`."""
        for section in self.sections:
            if section.kind == SECTION_REL and section.info == target:
                raise LinkError(f"expected relocations with addends, found {section.name}")
            if section.kind == SECTION_RELA and section.info == target:
                for offset, info, addend in RELOCATION.iter_unpack(section.data):
                    yield Relocation(offset, info & 0xFFFFFFFF, info >> 32, addend)


def read_relocatable(data: bytes) -> RelocatableObject:
    header = FILE_HEADER.unpack_from(data)
    identification, kind, machine, section_table, count, names_index = (
        header[0], header[1], header[2], header[6], header[12], header[13],
    )  # fmt: skip
    if identification[:6] != IDENTIFICATION[:6] or kind != TYPE_RELOCATABLE or machine not in MACHINE_NAMES:
        raise LinkError("expected a relocatable little-endian ELF64 object for x86_64 or aarch64")
    raw = [SECTION_HEADER.unpack_from(data, section_table + index * SECTION_HEADER.size) for index in range(count)]
    names = _slice(data, raw[names_index][4], raw[names_index][5])
    sections = tuple(
        Section(
            name=string_at(names, name),
            kind=kind,
            flags=flags,
            data=bytes(size) if kind == SECTION_NO_BITS else _slice(data, offset, size),
            link=link,
            info=info,
            alignment=max(alignment, 1),
        )
        for name, kind, flags, _address, offset, size, link, info, alignment, _entry in raw
    )
    return RelocatableObject(machine, sections, tuple(_read_symbols(sections)))


def string_at(table: bytes, offset: int) -> str:
    return table[offset : table.index(b"\0", offset)].decode()


class StringTable:
    """Collects names, each once, and gives their offsets."""

    def __init__(self) -> None:
        self.data = bytearray(b"\0")
        self._offsets: dict[str, int] = {"": 0}

    def add(self, name: str) -> int:
        if name not in self._offsets:
            self._offsets[name] = len(self.data)
            self.data += name.encode() + b"\0"
        return self._offsets[name]


def pack_symbol(name: int, binding: int, kind: int, section: int, value: int, size: int) -> bytes:
    return SYMBOL.pack(name, binding << 4 | kind, 0, section, value, size)


def pack_hash_table(names: list[str]) -> bytes:
    """The System V hash section of a dynamic symbol table that holds the null symbol and then `names`."""
    bucket_count = max(1, len(names))
    buckets, chain = [0] * bucket_count, [0] * (len(names) + 1)
    for index, name in enumerate(names, start=1):
        bucket = _hash_name(name) % bucket_count
        chain[index], buckets[bucket] = buckets[bucket], index
    return struct.pack(f"<{2 + len(buckets) + len(chain)}I", len(buckets), len(chain), *buckets, *chain)


def _hash_name(name: str) -> int:
    value = 0
    for byte in name.encode():
        value = (value << 4) + byte
        high = value & 0xF0000000
        value = (value ^ high >> 24) & ~high & 0xFFFFFFFF
    return value


def _read_symbols(sections: tuple[Section, ...]) -> Iterable[Symbol]:
    for section in sections:
        if section.kind == SECTION_SYMBOLS:
            names = sections[section.link].data
            for name, info, _other, index, value, size in SYMBOL.iter_unpack(section.data):
                yield Symbol(string_at(names, name), value, size, info >> 4, info & 15, index)


def _slice(data: bytes, offset: int, size: int) -> bytes:
    if offset + size > len(data):
        raise LinkError(f"expected {size} bytes at offset {offset}, but the object has {len(data)}")
    return data[offset : offset + size]
