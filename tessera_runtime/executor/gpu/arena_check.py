"""Checks that the launches of a GPU program leave each other's values alone, whatever the sizes of the step."""

from __future__ import annotations

from tessera_runtime.errors import ProgramInvalid
from tessera_runtime.executor.gpu.grid import StepSizes
from tessera_runtime.executor.gpu.program import GpuProgram, Launch


def check_arena(program: GpuProgram) -> str:
    """No buffer leaves the arena, is read before it is written, or shares bytes with another while both are needed.

    Raises `ProgramInvalid`; returns a sentence on what was seen.
    """
    for form in ("", *program.drawing):
        launches = (*program.launches, *program.drawing.get(form, ()))
        lifetimes = _lifetimes(program, launches)
        for tokens, rows in _shapes(program.limits.max_tokens):
            _check_places(program, lifetimes, tokens, rows)
    return f"{len(program.buffers)} buffers in {program.arena[1]} bytes per token"


def buffers_of(program: GpuProgram, launch: Launch) -> set[int]:
    """The buffers that a launch can reach."""
    return {argument.index for argument in launch.arguments if argument.kind == "buffer"}


def sizes_to_try(program: GpuProgram) -> list[StepSizes]:
    """Sizes at the corners of what steps can have."""
    cache = program.cache
    longest = -(-program.limits.max_model_len // cache.block_tokens)
    sizes = []
    for tokens, rows in _shapes(program.limits.max_tokens):
        for width in sorted({1, longest}):
            chunks = -(-width * cache.block_tokens // cache.chunk_tokens)
            sizes.append(StepSizes(tokens, rows, tokens + 1, width, 0, tokens, chunks))
            if tokens > 1:
                sizes.append(StepSizes(tokens, rows, 2, width, -(-tokens // cache.tile_tokens), 1, chunks))
    return sizes


def _shapes(most: int) -> list[tuple[int, int]]:
    return sorted({(tokens, rows) for tokens in (1, 2, most) for rows in (0, 1, tokens)})


def _lifetimes(program: GpuProgram, launches: tuple[Launch, ...]) -> dict[int, tuple[int, int]]:
    """First and last launch that names each buffer; the output lives until all is over."""
    lifetimes: dict[int, tuple[int, int]] = {}
    for number, launch in enumerate(launches):
        for index in sorted(buffers_of(program, launch)):
            if index not in lifetimes and index not in launch.writes:
                raise ProgramInvalid(
                    f"Launch {number} ({launch.group}) reads the buffer {index}, which nothing has written."
                )
            lifetimes[index] = (lifetimes.get(index, (number, number))[0], number)
    if program.output not in lifetimes:
        raise ProgramInvalid(f"No launch writes the output, buffer {program.output}.")
    lifetimes[program.output] = (lifetimes[program.output][0], len(launches))
    return lifetimes


def _check_places(program: GpuProgram, lifetimes: dict[int, tuple[int, int]], tokens: int, rows: int) -> None:
    total = program.arena_bytes(tokens, rows)
    placed = []
    for index in lifetimes:
        start, size = program.buffers[index].place(tokens, rows)
        if start + size > total:
            raise ProgramInvalid(f"The buffer {index} leaves the arena in a step of {tokens} tokens and {rows} rows.")
        if size:
            placed.append((start, start + size, index))
    live: list[tuple[int, int]] = []
    for start, end, index in sorted(placed):
        live = [(other_end, other) for other_end, other in live if other_end > start]
        first, last = lifetimes[index]
        for _, other in live:
            if lifetimes[other][0] <= last and first <= lifetimes[other][1]:
                raise ProgramInvalid(f"The buffers {other} and {index} are alive together and overlap in memory.")
        live.append((end, index))
