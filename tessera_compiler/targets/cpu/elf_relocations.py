"""How each relocation patches the code, per machine. Addresses are relative to the start of the shared object.

All of them are differences of addresses inside the object, so nothing is left for a loader to do.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from tessera_compiler.targets.cpu.elf_format import MACHINE_AARCH64, MACHINE_X86_64, LinkError


def apply_relocation(machine: int, kind: int, image: bytearray, place: int, symbol: int, addend: int) -> None:
    """Patches `image` at `place` so that it refers to `symbol + addend`."""
    patch = _PATCHES[machine].get(kind)
    if patch is None:
        raise LinkError(f"expected a relocation relative to the place, found kind {kind} at {place:#x}")
    patch(image, place, symbol, addend)


def _relative_32(image: bytearray, place: int, symbol: int, addend: int) -> None:
    struct.pack_into("<i", image, place, _fits(symbol + addend - place, 32, place))


def _relative_64(image: bytearray, place: int, symbol: int, addend: int) -> None:
    struct.pack_into("<q", image, place, symbol + addend - place)


def _x86_table_entry(image: bytearray, place: int, symbol: int, addend: int) -> None:
    """Turns a load from a global offset table, which does not exist here, into the address itself."""
    if image[place - 2] == 0x8B:  # mov register, [rip + x]  →  lea register, [rip + x]
        image[place - 2] = 0x8D
    elif image[place - 2 : place] == b"\xff\x15":  # call [rip + x]  →  addr32 call x
        image[place - 2 : place] = b"\x67\xe8"
    else:
        raise LinkError(
            f"expected mov or call at a table reference, found {image[place - 2 : place].hex()} at {place:#x}"
        )
    _relative_32(image, place, symbol, addend)


def _fits(value: int, bits: int, place: int) -> int:
    if not -(1 << bits - 1) <= value < 1 << bits - 1:
        raise LinkError(f"expected a distance of {bits} bits, found {value} at {place:#x}; the object is too large")
    return value


def _word(image: bytearray, place: int) -> int:
    return int.from_bytes(image[place : place + 4], "little")


def _field(image: bytearray, place: int, value: int, bits: int, shift: int) -> None:
    mask = (1 << bits) - 1 << shift
    struct.pack_into("<I", image, place, _word(image, place) & ~mask | value << shift & mask)


def _branch(bits: int, shift: int) -> Callable[[bytearray, int, int, int], None]:
    def patch(image: bytearray, place: int, symbol: int, addend: int) -> None:
        distance = symbol + addend - place
        if distance % 4:
            raise LinkError(f"expected a branch to a multiple of 4, found a distance of {distance} at {place:#x}")
        _field(image, place, _fits(distance, bits + 2, place) >> 2, bits, shift)

    return patch


def _set_address(image: bytearray, place: int, value: int) -> None:
    """The split immediate of `adr` and `adrp`."""
    _field(image, place, _fits(value, 21, place) & 3, 2, 29)
    _field(image, place, value >> 2, 19, 5)


def _address(image: bytearray, place: int, symbol: int, addend: int) -> None:
    _set_address(image, place, symbol + addend - place)


def _page(image: bytearray, place: int, symbol: int, addend: int) -> None:
    _set_address(image, place, (symbol + addend >> 12) - (place >> 12))


def _page_offset(scale: int) -> Callable[[bytearray, int, int, int], None]:
    """The low 12 bits of an address, counted in units of the access of 1 << scale bytes."""

    def patch(image: bytearray, place: int, symbol: int, addend: int) -> None:
        low = symbol + addend & 0xFFF
        if low & (1 << scale) - 1:
            raise LinkError(
                f"expected an address aligned to {1 << scale} bytes, found {symbol + addend:#x} at {place:#x}"
            )
        _field(image, place, low >> scale, 12, 10)

    return patch


def _aarch64_table_entry(image: bytearray, place: int, symbol: int, addend: int) -> None:
    """`ldr x, [x, table entry]` becomes `add x, x, low bits`: the entry would only have held the address."""
    load = _word(image, place)
    if load & 0xFFC00000 != 0xF9400000:
        raise LinkError(f"expected ldr at a table reference, found {load:#x} at {place:#x}")
    struct.pack_into("<I", image, place, 0x91000000 | load & 0x3FF)
    _page_offset(0)(image, place, symbol, addend)


_PATCHES: dict[int, dict[int, Callable[[bytearray, int, int, int], None]]] = {
    MACHINE_X86_64: {
        2: _relative_32,  # PC32
        4: _relative_32,  # PLT32
        9: _x86_table_entry,  # GOTPCREL
        24: _relative_64,  # PC64
        41: _x86_table_entry,  # GOTPCRELX
        42: _x86_table_entry,  # REX_GOTPCRELX
    },
    MACHINE_AARCH64: {
        260: _relative_64,  # PREL64
        261: _relative_32,  # PREL32
        274: _address,  # ADR_PREL_LO21
        275: _page,  # ADR_PREL_PG_HI21
        277: _page_offset(0),  # ADD_ABS_LO12_NC
        278: _page_offset(0),  # LDST8_ABS_LO12_NC
        279: _branch(14, 5),  # TSTBR14
        280: _branch(19, 5),  # CONDBR19
        282: _branch(26, 0),  # JUMP26
        283: _branch(26, 0),  # CALL26
        284: _page_offset(1),  # LDST16_ABS_LO12_NC
        285: _page_offset(2),  # LDST32_ABS_LO12_NC
        286: _page_offset(3),  # LDST64_ABS_LO12_NC
        299: _page_offset(4),  # LDST128_ABS_LO12_NC
        311: _page,  # ADR_GOT_PAGE
        312: _aarch64_table_entry,  # LD64_GOT_LO12_NC
        314: _relative_32,  # PLT32
    },
}
