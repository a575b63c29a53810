"""Graph IR as text: MLIR's generic form, which MLIR's own tools read too."""

from __future__ import annotations

import math
from io import StringIO

from xdsl.context import Context
from xdsl.dialects.builtin import AnyFloat, Builtin, Float32Type, ModuleOp
from xdsl.dialects.func import Func
from xdsl.parser import Parser
from xdsl.printer import Printer
from xdsl.utils.exceptions import ParseError, VerifyException

from tessera_compiler.errors import InvalidGraph
from tessera_compiler.graph.dialect import GRAPH


class ExactPrinter(Printer):
    """Prints floating-point numbers such that xDSL and MLIR both read back the same bits.

    xDSL's own printer writes some numbers as hexadecimal bit patterns, which its parser takes for integers. Infinities,
    which Tile IR alone has, cannot be written otherwise, and are read back as such where their type is f64.
    """

    def print_float(self, value: float, type: AnyFloat) -> None:
        if not math.isfinite(value):
            super().print_float(value, type)
            return
        short = f"{value:.6e}"
        if type.unpack(type.pack([float(short)]), 1)[0] != value:
            short = f"{value:.8e}" if isinstance(type, Float32Type) else f"{value:.16e}"
        self.print_string(short)


def print_module(module: ModuleOp) -> str:
    """The module in generic form; the same module always gives the same text."""
    stream = StringIO()
    ExactPrinter(stream=stream, print_generic_format=True).print_op(module)
    return stream.getvalue() + "\n"


def parse_module(text: str) -> ModuleOp:
    """Reads and verifies a module; raises InvalidGraph if the text is not Graph IR."""
    context = Context()
    for dialect in (Builtin, Func, GRAPH):
        context.load_dialect(dialect)
    try:
        module = Parser(context, text).parse_module()
        module.verify()
    except (ParseError, VerifyException) as error:
        raise InvalidGraph(f"this text is not valid Graph IR: {error}") from error
    return module
