"""Reads from a CUDA code object what its kernel takes: an ELF file whose `.nv.info` sections list attributes."""

from __future__ import annotations

import struct
from collections.abc import Iterator

_FRAME_SIZE, _REGISTERS = 0x11, 0x2F
_WITH_PAYLOAD = 0x04


def describe_cubin(code: bytes) -> dict[str, int]:
    """`registers` and `spilled_bytes` of a thread, and `code_bytes`, of a file with one kernel."""
    registers, frame, size = 0, 0, 0
    for name, content in _sections(code):
        if name.startswith(".text."):
            size += len(content)
        elif name == ".nv.info":
            for attribute, payload in _attributes(content):
                if attribute == _REGISTERS and len(payload) >= 8:
                    registers = max(registers, struct.unpack_from("<I", payload, 4)[0])
                elif attribute == _FRAME_SIZE and len(payload) >= 8:
                    frame = max(frame, struct.unpack_from("<I", payload, 4)[0])
    return {"registers": registers, "spilled_bytes": frame, "code_bytes": size}


def _sections(code: bytes) -> Iterator[tuple[str, bytes]]:
    start = struct.unpack_from("<Q", code, 40)[0]
    entry_size, count, names_index = struct.unpack_from("<HHH", code, 58)
    headers = [struct.unpack_from("<IIQQQQ", code, start + number * entry_size) for number in range(count)]
    names = code[headers[names_index][4] :][: headers[names_index][5]]
    for name, _, _, _, offset, size in headers:
        end = names.index(b"\0", name)
        yield names[name:end].decode(), code[offset : offset + size]


def _attributes(content: bytes) -> Iterator[tuple[int, bytes]]:
    place = 0
    while place + 4 <= len(content):
        form, attribute, value = struct.unpack_from("<BBH", content, place)
        place += 4
        payload = b""
        if form == _WITH_PAYLOAD:
            payload = content[place : place + value]
            place += value
        yield attribute, payload
