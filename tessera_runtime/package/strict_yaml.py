"""The YAML of a manifest: a small, strict subset, so that a document means the same to every reader.

One document; mappings with unique string keys, sequences and scalars; at most `MAX_DEPTH` deep and `MAX_BYTES` long.
Refused: anchors, aliases, tags, merge keys and any directive. A plain scalar is null, a boolean (`true`, `false`), an
integer or a float (with a point) when it looks like one, else a string. These forms are a subset of YAML 1.1's and of
YAML 1.2's, so what the writer leaves unquoted is a string here too.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from tessera_runtime.errors import ManifestInvalid

MAX_BYTES = 2**20
MAX_DEPTH = 12

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,18})", re.ASCII)
_FLOAT = re.compile(r"[-+]?[0-9]+\.[0-9]*([eE][-+][0-9]+)?", re.ASCII)
_WORDS: dict[str, bool | None] = {"": None, "~": None, "null": None, "true": True, "false": False}


def load_strict(data: bytes) -> Any:
    """The value of a YAML document; raises `ManifestInvalid`, naming the line, when it is not in the subset."""
    if len(data) > MAX_BYTES:
        raise ManifestInvalid(f"manifest.yaml has {len(data)} bytes; the limit is {MAX_BYTES}.")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ManifestInvalid(f"manifest.yaml is not UTF-8 (byte {error.start}).") from None
    try:
        return _build(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark is not None else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "it does not parse"
        raise ManifestInvalid(f"manifest.yaml is not YAML{where}: {problem}.") from None


def dump_strict(value: Any) -> bytes:
    """`value` (dicts, lists, strings, numbers, booleans) as YAML in the subset; equal values give equal bytes."""
    # The pure Python dumper: libyaml's breaks lines elsewhere, and bytes must not depend on which one is installed.
    text = yaml.dump(
        value, Dumper=yaml.SafeDumper, sort_keys=False, allow_unicode=False, default_flow_style=False, width=4096
    )
    return str(text).encode("utf-8")


class _Open:
    """A mapping or sequence whose end has not come yet."""

    def __init__(self, value: dict[str, Any] | list[Any]) -> None:
        self.value = value
        self.key: str | None = None


def _build(text: str) -> Any:
    # Walking the events keeps the depth in our hands: libyaml's own composer recurses on the C stack.
    result: list[Any] = []
    stack: list[_Open] = []
    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.DocumentStartEvent):
            if result or event.version or event.tags:
                raise _refusal(event, "a second document or a directive")
        elif isinstance(event, yaml.AliasEvent):
            raise _refusal(event, "an alias")
        elif isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent, yaml.ScalarEvent)):
            if event.anchor is not None:
                raise _refusal(event, "an anchor")
            if event.tag is not None:
                raise _refusal(event, "a tag")
            if isinstance(event, yaml.ScalarEvent):
                _place(_scalar(event), event, stack, result)
                continue
            if len(stack) >= MAX_DEPTH:
                raise _refusal(event, f"nesting deeper than {MAX_DEPTH}")
            value: dict[str, Any] | list[Any] = {} if isinstance(event, yaml.MappingStartEvent) else []
            _place(value, event, stack, result)
            stack.append(_Open(value))
        elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            stack.pop()
    if not result:
        raise ManifestInvalid("manifest.yaml is empty.")
    return result[0]


def _place(value: Any, event: Any, stack: list[_Open], result: list[Any]) -> None:
    if not stack:
        result.append(value)
        return
    top = stack[-1]
    if isinstance(top.value, list):
        top.value.append(value)
    elif top.key is None:
        if not isinstance(value, str):
            raise _refusal(event, "a key that is not a string")
        if value == "<<":
            raise _refusal(event, "a merge key")
        if value in top.value:
            raise _refusal(event, f"the key {value!r} twice")
        top.key = value
    else:
        top.value[top.key] = value
        top.key = None


def _scalar(event: yaml.ScalarEvent) -> Any:
    text: str = event.value
    if not event.implicit[0]:  # quoted
        return text
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text


def _refusal(event: Any, what: str) -> ManifestInvalid:
    return ManifestInvalid(f"manifest.yaml holds {what} in line {event.start_mark.line + 1}; that is not allowed.")
