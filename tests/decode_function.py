"""The text of a module whose function has some ops of Graph IR."""

from __future__ import annotations

_FRAME = """
"builtin.module"() ({{
  "func.func"() <{{function_type = (tensor<?xi32, "T">, tensor<?xi32, "T">, tensor<?xi32, "L">) -> {type},
                  sym_name = "decode_graph"}}> ({{
  ^bb0(%ids : tensor<?xi32, "T">, %positions : tensor<?xi32, "T">, %rows : tensor<?xi32, "L">):
{body}
    "func.return"({result}) : ({type}) -> ()
  }}) : () -> ()
}}) {{sym_name = "main"}} : () -> ()
"""


def decode_function(body: str, result: str, type_: str) -> str:
    """`body` are the ops, over `%ids`, `%positions` and `%rows`; the function gives `result`, of type `type_`."""
    return _FRAME.format(body=body, result=result, type=type_)
