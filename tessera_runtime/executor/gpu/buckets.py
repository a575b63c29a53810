"""Which sizes a step is padded to, so that few recorded graphs serve all steps.

A step that only decodes has one number, its tokens; the program says which are worth a graph. A mixed step has
several, each rounded up coarsely: what padding costs is small beside what recording many graphs would.
"""

from __future__ import annotations

from dataclasses import dataclass

from tessera_runtime.executor.gpu.grid import StepSizes

_FINE, _COARSE, _COARSE_FROM = 64, 128, 512
"""Rows that a step is rounded up to a multiple of; the coarse one is what blocks of products have, of many rows."""
_LEAST_WIDTH = 8
"""Entries of a block table."""


@dataclass(frozen=True)
class BucketRule:
    """What the rounding depends on; the same for all steps of an executor."""

    graph_tokens: tuple[int, ...]
    max_tokens: int
    max_width: int
    """Entries of a block table that hold the longest sequence."""
    block_tokens: int
    chunk_tokens: int

    def padded(self, exact: StepSizes) -> StepSizes:
        """The sizes to run a step of `exact` sizes with; the same for many."""
        decodes = exact.tiles == 0 and exact.logit_rows == exact.tokens == exact.singles
        if decodes:
            tokens = rows = singles = self._decoding_tokens(exact.tokens)
            tiles = 0
        else:
            step = _FINE if exact.tokens <= _COARSE_FROM else _COARSE
            tokens = max(exact.tokens, min(_round_up(exact.tokens, step), self.max_tokens))
            rows = min(_power(max(exact.logit_rows, exact.table_rows, exact.singles)), tokens)
            rows = max(rows, exact.logit_rows, exact.singles)
            singles = rows if exact.singles else 0
            tiles = _power(exact.tiles) if exact.tiles else 0
        width = self._width(exact.table_width)
        return StepSizes(
            tokens=tokens,
            logit_rows=rows if exact.logit_rows else 0,
            table_rows=max(rows, exact.table_rows) + 1,
            table_width=width,
            tiles=tiles,
            singles=singles,
            chunks=-(-width * self.block_tokens // self.chunk_tokens),
        )

    def frequent(self, most_tokens: int) -> list[StepSizes]:
        """The decoding steps that are worth preparing before any comes, the most frequent first."""
        sizes = [
            self.padded(StepSizes(tokens, tokens, tokens, _LEAST_WIDTH, 0, tokens, 1))
            for tokens in self.graph_tokens
            if tokens <= most_tokens
        ]
        return list(dict.fromkeys(sizes))

    def _decoding_tokens(self, tokens: int) -> int:
        for candidate in sorted(self.graph_tokens):
            if tokens <= candidate <= self.max_tokens:
                return candidate
        return max(tokens, min(_round_up(tokens, _FINE), self.max_tokens))

    def _width(self, width: int) -> int:
        """A power of two, or the longest there is."""
        return max(width, min(max(_power(width), _LEAST_WIDTH), self.max_width))


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _power(size: int) -> int:
    return 1 << max(0, size - 1).bit_length()
