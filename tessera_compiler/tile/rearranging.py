"""The ops of Tile IR that take a tile apart or turn it, as a device's products want their operands."""

from __future__ import annotations

import numpy as np
from xdsl.dialects.builtin import IntegerAttr, VectorType
from xdsl.ir import SSAValue
from xdsl.irdl import attr_def, irdl_op_definition, operand_def, result_def
from xdsl.utils.exceptions import VerifyException

from tessera_compiler.tile.base import Array, TileOperation, integer, verify_type
from tessera_compiler.tile.types import element_name, shape_of, tile_type

PAIRS_OF_A_WORD = 4


@irdl_op_definition
class TransposeOp(TileOperation):
    """The same elements with rows and columns exchanged."""

    name = "tile.transpose"
    operand = operand_def(VectorType)
    result = result_def(VectorType)

    def __init__(self, operand: SSAValue):
        rows, columns = shape_of(operand.type)
        super().__init__(operands=[operand], result_types=[tile_type(columns, rows, element_name(operand.type))])

    def verify_(self) -> None:
        rows, columns = shape_of(self.operand.type)
        wanted = tile_type(columns, rows, element_name(self.operand.type))
        verify_type("the result of a transpose", self.result.type, wanted)

    def evaluate(self, operand: Array) -> tuple[Array]:
        return (np.ascontiguousarray(operand.T),)


@irdl_op_definition
class UnpackOp(TileOperation):
    """What two of the eight numbers of four bits in each word stand for: element (i, 2 w + h) is `(n - z / 16) * s`,
    exactly, where n is number 2 `pair` + h of word (i, w), counted from the lowest bits, and s and z are the bytes
    `pair` of row i of the scales and the zeros."""

    name = "tile.unpack"
    words = operand_def(VectorType)
    scales = operand_def(VectorType)
    zeros = operand_def(VectorType)
    pair = attr_def(IntegerAttr)
    result = result_def(VectorType)

    def __init__(self, words: SSAValue, scales: SSAValue, zeros: SSAValue, pair: int):
        rows, columns = shape_of(words.type)
        super().__init__(
            operands=[words, scales, zeros],
            attributes={"pair": integer(pair)},
            result_types=[tile_type(rows, 2 * columns, "f32")],
        )

    def verify_(self) -> None:
        rows, columns = shape_of(self.words.type)
        verify_type("what is unpacked", self.words.type, tile_type(rows, columns, "i32"))
        for each in (self.scales, self.zeros):
            verify_type("what belongs to a row", each.type, tile_type(rows, 1, "i32"))
        verify_type("the result of an unpack", self.result.type, tile_type(rows, 2 * columns, "f32"))
        if not 0 <= self.pair.value.data < PAIRS_OF_A_WORD:
            raise VerifyException(f"a word has {PAIRS_OF_A_WORD} pairs of numbers; found pair {self.pair.value.data}")

    def evaluate(self, words: Array, scales: Array, zeros: Array) -> tuple[Array]:
        pair = self.pair.value.data
        numbers = np.stack([_bits(words, 8 * pair, 4), _bits(words, 8 * pair + 4, 4)], axis=2)
        centred = numbers.reshape(len(words), -1) - _bits(zeros, 8 * pair, 8) / np.float32(16)
        return (centred * _bits(scales, 8 * pair, 8),)


def _bits(words: Array, first: int, count: int) -> Array:
    unsigned = np.ascontiguousarray(words, np.int32).view(np.uint32)
    return (unsigned >> np.uint32(first) & np.uint32((1 << count) - 1)).astype(np.float32)
