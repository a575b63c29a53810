"""How long x86-64 instructions are, for those that compilers make of arithmetic; every other one is refused.

The code of a package is decoded from its first byte, each instruction starting where the one before ends. A direct
branch into the middle of an instruction is refused as well, so that what was decoded is what runs.
"""

from __future__ import annotations

LONGEST_INSTRUCTION = 15

_PREFIXES = frozenset(
    b"\x26\x2e\x36\x3e\x66\x67\xf0\xf2\xf3"
)  # without fs and gs: generated code has no thread-local data

# What follows the opcode, per opcode.
_REFUSED, _PLAIN, _BYTE, _WORD, _NATIVE, _MOVE, _ENTER, _MODRM, _MODRM_BYTE, _MODRM_NATIVE = range(10)
_BRANCH_BYTE, _BRANCH_NATIVE, _GROUP, _ESCAPE, _VEX2, _VEX3, _EVEX = range(10, 17)
_WITH_MODRM = frozenset((_MODRM, _MODRM_BYTE, _MODRM_NATIVE, _GROUP))


class UnknownInstruction(Exception):
    """An instruction that arithmetic does not need, or none at all."""

    def __init__(self, offset: int) -> None:
        super().__init__(offset)
        self.offset = offset


def check_instructions(code: bytes) -> bytearray:
    """Decodes all of `code`; returns a mark per byte, 1 where an instruction starts.

    Raises UnknownInstruction at the first one that is refused: system calls, interrupts, input and output, far
    branches, segment registers, whatever is privileged or not in the tables below; and at a direct branch that does not
    lead to the start of an instruction.
    """
    starts = bytearray(len(code))
    branches: list[tuple[int, int]] = []
    padded = code + bytes(LONGEST_INSTRUCTION + 1)
    position, end = 0, len(code)
    one_byte, modrm_lengths = _ONE_BYTE, _MODRM_LENGTHS
    while position < end:
        starts[position] = 1
        at = position
        opcode = padded[at]
        narrow = False
        while opcode in _PREFIXES:
            narrow = narrow or opcode == 0x66
            at += 1
            if at - position >= LONGEST_INSTRUCTION:
                raise UnknownInstruction(position)
            opcode = padded[at]
        wide = False
        if 0x40 <= opcode <= 0x4F:
            wide = opcode >= 0x48
            at += 1
            opcode = padded[at]
        at += 1
        kind = one_byte[opcode]
        if kind >= _VEX2:
            if padded[at - 2] in range(0x40, 0x50) and at - 2 >= position:
                raise UnknownInstruction(position)
            opcode, kind, at = _decode_vector_prefix(padded, kind, at, position)
        elif kind == _ESCAPE:
            opcode, kind, at = _decode_escape(padded, at, position)
        if kind in _WITH_MODRM:
            modrm = padded[at]
            if kind == _GROUP:
                kind = _decode_group(opcode, modrm, padded[position:at], position)
            # An index byte whose base is 5 carries four bytes of displacement if the mode is 0.
            at += modrm_lengths[modrm] + (4 if modrm & 0xC7 == 4 and padded[at + 1] & 7 == 5 else 0)
            if kind == _MODRM_BYTE:
                at += 1
            elif kind == _MODRM_NATIVE:
                at += 2 if narrow and not wide else 4
        elif kind == _PLAIN:
            pass
        elif kind == _BRANCH_BYTE:
            at += 1
            branches.append((position, at + _signed(padded, at, 1)))
        elif kind == _BRANCH_NATIVE:
            if narrow:  # AMD and Intel disagree about its length
                raise UnknownInstruction(position)
            at += 4
            branches.append((position, at + _signed(padded, at, 4)))
        elif kind == _BYTE:
            at += 1
        elif kind == _WORD:
            at += 2
        elif kind == _NATIVE:
            at += 2 if narrow and not wide else 4
        elif kind == _MOVE:
            at += 8 if wide else 2 if narrow else 4
        elif kind == _ENTER:
            at += 3
        else:
            raise UnknownInstruction(position)
        if at - position > LONGEST_INSTRUCTION or at > end:
            raise UnknownInstruction(position)
        position = at
    for origin, target in branches:
        if not 0 <= target < end or not starts[target]:
            raise UnknownInstruction(origin)
    return starts


def _signed(code: bytes, end: int, size: int) -> int:
    return int.from_bytes(code[end - size : end], "little", signed=True)


def _decode_escape(code: bytes, at: int, start: int) -> tuple[int, int, int]:
    opcode = code[at]
    if opcode == 0x38:
        opcode = code[at + 1]
        if 0x80 <= opcode <= 0x8F:  # virtual machines
            raise UnknownInstruction(start)
        return opcode, _MODRM, at + 2
    if opcode == 0x3A:
        return code[at + 1], _MODRM_BYTE, at + 2
    # In the tables a group of this map is told from one of the one-byte map by 0x100.
    return opcode | 0x100, _TWO_BYTE[opcode], at + 1


def _decode_vector_prefix(code: bytes, kind: int, at: int, start: int) -> tuple[int, int, int]:
    if kind == _VEX2:
        opcode_map, at = 1, at + 1
    elif kind == _VEX3:
        opcode_map, at = code[at] & 0x1F, at + 2
    else:
        # The bits that are fixed before APX and AVX10: anything else is another instruction set.
        if code[at] & 0x08 or not code[at + 1] & 0x04:
            raise UnknownInstruction(start)
        opcode_map, at = code[at] & 0x07, at + 3
    opcode = code[at]
    if opcode_map == 1 and opcode >= 0x10:
        if opcode == 0x77 and kind != _EVEX:
            return opcode, _PLAIN, at + 1
        return opcode, _MODRM_BYTE if opcode in _BYTE_IN_MAP_1 else _MODRM, at + 1
    if opcode_map == 2:
        return opcode, _MODRM, at + 1
    if opcode_map == 3:
        return opcode, _MODRM_BYTE, at + 1
    raise UnknownInstruction(start)


