"""Small programs with one attention layer, whose queries, keys and values come from one linear map."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from decode_function import decode_function
from numpy.typing import NDArray
from xdsl.dialects.builtin import ModuleOp

from tessera_compiler.driver import parse_ir

VOCABULARY = 23
DEPTH = 40


@dataclass(frozen=True)
class HeadProgram:
    """`queries` heads and a key and a value head each for `keys` of them, of `width` columns; of these, `rotated` are
    turned."""

    width: int = 16
    queries: int = 4
    keys: int = 2
    rotated: int = 16
    interleaved: bool = False
    bias: bool = False
    norm: bool = False
    window: int = 0

    @property
    def outputs(self) -> int:
        return (self.queries + 2 * self.keys) * self.width

    def weights(self) -> dict[str, NDArray[np.float32]]:
        random = np.random.default_rng(7)
        shapes = {
            "w": (VOCABULARY, DEPTH),
            "qkv": (self.outputs, DEPTH),
            "b": (self.outputs,),
            "g": (self.width,),
            "o": (DEPTH, self.queries * self.width),
        }
        return {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}

    def module(self) -> ModuleOp:
        body, result, type_ = self.text()
        return parse_ir(decode_function(body, result, type_))

    def text(self) -> tuple[str, str, str]:
        """The ops of the function, what it returns, and the type of that."""
        rows, half = lambda *shape: _type(shape, "T"), self.rotated // 2
        whole = rows(self.outputs)
        lines = [
            _weight("w", VOCABULARY, DEPTH),
            f'%x = "graph.embedding"(%w, %ids) {{offset = 0 : i64}} : ({_type((VOCABULARY, DEPTH))}, {rows()}) -> '
            f"{rows(DEPTH)}",
            _weight("qkv", self.outputs, DEPTH),
            f'%row = "graph.linear"(%x, %qkv) : ({rows(DEPTH)}, {_type((self.outputs, DEPTH))}) -> {whole}',
        ]
        if self.rotated:
            lines[2:2] = [
                f'%f = "graph.constant"() {{value = dense<{[0.75**n for n in range(half)]}> : {_type((half,))}}} : () '
                f"-> {_type((half,))}",
                f'%cos, %sin = "graph.rope_table"(%positions, %f) {{scale = 1.0 : f64}} : ({rows()}, {_type((half,))}) '
                f"-> ({rows(half)}, {rows(half)})",
            ]
        row = "%row"
        if self.bias:
            lines += [
                _weight("b", self.outputs),
                f'%biased = "graph.add"(%row, %b) : ({whole}, {_type((self.outputs,))}) -> {whole}',
            ]
            row = "%biased"
        if self.norm:
            lines.append(_weight("g", self.width))
        start, made = 0, []
        for name, count in (("q", self.queries), ("k", self.keys), ("v", self.keys)):
            part, heads = rows(count * self.width), rows(count, self.width)
            lines += [
                f'%{name}_part = "graph.slice"({row}) {{axis = 1 : i64, start = {start} : i64, '
                f"size = {count * self.width} : i64, step = 1 : i64}} : ({whole}) -> {part}",
                f'%{name}_heads = "graph.reshape"(%{name}_part) : ({part}) -> {heads}',
            ]
            start += count * self.width
            value = f"%{name}_heads"
            if self.norm and name != "v":
                lines.append(
                    f'%{name}_normed = "graph.rms_norm"({value}, %g) {{eps = 1.0e-05 : f64, weight_offset = 1.0 : f64}}'
                    f" : ({heads}, {_type((self.width,))}) -> {heads}"
                )
                value = f"%{name}_normed"
            if self.rotated and name != "v":
                mark = "interleaved" if self.interleaved else ""
                lines.append(
                    f'%{name}_turned = "graph.rope"({value}, %cos, %sin) {{{mark}}} : ({heads}, {rows(half)}, '
                    f"{rows(half)}) -> {heads}"
                )
                value = f"%{name}_turned"
            made.append(value)
        queries, keys, flat = (
            rows(self.queries, self.width),
            rows(self.keys, self.width),
            rows(self.queries * self.width),
        )
        lines += [
            f'%a = "graph.attention"({", ".join(made)}) {{layer = 0 : i64, scale = 0.25 : f64, '
            f"window = {self.window} : i64, softcap = 0.0 : f64}} : ({queries}, {keys}, {keys}) -> {queries}",
            f'%flat = "graph.reshape"(%a) : ({queries}) -> {flat}',
            _weight("o", DEPTH, self.queries * self.width),
            f'%out = "graph.linear"(%flat, %o) : ({flat}, {_type((DEPTH, self.queries * self.width))}) -> '
            f"{rows(DEPTH)}",
            f'%wanted = "graph.select_rows"(%out, %rows) : ({rows(DEPTH)}, {_type((), "L")}) -> {_type((DEPTH,), "L")}',
            f'%logits = "graph.linear"(%wanted, %w) : ({_type((DEPTH,), "L")}, {_type((VOCABULARY, DEPTH))}) -> '
            f"{_type((VOCABULARY,), 'L')}",
        ]
        return "\n    ".join(["", *lines]), "%logits", _type((VOCABULARY,), "L")


def _type(shape: tuple[int, ...], rows: str = "") -> str:
    """Of a tensor; one of rows without any columns is a vector of whole numbers."""
    sizes = "x".join(["?"] * bool(rows) + [str(size) for size in shape])
    return f"tensor<{sizes}x{'f32' if shape else 'i32'}{f', {chr(34)}{rows}{chr(34)}' if rows else ''}>"


def _weight(name: str, *shape: int) -> str:
    return f'%{name} = "graph.weight"() {{name = "{name}", sources = ["{name}"]}} : () -> {_type(shape)}'
