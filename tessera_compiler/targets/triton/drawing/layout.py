"""Where the kernels that draw leave what they hand on, and the numbers in their sources."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

CHUNK = 2048
"""Tokens of the vocabulary that one block looks at."""

LIST_LENGTH = 2048
"""The most tokens of a row that are listed, of those of which it is not known yet whether the filters keep them; with
more, the row is read."""

LISTS = 1024
"""Rows of a step that have room for a list; the others are read whole, too."""

BINS = 2048
"""In which such tokens are counted by their weights where they are too many for the list."""

LEVELS, LEVELS_PER_UNIT, DEEPEST = 64, 2.0, 31.25
"""Tokens are counted by how far below the row's highest they are, in steps of half a unit of the temperature. Below the
deepest their weights are zero."""

WEIGHT_BITS = 44
"""The highest logit weighs 2^44, a little less where the sum over a vocabulary would leave 63 bits."""

MOST_TOP, TOP_PADDED = 20, 32
NOBODY = 2**31 - 1
LINE = 64
"""Bytes that rows of buffers and seats are whole multiples of."""


def _rounded(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


@dataclass(frozen=True)
class DrawingLayout:
    """Everything that depends on the vocabulary. Strides count elements."""

    vocab_size: int
    logit_stride: int
    """From a row of logits to the next."""
    chunk: int = CHUNK
    list_length: int = LIST_LENGTH
    """At most `chunk`: one block holds a list."""
    lists: int = LISTS
    bins: int = BINS

    @property
    def chunks(self) -> int:
        return -(-self.vocab_size // self.chunk)

    @property
    def padded(self) -> int:
        """The chunks of a row as Triton counts them."""
        return 1 << (self.chunks - 1).bit_length()

    @property
    def unit(self) -> int:
        """What the highest logit weighs."""
        return 1 << min(WEIGHT_BITS, 62 - self.token_bits)

    @property
    def peak_stride(self) -> int:
        """Float32 of a row: each chunk's highest logit as the draw changes it and as it was, and its likeliest."""
        return _rounded((2 + TOP_PADDED) * self.padded, LINE // 4)

    @property
    def word_stride(self) -> int:
        """Int32 of a row: for each chunk which token is the highest, which are the likeliest, how many tokens each
        level has, how many lie above the list, and above the bins; which filters remove anything, how wide the bins
        are, how long the list is; and the bins."""
        return _rounded(self._scalars + 3 + self.bins, LINE // 4)

    @property
    def sum_stride(self) -> int:
        """Int64 of a row: for each chunk the sum of weights as the draw makes them, without it, of what lies above the
        list, and above the bins; and the weights between which levels and list lie."""
        return _rounded(4 * self.padded + 4, LINE // 8)

    @property
    def _scalars(self) -> int:
        """Where what is one for a row begins among the int32."""
        return (3 + TOP_PADDED + LEVELS) * self.padded

    @property
    def token_bits(self) -> int:
        """Of a key, below the weight."""
        return (self.vocab_size - 1).bit_length()

    @property
    def seats(self) -> dict[str, int]:
        """Bytes of a seat."""
        return {
            "feedback": LINE,
            "token_counts": _rounded(2 * self.vocab_size, LINE),
            "bias": 8 * 1024,
            "bitmask": _rounded(4 * -(-self.vocab_size // 32), LINE),
        }

    @property
    def constants(self) -> Mapping[str, str]:
        """The numbers of the sources, by the word that stands for each."""
        padded, seats, scalars = self.padded, self.seats, self._scalars
        numbers: dict[str, int | float] = {
            "VOCABULARY": self.vocab_size,
            "LOGIT_STRIDE": self.logit_stride,
            "CHUNK": self.chunk,
            "CHUNKS": self.chunks,
            "CHUNKS_PADDED": padded,
            "LIST_LENGTH": self.list_length,
            "LISTS": self.lists,
            "BINS": self.bins,
            "TOKEN_BITS": self.token_bits,
            "LAST_TOKEN": 2**self.token_bits - 1,
            "ACTIVE_TOP_K": 1,
            "ACTIVE_TOP_P": 2,
            "UNIT": self.unit,
            "UNIT_FLOAT": float(self.unit),
            "LEVELS": LEVELS,
            "LEVELS_PER_UNIT": LEVELS_PER_UNIT,
            "DEEPEST": DEEPEST,
            "PEAK_STRIDE": self.peak_stride,
            "RAW_PEAKS": padded,
            "TOP_VALUES": 2 * padded,
            "WORD_STRIDE": self.word_stride,
            "HIGHEST": 0,
            "ABOVE_COUNTS": padded,
            "TOP_IDS": 2 * padded,
            "COUNTS": (2 + TOP_PADDED) * padded,
            "WIDE_COUNTS": (2 + TOP_PADDED + LEVELS) * padded,
            "ACTIVE": scalars,
            "SHIFT": scalars + 1,
            "LENGTH": scalars + 2,
            "FINE": scalars + 3,
            "SUM_STRIDE": self.sum_stride,
            "RAW_SUMS": padded,
            "ABOVE_SUMS": 2 * padded,
            "WIDE_SUMS": 3 * padded,
            "LOW": 4 * padded,
            "HIGH": 4 * padded + 1,
            "BAND_LOW": 4 * padded + 2,
            "BAND_HIGH": 4 * padded + 3,
            "FEEDBACK_STRIDE": seats["feedback"] // 4,
            "COUNT_STRIDE": seats["token_counts"] // 2,
            "BIAS_STRIDE": seats["bias"] // 4,
            "BITMASK_STRIDE": seats["bitmask"] // 4,
            "FLAG_GREEDY": 1,
            "FLAG_PENALTIES": 2,
            "FLAG_BIAS": 4,
            "FLAG_BITMASK": 8,
            "FLAG_LOGPROBS": 16,
            "MOST_COUNTED": 32767,
            "MOST_TOP": MOST_TOP,
            "TOP_PADDED": TOP_PADDED,
            "LOGPROB_WORDS": 64,
            "NOBODY": NOBODY,
        }
        return {name: repr(number) for name, number in numbers.items()}