def _decode_group(opcode: int, modrm: int, prefixes: bytes, start: int) -> int:
    """Opcodes whose meaning depends on the middle field of the byte after them."""
    member, is_register = modrm >> 3 & 7, modrm >= 0xC0
    if opcode == 0x8F and member == 0:  # pop; the others are AMD's XOP
        return _MODRM
    if opcode in (0xC6, 0xC7) and member == 0:  # mov; the others are transactions
        return _MODRM_BYTE if opcode == 0xC6 else _MODRM_NATIVE
    if opcode in (0xF6, 0xF7):  # test has an immediate
        return (_MODRM_BYTE if opcode == 0xF6 else _MODRM_NATIVE) if member < 2 else _MODRM
    if opcode == 0xFE and member < 2:
        return _MODRM
    if opcode == 0xFF and member in (0, 1, 2, 4, 6):  # not the far call and jump
        return _MODRM
    if opcode == 0x1AE and (
        0xF3 not in prefixes or not is_register
    ):  # fences and control words, not the bases of segments
        return _MODRM
    if opcode == 0x1C7 and member == 1 and not is_register:  # cmpxchg8b and cmpxchg16b
        return _MODRM
    raise UnknownInstruction(start)


def _fill(table: bytearray, kind: int, *ranges: tuple[int, int]) -> None:
    for first, last in ranges:
        for opcode in range(first, last + 1):
            table[opcode] = kind


def _one_byte_table() -> bytes:
    table = bytearray(256)
    for base in range(0x00, 0x40, 8):  # add, or, adc, sbb, and, sub, xor, cmp
        _fill(table, _MODRM, (base, base + 3))
        table[base + 4], table[base + 5] = _BYTE, _NATIVE
    _fill(table, _PLAIN, (0x50, 0x5F), (0x90, 0x99), (0xA4, 0xA7), (0xAA, 0xAF), (0xC3, 0xC3), (0xC9, 0xC9))
    _fill(table, _PLAIN, (0xF5, 0xF5), (0xF8, 0xF9), (0xFC, 0xFD))
    _fill(table, _MODRM, (0x63, 0x63), (0x84, 0x8B), (0x8D, 0x8D), (0xD0, 0xD3), (0xD8, 0xDF))
    _fill(table, _MODRM_BYTE, (0x6B, 0x6B), (0x80, 0x80), (0x83, 0x83), (0xC0, 0xC1))
    _fill(table, _MODRM_NATIVE, (0x69, 0x69), (0x81, 0x81))
    _fill(table, _BYTE, (0x6A, 0x6A), (0xA8, 0xA8), (0xB0, 0xB7))
    _fill(table, _NATIVE, (0x68, 0x68), (0xA9, 0xA9))
    _fill(table, _MOVE, (0xB8, 0xBF))
    _fill(table, _WORD, (0xC2, 0xC2))
    _fill(table, _ENTER, (0xC8, 0xC8))
    _fill(table, _BRANCH_BYTE, (0x70, 0x7F), (0xE0, 0xE3), (0xEB, 0xEB))
    _fill(table, _BRANCH_NATIVE, (0xE8, 0xE9))
    _fill(table, _GROUP, (0x8F, 0x8F), (0xC6, 0xC7), (0xF6, 0xF7), (0xFE, 0xFF))
    table[0x0F], table[0xC5], table[0xC4], table[0x62] = _ESCAPE, _VEX2, _VEX3, _EVEX
    return bytes(table)


def _two_byte_table() -> bytes:
    table = bytearray(256)
    _fill(
        table, _MODRM, (0x0D, 0x0D), (0x10, 0x1F), (0x28, 0x2F), (0x40, 0x6F), (0x74, 0x76), (0x7C, 0x7F), (0x90, 0x9F)
    )
    _fill(
        table, _MODRM, (0xA3, 0xA3), (0xA5, 0xA5), (0xAB, 0xAB), (0xAD, 0xAD), (0xAF, 0xAF), (0xB0, 0xB1), (0xB3, 0xB3)
    )
    _fill(table, _MODRM, (0xB6, 0xB8), (0xBB, 0xC1), (0xC3, 0xC3), (0xD0, 0xFE))
    _fill(table, _MODRM_BYTE, (0x70, 0x73), (0xA4, 0xA4), (0xAC, 0xAC), (0xBA, 0xBA), (0xC2, 0xC2), (0xC4, 0xC6))
    # 0x31 reads the time stamp, for profiles.
    _fill(table, _PLAIN, (0x0B, 0x0B), (0x31, 0x31), (0x77, 0x77), (0xC8, 0xCF))
    _fill(table, _BRANCH_NATIVE, (0x80, 0x8F))
    _fill(table, _GROUP, (0xAE, 0xAE), (0xC7, 0xC7))
    return bytes(table)


def _modrm_length(modrm: int) -> int:
    mode, base = modrm >> 6, modrm & 7
    if mode == 3:
        return 1
    displacement = (4 if base == 5 else 0, 1, 4)[mode]
    return 1 + displacement + (1 if base == 4 else 0)


_ONE_BYTE = _one_byte_table()
_TWO_BYTE = _two_byte_table()
_MODRM_LENGTHS = bytes(_modrm_length(modrm) for modrm in range(256))
_BYTE_IN_MAP_1 = frozenset((0x70, 0x71, 0x72, 0x73, 0xC2, 0xC4, 0xC5, 0xC6))
