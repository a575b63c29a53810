"""Links relocatable objects into one freestanding shared object: two segments, nothing to relocate, nothing writable.

The file is its own memory image (every address equals its offset): headers, tables and constants, readable; then, from
the next page on, code, readable and executable. A local symbol table follows, unmapped, for profilers and
disassemblers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tessera_compiler.targets.cpu import elf_format as elf
from tessera_compiler.targets.cpu.elf_format import LinkError, RelocatableObject, Section, StringTable
from tessera_compiler.targets.cpu.elf_relocations import apply_relocation

# Where code starts. Some aarch64 kernels have pages of 64 KiB, and two protections cannot share a page.
_PAGE_BYTES = {elf.MACHINE_X86_64: 4096, elf.MACHINE_AARCH64: 65536}
# Code is padded with one-instruction fillers, so that a disassembly from its start never loses step.
_FILLER = {elf.MACHINE_X86_64: b"\x90", elf.MACHINE_AARCH64: b"\x1f\x20\x03\xd5"}
_LINE_BYTES = 64


@dataclass
class _Output:
    """One section of the shared object."""

    name: str
    kind: int
    flags: int
    data: bytearray
    alignment: int = 8
    link: int = 0
    info: int = 0
    entry_bytes: int = 0
    address: int = 0
    pieces: list[tuple[int, int, int]] = field(default_factory=list)
    """(object, section of the object, offset here)"""


def link(objects: Sequence[bytes], exports: Sequence[str]) -> bytes:
    """The shared object whose dynamic symbols are exactly `exports`. Equal input gives equal bytes.

    Raises LinkError for a symbol that is not defined, for writable or thread-local data, and for absolute addresses.
    """
    inputs = [elf.read_relocatable(data) for data in objects]
    machines = {entry.machine for entry in inputs}
    if len(machines) != 1:
        raise LinkError(
            f"expected objects for one machine, found {sorted(elf.MACHINE_NAMES[each] for each in machines)}"
        )
    machine = machines.pop()
    constants = _Output(".rodata", elf.SECTION_PROGRAM_BITS, elf.FLAG_ALLOCATED, bytearray(), _LINE_BYTES)
    code = _Output(
        ".text", elf.SECTION_PROGRAM_BITS, elf.FLAG_ALLOCATED | elf.FLAG_EXECUTABLE, bytearray(), _PAGE_BYTES[machine]
    )
    for number, entry in enumerate(inputs):
        for index, section in enumerate(entry.sections):
            if _is_kept(section):
                is_code = section.flags & elf.FLAG_EXECUTABLE
                _append(code if is_code else constants, section, number, index, _FILLER[machine] if is_code else b"\0")
    return _write(machine, inputs, constants, code, sorted(exports))


def _is_kept(section: Section) -> bool:
    if not section.flags & elf.FLAG_ALLOCATED or not section.data:
        return False
    if section.kind == elf.SECTION_UNWIND or section.name == ".eh_frame":
        return False  # nothing here throws, and unwinding through generated code is not offered
    if section.flags & (elf.FLAG_WRITE | elf.FLAG_THREAD_LOCAL):
        raise LinkError(f"expected only code and constants, found the writable section {section.name}")
    if section.kind != elf.SECTION_PROGRAM_BITS:
        raise LinkError(f"expected only code and constants, found {section.name} of kind {section.kind}")
    return True


def _append(output: _Output, section: Section, number: int, index: int, filler: bytes) -> None:
    alignment = max(section.alignment, len(filler))
    _pad(output.data, alignment, filler)
    output.alignment = max(output.alignment, alignment)
    output.pieces.append((number, index, len(output.data)))
    output.data += section.data


def _pad(data: bytearray, alignment: int, filler: bytes = b"\0") -> None:
    data += filler * (-len(data) % alignment // len(filler))


def _write(
    machine: int, inputs: Sequence[RelocatableObject], constants: _Output, code: _Output, exports: list[str]
) -> bytes:
    names = StringTable()
    name_offsets = [names.add(name) for name in exports]
    symbols_size = elf.SYMBOL.size * (len(exports) + 1)
    dynamic_symbols = _Output(
        ".dynsym", elf.SECTION_DYNAMIC_SYMBOLS, elf.FLAG_ALLOCATED, bytearray(symbols_size), 8, 2, 1, elf.SYMBOL.size
    )
    dynamic_names = _Output(".dynstr", elf.SECTION_STRINGS, elf.FLAG_ALLOCATED, names.data, 1)
    hashes = _Output(".hash", elf.SECTION_HASH, elf.FLAG_ALLOCATED, bytearray(elf.pack_hash_table(exports)), 8, 1, 0, 4)
    dynamic = _Output(".dynamic", elf.SECTION_DYNAMIC, elf.FLAG_ALLOCATED, bytearray(6 * 16), 16, 2, 0, 16)
    mapped = [dynamic_symbols, dynamic_names, hashes, dynamic, constants, code]

    header_size = elf.FILE_HEADER.size + 4 * elf.PROGRAM_HEADER.size
    position = header_size
    for section in mapped:
        position += -position % section.alignment
        section.address = position
        position += len(section.data)
    image = bytearray(position)
    for section in mapped:
        image[section.address : section.address + len(section.data)] = section.data

    addresses = _place(inputs, (constants, code))
    globals_ = _define_globals(inputs, addresses)
    missing = [name for name in exports if name not in globals_]
    if missing:
        raise LinkError(f"expected the exported symbols {', '.join(missing)}, which no object defines")
    _relocate(machine, inputs, image, addresses, globals_)

    packed = bytearray(elf.SYMBOL.size)
    for name, offset in zip(exports, name_offsets, strict=True):
        address, size = globals_[name]
        packed += elf.pack_symbol(offset, elf.SYMBOL_GLOBAL, elf.SYMBOL_FUNCTION, 1 + mapped.index(code), address, size)
    image[dynamic_symbols.address : dynamic_symbols.address + len(packed)] = packed
    entries = (
        (elf.DYNAMIC_HASH, hashes.address),
        (elf.DYNAMIC_STRINGS, dynamic_names.address),
        (elf.DYNAMIC_SYMBOLS, dynamic_symbols.address),
        (elf.DYNAMIC_STRINGS_SIZE, len(names.data)),
        (elf.DYNAMIC_SYMBOL_SIZE, elf.SYMBOL.size),
        (elf.DYNAMIC_NULL, 0),
    )
    image[dynamic.address : dynamic.address + 96] = b"".join(elf.DYNAMIC_ENTRY.pack(*entry) for entry in entries)

    # The last page of code holds nothing but zeros after the code, so that all that is executable has been looked at.
    _pad(image, _PAGE_BYTES[machine])
    sections = mapped + _debug_sections(inputs, addresses, 1 + mapped.index(code), len(mapped))
    table = _append_sections(image, sections, len(mapped))
    page, read_end = _PAGE_BYTES[machine], constants.address + len(constants.data)
    segments = (
        (elf.SEGMENT_LOAD, elf.READ, 0, 0, 0, read_end, read_end, page),
        (elf.SEGMENT_LOAD, elf.READ | elf.EXECUTE, *(code.address,) * 3, *(len(code.data),) * 2, page),
        (elf.SEGMENT_DYNAMIC, elf.READ, *(dynamic.address,) * 3, 96, 96, 16),
        (elf.SEGMENT_STACK, elf.READ | elf.WRITE, 0, 0, 0, 0, 0, 16),
    )
    header = elf.FILE_HEADER.pack(
        elf.IDENTIFICATION, elf.TYPE_SHARED, machine, 1, 0, elf.FILE_HEADER.size, table, 0,
        elf.FILE_HEADER.size, elf.PROGRAM_HEADER.size, 4, elf.SECTION_HEADER.size, len(sections) + 2, len(sections) + 1,
    )  # fmt: skip
    image[:header_size] = header + b"".join(elf.PROGRAM_HEADER.pack(*segment) for segment in segments)
    return bytes(image)


def _place(inputs: Sequence[RelocatableObject], outputs: Sequence[_Output]) -> dict[tuple[int, int], int]:
    """(object, section) → address."""
    return {(number, index): output.address + at for output in outputs for number, index, at in output.pieces}


def _define_globals(
    inputs: Sequence[RelocatableObject], addresses: dict[tuple[int, int], int]
) -> dict[str, tuple[int, int]]:
    """Name → (address, size), and a check that nothing is left undefined."""
    defined: dict[str, tuple[int, int]] = {}
    wanted: set[str] = set()
    for number, entry in enumerate(inputs):
        for symbol in entry.symbols:
            if symbol.binding not in (elf.SYMBOL_GLOBAL, elf.SYMBOL_WEAK):
                continue
            if symbol.section == elf.INDEX_UNDEFINED:
                wanted.add(symbol.name)
                continue
            if symbol.name in defined:
                raise LinkError(f"expected one definition of {symbol.name}, found two")
            if (number, symbol.section) not in addresses:
                raise LinkError(f"expected {symbol.name} to be code or a constant")
            defined[symbol.name] = (addresses[number, symbol.section] + symbol.value, symbol.size)
    undefined = sorted(wanted - defined.keys())
    if undefined:
        raise LinkError(f"expected every symbol to be defined, found undefined: {', '.join(undefined)}")
    return defined


def _relocate(
    machine: int,
    inputs: Sequence[RelocatableObject],
    image: bytearray,
    addresses: dict[tuple[int, int], int],
    globals_: dict[str, tuple[int, int]],
) -> None:
    for (number, index), start in sorted(addresses.items()):
        entry = inputs[number]
        for relocation in entry.relocations(index):
            symbol = entry.symbols[relocation.symbol]
            if symbol.name in globals_ and symbol.binding != elf.SYMBOL_LOCAL:
                address = globals_[symbol.name][0]
            elif (number, symbol.section) in addresses:
                address = addresses[number, symbol.section] + symbol.value
            else:
                raise LinkError(f"expected {symbol.name or 'a symbol'} to lie in code or constants")
            apply_relocation(machine, relocation.kind, image, start + relocation.offset, address, relocation.addend)


def _debug_sections(
    inputs: Sequence[RelocatableObject], addresses: dict[tuple[int, int], int], code_index: int, mapped: int
) -> list[_Output]:
    """All functions by name, for profilers: not mapped, and not needed to run."""
    names, packed = StringTable(), bytearray(elf.SYMBOL.size)
    for number, entry in enumerate(inputs):
        for symbol in entry.symbols:
            if symbol.kind == elf.SYMBOL_FUNCTION and (number, symbol.section) in addresses:
                address = addresses[number, symbol.section] + symbol.value
                name = names.add(symbol.name)
                packed += elf.pack_symbol(name, elf.SYMBOL_LOCAL, symbol.kind, code_index, address, symbol.size)
    count = len(packed) // elf.SYMBOL.size
    return [
        _Output(".symtab", elf.SECTION_SYMBOLS, 0, packed, 8, mapped + 2, count, elf.SYMBOL.size),
        _Output(".strtab", elf.SECTION_STRINGS, 0, names.data, 1),
    ]


def _append_sections(image: bytearray, sections: list[_Output], mapped: int) -> int:
    """Adds what is not mapped, then the section table; returns where the table is."""
    names = StringTable()
    name_offsets = [names.add(section.name) for section in sections]
    name_offsets.append(names.add(".shstrtab"))
    name_section = _Output(".shstrtab", elf.SECTION_STRINGS, 0, names.data, 1)
    for section in [*sections[mapped:], name_section]:
        _pad(image, section.alignment)
        section.address = len(image)
        image += section.data
    _pad(image, 8)
    table = len(image)
    image += bytes(elf.SECTION_HEADER.size)
    for offset, section in zip(name_offsets, [*sections, name_section], strict=True):
        address = section.address if section.flags & elf.FLAG_ALLOCATED else 0
        image += elf.SECTION_HEADER.pack(
            offset, section.kind, section.flags, address, section.address, len(section.data),
            section.link, section.info, section.alignment, section.entry_bytes,
        )  # fmt: skip
    return table
