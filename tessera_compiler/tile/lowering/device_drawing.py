"""The kernels that draw the highest logit of each row on a device: one looks at chunks of the vocabulary side by side,
one takes the highest of what it has found. Nothing depends on other rows."""

from __future__ import annotations

import math

from xdsl.ir import SSAValue

from tessera_compiler.tile import dialect as tile
from tessera_compiler.tile.builder import KernelBuilder
from tessera_compiler.tile.lowering.device_context import integers
from tessera_compiler.tile.types import buffer_type

DRAW_WORDS = 16
"""Int32 of a row of the input `draws`; the first is the seat."""

NOBODY = 2**31 - 1
NO_TOKEN = -1


def lower_highest_of_chunks(
    symbol: str, vocab_size: int, logit_stride: int, peak_stride: int, word_stride: int, chunk: int
) -> tile.KernelOp:
    """For each chunk of each row its highest logit, and the first token that has it: infinity if one is not a number.

    Buffers: logits, draws, peaks, words. The last chunk begins earlier where the vocabulary is no multiple: what two
    chunks see makes no difference to the highest of all.
    """
    size = min(chunk, vocab_size)
    chunks = -(-vocab_size // size)
    b = KernelBuilder(
        symbol,
        [chunks, "L"],
        [
            buffer_type([None, logit_stride], "f32"),
            integers(),
            buffer_type([None, peak_stride], "f32"),
            buffer_type([None, word_stride], "i32"),
        ],
    )
    logits, draws, peaks, words = b.buffers
    number, row = b.program_id(0), b.program_id(1)
    _, valid = _seat(b, draws, row)
    start = b.index("min", b.index("mul", number, size), vocab_size - size)
    x = b.load_block(logits, row, start, (1, size), count=valid, lane_step=1)
    known = b.compare("equal", x, x)
    # Compared with what is left out, the highest is the same on every target.
    highest = b.reduce("max", b.select(known, x, b.full(-math.inf)))
    tokens = b.iota(start, size)
    first = b.reduce("min", b.select(b.compare("equal", x, highest), tokens, b.full(NOBODY, element="i32")))
    strangers = b.reduce("max", b.select(known, b.full(0.0), b.full(1.0)))
    highest = b.select(b.compare("equal", strangers, b.full(1.0)), b.full(math.inf), highest)
    b.store_block(highest, peaks, row, number, count=valid, lane_step=1, row_step=1)
    b.store_block(first, words, row, number, count=valid, lane_step=1, row_step=1)
    return b.finish()


def lower_highest_of_rows(
    symbol: str, vocab_size: int, peak_stride: int, word_stride: int, feedback_words: int, chunk: int
) -> tile.KernelOp:
    """The token of each row, or -1 where the highest logit is not finite, into the ids and the seat's feedback.

    Buffers: draws, peaks, words, feedback, ids.
    """
    chunks = -(-vocab_size // min(chunk, vocab_size))
    b = KernelBuilder(
        symbol,
        ["L"],
        [
            integers(),
            buffer_type([None, peak_stride], "f32"),
            buffer_type([None, word_stride], "i32"),
            buffer_type([None, feedback_words], "i32"),
            buffer_type([None, 1], "i32"),
        ],
    )
    draws, peaks, words, feedback, ids = b.buffers
    row, zero = b.program_id(0), b.constant(0)
    seat, valid = _seat(b, draws, row)
    found = b.load_block(peaks, row, zero, (1, chunks), count=valid, lane_step=1)
    firsts = b.load_block(words, row, zero, (1, chunks), count=valid, lane_step=1)
    highest = b.reduce("max", found)
    token = b.reduce("min", b.select(b.compare("equal", found, highest), firsts, b.full(NOBODY, element="i32")))
    finite = b.binary(
        "and", b.compare("less", highest, b.full(math.inf)), b.compare("greater", highest, b.full(-math.inf))
    )
    token = b.select(finite, token, b.full(NO_TOKEN, element="i32"))
    b.store_block(token, ids, row, zero, count=valid, row_step=1, lane_step=1)
    b.store_block(token, feedback, seat, zero, count=valid, row_step=1, lane_step=1)
    return b.finish()


def _seat(b: KernelBuilder, draws: SSAValue, row: SSAValue) -> tuple[SSAValue, SSAValue]:
    """A row's seat, and 1; or 0 and 0 if nothing is drawn."""
    seat, zero = b.load_index(draws, b.index("mul", row, DRAW_WORDS)), b.constant(0)
    return b.index("max", seat, zero), b.index("max", b.index("min", b.index("add", seat, 1), 1), zero)
