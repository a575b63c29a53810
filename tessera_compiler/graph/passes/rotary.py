"""A pass that recognises rotary position embeddings, however they are spelled.

Models write the rotation in many ways: halves or neighbours, `rotate_half` or explicit products, tables that are
repeated, interleaved or cut. Instead of matching each, the columns of a value are followed through all moves of
elements: which element of which source each one is, and with which sign. What comes out is compared with a rotation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import SSAValue

from tessera_compiler.graph.base import GraphOp
from tessera_compiler.graph.dialect import (
    AddOp,
    BroadcastOp,
    CastOp,
    ConcatOp,
    ConstantOp,
    CosOp,
    MulOp,
    NegOp,
    ReshapeOp,
    RopeOp,
    RopeTableOp,
    SinOp,
    SliceOp,
    SubOp,
    TransposeOp,
)
from tessera_compiler.graph.passes.rewriting import (
    Site,
    body,
    constant_of,
    drop_unused,
    either_way,
    graph_ops,
    scalar_of,
)
from tessera_compiler.graph.types import DYNAMIC, F32, TOKENS, rows_of, shape_of, tensor, type_of

Floats: TypeAlias = NDArray[np.float32]
Indices: TypeAlias = NDArray[np.int64]

_MOVES = (ReshapeOp, BroadcastOp, SliceOp, TransposeOp)


@dataclass(frozen=True)
class RecogniseRotary:
    """`x * cos(angles) + rotated(x) * sin(angles)`, perhaps of a part of the columns --> `rope(x, cos, sin)`,

    with `cos, sin = rope_table(positions, inverse_frequencies)`, one per distinct table, at the start of the function.
    """

    def apply(self, module: ModuleOp) -> None:
        followed = _Followed(body(module).args[1])
        tables: dict[tuple[bytes, float], RopeTableOp] = {}
        # Back to front, so that a concatenation of rotated and passed columns is seen before the rotation in it.
        for op in reversed(graph_ops(module)):
            if not isinstance(op, (AddOp, SubOp, ConcatOp, ReshapeOp)) or not any(True for _ in op.results[0].uses):
                continue
            rotation = _match(followed, op.results[0])
            if rotation is not None:
                op.results[0].replace_all_uses_with(_emit(rotation, op, tables, module))
        drop_unused(module)


@dataclass(frozen=True)
class _Table:
    """`scale * cos` or `scale * sin` of `position * frequency`, for each element of a row."""

    sine: bool
    frequency: Floats
    scale: Floats


@dataclass(frozen=True)
class _Columns:
    """Each element of a row as `± source[index]`."""

    source: SSAValue
    index: Indices
    sign: Indices


@dataclass(frozen=True)
class _Sum:
    """Each element of a row as `± source[direct] * cos + (± source[crossed]) * sin`, or as `source[direct]` alone."""

    source: SSAValue
    direct: Indices
    direct_sign: Indices
    crossed: Indices
    """-1 where the element is passed through or has no such term."""
    crossed_sign: Indices
    has_cosine: NDArray[np.bool_]
    frequency: Floats
    scale: Floats


_FIELDS = ("direct", "direct_sign", "crossed", "crossed_sign", "has_cosine", "frequency", "scale")


@dataclass(frozen=True)
class _Rotation:
    """A rotation of `heads` heads of `width` columns, head `i` from element `start + i * stride` of the source."""

    source: SSAValue
    start: int
    stride: int
    heads: int
    width: int
    interleaved: bool
    frequencies: Floats
    scale: float


def _row(value: SSAValue) -> tuple[int, ...]:
    """The shape of one row of a value."""
    return shape_of(value)[1:]


def _moved(op: GraphOp, row: NDArray[Any]) -> NDArray[Any]:
    """What an op that moves elements does to one row."""
    target = _row(op.results[0])
    if isinstance(op, ReshapeOp):
        return row.reshape(target)
    if isinstance(op, BroadcastOp):
        return np.broadcast_to(row, target)
    values = op.values
    if isinstance(op, TransposeOp):
        return np.transpose(row, [axis - 1 for axis in values["permutation"][1:]])
    stop = values["start"] + (values["size"] - 1) * values["step"] + 1
    taken: NDArray[Any] = row[(slice(None),) * (values["axis"] - 1) + (slice(values["start"], stop, values["step"]),)]
    return taken


class _Followed:
    """What is known of the elements of each value; None where nothing is."""

    def __init__(self, positions: SSAValue) -> None:
        self._positions = positions
        self._angles: dict[SSAValue, Floats | None] = {}
        self._tables: dict[SSAValue, _Table | None] = {}
        self._columns: dict[SSAValue, _Columns] = {}
        self._sums: dict[SSAValue, _Sum | None] = {}

    def angle(self, value: SSAValue) -> Floats | None:
        """The frequencies of a value that is `position * frequency`."""
        if value not in self._angles:
            self._angles[value] = self._angle(value)
        return self._angles[value]

    def _angle(self, value: SSAValue) -> Floats | None:
        op = value.owner
        if not isinstance(op, GraphOp) or rows_of(type_of(value)) != TOKENS:
            return None
        if isinstance(op, CastOp):
            return np.ones((), np.float32) if op.x == self._positions and type_of(value).element_type == F32 else None
        if isinstance(op, MulOp):
            for angle, factor in either_way(op):
                constant, frequency = constant_of(factor), self.angle(angle)
                if frequency is not None and constant is not None and constant.ndim < len(shape_of(value)):
                    return np.broadcast_to(frequency * constant.astype(np.float32), _row(value))
            return None
        if isinstance(op, ConcatOp):
            parts = [self.angle(part) for part in op.parts]
            present = [part for part in parts if part is not None]
            return np.concatenate(present, axis=op.values["axis"] - 1) if len(present) == len(parts) else None
        frequency = self.angle(op.operands[0]) if isinstance(op, _MOVES) else None
        return None if frequency is None else _moved(op, frequency)

    def table(self, value: SSAValue) -> _Table | None:
        """What table of cosines or sines a value is."""
        if value not in self._tables:
            self._tables[value] = self._table(value)
        return self._tables[value]

    def _table(self, value: SSAValue) -> _Table | None:
        op = value.owner
        if isinstance(op, (CosOp, SinOp)):
            frequency = self.angle(op.x)
            return None if frequency is None else _Table(isinstance(op, SinOp), frequency, np.ones_like(frequency))
        if isinstance(op, MulOp):
            factor, table = scalar_of(op.b), self.table(op.a)
            if factor is None or table is None or op.a.type != value.type:
                return None
            return _Table(table.sine, table.frequency, table.scale * np.float32(factor))
        if isinstance(op, ConcatOp):
            parts = [self.table(part) for part in op.parts]
            present = [part for part in parts if part is not None]
            if len(present) != len(parts) or len({part.sine for part in present}) != 1:
                return None
            axis = op.values["axis"] - 1
            frequency = np.concatenate([part.frequency for part in present], axis=axis)
            return _Table(present[0].sine, frequency, np.concatenate([part.scale for part in present], axis=axis))
        table = self.table(op.operands[0]) if isinstance(op, _MOVES) else None
        if table is None or not isinstance(op, GraphOp):
            return None
        return _Table(table.sine, _moved(op, table.frequency), _moved(op, table.scale))

    def columns(self, value: SSAValue) -> _Columns:
        """Which element of which source each element of a row is; at worst, of the value itself."""
        if value not in self._columns:
            self._columns[value] = self._find_columns(value)
        return self._columns[value]

    def _find_columns(self, value: SSAValue) -> _Columns:
        op = value.owner
        if isinstance(op, NegOp):
            inner = self.columns(op.x)
            return _Columns(inner.source, inner.index, -inner.sign)
        if isinstance(op, ConcatOp):
            parts = [self.columns(part) for part in op.parts]
            if all(part.source == parts[0].source for part in parts):
                axis = op.values["axis"] - 1
                index = np.concatenate([part.index for part in parts], axis=axis)
                return _Columns(parts[0].source, index, np.concatenate([part.sign for part in parts], axis=axis))
        if isinstance(op, _MOVES) and rows_of(type_of(op.operands[0])) is not None:
            inner = self.columns(op.operands[0])
            index, sign = _moved(op, inner.index), _moved(op, inner.sign)
            return _Columns(inner.source, index.astype(np.int64), sign.astype(np.int64))
        row = _row(value)
        index = np.arange(int(np.prod(row, dtype=np.int64)), dtype=np.int64).reshape(row)
        return _Columns(value, index, np.ones_like(index))

    def sum(self, value: SSAValue) -> _Sum | None:
        """The value as a sum of products with tables, if it is one."""
        if value not in self._sums:
            self._sums[value] = self._sum(value)
        return self._sums[value]

    def _sum(self, value: SSAValue) -> _Sum | None:
        op = value.owner
        if isinstance(op, MulOp):
            return self._product(op)
        if isinstance(op, NegOp):
            return _negated(self.sum(op.x))
        if isinstance(op, (AddOp, SubOp)):
            left, right = self.sum(op.a), self.sum(op.b)
            return _added(left, _negated(right) if isinstance(op, SubOp) else right)
        if isinstance(op, ConcatOp):
            return self._joined(op)
        if isinstance(op, ReshapeOp):
            inner = self.sum(op.x)
            return None if inner is None else _mapped(inner, lambda row: _moved(op, row))
        return None

    def _product(self, op: MulOp) -> _Sum | None:
        for factor, other in either_way(op):
            table = self.table(factor)
            if table is None or rows_of(type_of(other)) != TOKENS or other.type != op.result.type:
                continue
            columns, row = self.columns(other), _row(op.result)
            nothing = np.full(row, -1, dtype=np.int64)
            one = np.ones(row, dtype=np.int64)
            frequency, scale = np.broadcast_to(table.frequency, row), np.broadcast_to(table.scale, row)
            cosine = np.full(row, not table.sine)
            if table.sine:
                return _Sum(columns.source, nothing, one, columns.index, columns.sign, cosine, frequency, scale)
            return _Sum(columns.source, columns.index, columns.sign, nothing, one, cosine, frequency, scale)
        return None

    def _joined(self, op: ConcatOp) -> _Sum | None:
        """A concatenation of sums, and of columns that are passed through."""
        sums = [self.sum(part) for part in op.parts]
        rotated = [each for each in sums if each is not None]
        if not rotated:
            return None
        parts: list[_Sum] = []
        for part, each in zip(op.parts, sums, strict=True):
            if each is None:
                columns, row = self.columns(part), _row(part)
                nothing, zero = np.full(row, -1, dtype=np.int64), np.zeros(row, dtype=np.float32)
                each = _Sum(
                    columns.source, columns.index, columns.sign, nothing, np.ones(row, np.int64), zero > 0, zero, zero
                )
            parts.append(each)
        if any(part.source != parts[0].source for part in parts):
            return None
        axis = op.values["axis"] - 1
        joined = [np.concatenate([getattr(part, field) for part in parts], axis=axis) for field in _FIELDS]
        return _Sum(parts[0].source, *joined)


def _mapped(terms: _Sum, move: Callable[[NDArray[Any]], NDArray[Any]]) -> _Sum:
    return _Sum(terms.source, *(move(getattr(terms, field)) for field in _FIELDS))


def _negated(terms: _Sum | None) -> _Sum | None:
    if terms is None:
        return None
    return _Sum(
        terms.source,
        terms.direct,
        -terms.direct_sign,
        terms.crossed,
        -terms.crossed_sign,
        terms.has_cosine,
        terms.frequency,
        terms.scale,
    )


def _added(a: _Sum | None, b: _Sum | None) -> _Sum | None:
    """A sum of products with cosines and one of products with sines of the same angles."""
    if a is None or b is None or a.source != b.source or a.direct.shape != b.direct.shape:
        return None
    if not a.has_cosine.any():
        a, b = b, a
    complete = a.has_cosine.all() and (a.crossed == -1).all() and (b.direct == -1).all() and not b.has_cosine.any()
    if not complete or not np.array_equal(a.frequency, b.frequency) or not np.array_equal(a.scale, b.scale):
        return None
    return _Sum(a.source, a.direct, a.direct_sign, b.crossed, b.crossed_sign, a.has_cosine, a.frequency, a.scale)


def _match(followed: _Followed, value: SSAValue) -> _Rotation | None:
    """The rotation that a value is, if it is one of whole heads."""
    terms = followed.sum(value)
    if terms is None or terms.direct.ndim > 2 or rows_of(type_of(value)) != TOKENS:
        return None
    direct, crossed = np.atleast_2d(terms.direct), np.atleast_2d(terms.crossed)
    heads, width = direct.shape
    start = int(direct[0, 0])
    stride = int(direct[1, 0]) - start if heads > 1 else width
    origin = start + stride * np.arange(heads)[:, None]
    if (terms.direct_sign != 1).any() or (direct != origin + np.arange(width)).any():
        return None
    rotated = np.atleast_2d(terms.has_cosine)
    count = int(rotated[0].sum())
    half = count // 2
    if not half or count % 2 or (rotated != (np.arange(width) < count)).any():
        return None
    columns, partner = np.arange(count), crossed[:, :count] - origin
    sign = np.atleast_2d(terms.crossed_sign)[:, :count]
    frequency, scale = np.atleast_2d(terms.frequency)[:, :count], np.atleast_2d(terms.scale)[:, :count]
    if (frequency != frequency[0]).any() or (scale != scale[0, 0]).any():
        return None
    for interleaved, first in ((False, columns < half), (True, columns % 2 == 0)):
        other = columns ^ 1 if interleaved else (columns + half) % count
        pairs = frequency[0][first], frequency[0][~first]
        if (partner != other).any() or not np.array_equal(*pairs):
            continue
        direction = -int(sign[0, 0])
        # The first of a pair gets -sin, the second +sin; the other way round turns backwards.
        if (sign == np.where(first, -direction, direction)).all():
            frequencies = np.ascontiguousarray(pairs[0] * np.float32(direction))
            return _Rotation(terms.source, start, stride, heads, width, interleaved, frequencies, float(scale[0, 0]))
    return None


def _emit(
    rotation: _Rotation, op: GraphOp, tables: dict[tuple[bytes, float], RopeTableOp], module: ModuleOp
) -> SSAValue:
    """The ops that compute a rotation, before `op`."""
    site = Site(op)
    table = _table_op(rotation, tables, module)
    x = _heads(rotation, site)
    result = site.make(RopeOp, x, table.cos, table.sin, interleaved=rotation.interleaved)
    expected = type_of(op.results[0])
    return result if result.type == expected else site.make(ReshapeOp, result, result=expected)


def _heads(rotation: _Rotation, site: Site) -> SSAValue:
    """The source's columns that are rotated, as [T, heads, width]."""
    x, size = rotation.source, int(np.prod(_row(rotation.source), dtype=np.int64))
    heads, width, stride, start = rotation.heads, rotation.width, rotation.stride, rotation.start
    wanted = tensor([DYNAMIC, heads, width], F32, TOKENS)
    if stride == width:
        if (start, heads * width) != (0, size):
            x = _reshaped(site, x, [size])
            x = site.make(SliceOp, x, axis=1, start=start, size=heads * width, step=1)
        return _reshaped(site, x, wanted.get_shape()[1:])
    # Columns of other things lie between the heads: cut them off head by head.
    x = _reshaped(site, x, [size // stride, stride])
    if size // stride != heads:
        x = site.make(SliceOp, x, axis=1, start=start // stride, size=heads, step=1)
    return site.make(SliceOp, x, axis=2, start=start % stride, size=width, step=1)


def _reshaped(site: Site, x: SSAValue, row: Sequence[int]) -> SSAValue:
    target = tensor([DYNAMIC, *row], F32, TOKENS)
    return x if x.type == target else site.make(ReshapeOp, x, result=target)


def _table_op(rotation: _Rotation, tables: dict[tuple[bytes, float], RopeTableOp], module: ModuleOp) -> RopeTableOp:
    key = (rotation.frequencies.tobytes(), rotation.scale)
    if key not in tables:
        block = body(module)
        frequencies = ConstantOp.of(rotation.frequencies)
        table = RopeTableOp.make(block.args[1], frequencies.result, scale=rotation.scale)
        first = block.first_op
        assert first is not None
        block.insert_ops_before([frequencies, table], first)
        tables[key] = table
    return tables[key]
