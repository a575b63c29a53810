"""Graph IR as text: MLIR's generic form, which MLIR's own tools read too."""

from __future__ import annotations

from io import StringIO

from xdsl.context import Context
from xdsl.dialects.builtin import Builtin, ModuleOp
from xdsl.dialects.func import Func
from xdsl.parser import Parser
from xdsl.printer import Printer
from xdsl.utils.exceptions import ParseError, VerifyException

from tessera_compiler.errors import InvalidGraph
from tessera_compiler.graph.dialect import GRAPH


def print_module(module: ModuleOp) -> str:
    """The module in generic form; the same module always gives the same text."""
    stream = StringIO()
    Printer(stream=stream, print_generic_format=True).print_op(module)
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
