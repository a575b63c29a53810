"""The sources of the kernels of `drawing.full` for one vocabulary."""

from __future__ import annotations

import re
from collections.abc import Mapping

from tessera_compiler.targets.triton.drawing import functions, texts
from tessera_compiler.targets.triton.drawing.layout import DrawingLayout
from tessera_compiler.targets.triton.emission import Source

_HELPERS = (
    *(functions.POWER, functions.UNITS, functions.NUMBER, functions.FILTERS, functions.FILTERED, functions.LEAST),
    *(functions.RAW, functions.SCORES, functions.DEPTHS, functions.WEIGHTS, functions.PEAK, functions.PART),
    *(functions.OVER_CHUNKS, functions.HEAVY, functions.KEYS, functions.TILE, functions.NARROWED),
)
_DRAW = {"logits": "*fp32", "draws": "*i32", "counts": "*i16", "bias": "*i32", "bitmask": "*i32"}
_PARTIAL = {"peaks": "*fp32", "words": "*i32", "sums": "*i64", "lists": "*i64"}
_KINDS = {**_DRAW, **_PARTIAL, "feedback": "*i32", "ids": "*i32", "logprobs": "*fp32"}
_PARAMETERS = re.compile(r"def (\w+)\((.*)\):")
_CONSTANT = re.compile(r"\b[A-Z][A-Z_]+\b")
_DEPENDENT = ("gdc_wait()", "gdc_launch_dependents()")
"""What a kernel does before it reads what the launch before it wrote."""
_CHUNK = ("chunk = tl.program_id(0)", "row = tl.program_id(1)", "draw = draws + row * 16")
_ROW = ("row = tl.program_id(0)", "draw = draws + row * 16")

TEXTS = {
    "draw_scores": texts.SCORES_KERNEL,
    "draw_weights": texts.WEIGHTS_KERNEL,
    "draw_plan": texts.PLAN_KERNEL,
    "draw_narrow": texts.NARROW_KERNEL,
    "draw_list": texts.LIST_KERNEL,
    "draw_token": texts.FINISH_KERNEL,
}
"""The kernels in the order in which they are launched."""


def drawing_source(symbol: str, layout: DrawingLayout, *, dependent: bool = False) -> Source:
    """One of `TEXTS` with its numbers; `dependent` as in `emit_source`."""
    header = "import triton\nimport triton.language as tl\n"
    if dependent:
        header += "from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait\n"
    waits = _DEPENDENT if dependent else ()
    begins = {name: "\n    ".join((*waits, *lines)) for name, lines in (("BEGIN_CHUNK", _CHUNK), ("BEGIN_ROW", _ROW))}
    constants = {**layout.constants, **begins}
    signature = tuple((name, _KINDS[name]) for name in parameters_of(symbol))
    return Source(
        symbol, "\n\n".join([header, *(_filled(each, constants) for each in _with_helpers(symbol))]), signature
    )


def parameters_of(symbol: str) -> tuple[str, ...]:
    """What a kernel takes, in order, by the names in its text."""
    return tuple(_head(TEXTS[symbol])[1].split(", "))


def _with_helpers(symbol: str) -> list[str]:
    """A kernel's text, and before it those of the functions that it calls; they call only what stands before them."""
    texts_ = [TEXTS[symbol]]
    for helper in reversed(_HELPERS):
        if any(f"{_head(helper)[0]}(" in text for text in texts_):
            texts_.insert(0, helper)
    return texts_


def _head(text: str) -> tuple[str, str]:
    """A function's name and its parameters."""
    found = _PARAMETERS.search(text)
    assert found is not None, "every text begins with its function"
    return found.group(1), found.group(2)


def _filled(text: str, constants: Mapping[str, str]) -> str:
    return _CONSTANT.sub(lambda found: constants.get(found.group(), found.group()), text)
