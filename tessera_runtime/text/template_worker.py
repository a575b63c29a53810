"""The process that renders chat templates, and does nothing else.

A template is a program that came with a model, and it runs over text that came from a stranger. Jinja's sandbox keeps
it away from Python's insides but not from the clock or the memory: `'x' * 10**9` is one call into C, which no thread
can interrupt. So a template runs in a process of its own, which has no environment, may open no file, may hold a
bounded amount of memory, and is killed at its deadline, by its parent or, if that is gone, by its own alarm.

The two speak lines of JSON: first `{"template", "memory_bytes", "seconds"}`, answered by `{}` or `{"error"}`; then any
number of `{"context", "limit", "now"}`, answered by `{"text"}` or `{"error", "refused"}`. This module imports only the
standard library and jinja2.
"""

from __future__ import annotations

import contextlib
import json
import resource
import signal
import sys
from datetime import datetime
from typing import Any

import jinja2
import jinja2.exceptions
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
import jinja2.utils

MESSAGE_LIMIT = 500
"""Characters of an error message that are passed on: a template may put all of its input into one."""


class Refusal(jinja2.TemplateError):
    """Raised by `raise_exception` in a template: the template's own opinion of the messages."""


class GenerationBlock(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}` marks what training scores; for inference it is what it encloses."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class SafeNamespace(jinja2.utils.Namespace):
    """A `namespace()` that holds no name with a leading underscore, so none of Python's own attributes can be
    replaced.
    """

    def __init__(*arguments: Any, **values: Any) -> None:
        initial = dict(*arguments[1:], **values)
        for name in initial:
            _check_attribute(name)
        jinja2.utils.Namespace.__init__(arguments[0], initial)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_attribute(name)
        super().__setitem__(name, value)


def _check_attribute(name: object) -> None:
    if str(name).startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace cannot hold {name!r}: its name starts with an underscore")


def _make_dict(*arguments: Any, **values: Any) -> dict[Any, Any]:
    return dict(*arguments, **values)


def _raise_exception(message: object) -> None:
    raise Refusal(str(message))


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def make_environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    """The names and the white-space rules that templates on model hubs are written for."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["namespace"] = SafeNamespace
    environment.globals["dict"] = _make_dict
    return environment


def _explain(error: BaseException) -> dict[str, Any]:
    if isinstance(error, Refusal):
        return {"error": str(error)[:MESSAGE_LIMIT], "refused": True}
    if isinstance(error, MemoryError):
        return {"error": "it needs more memory than a template may have", "refused": False}
    if isinstance(error, RecursionError):
        return {"error": "it calls itself without end", "refused": False}
    where = f" (line {error.lineno})" if isinstance(error, jinja2.TemplateSyntaxError) else ""
    return {"error": f"{type(error).__name__}: {error}"[:MESSAGE_LIMIT] + where, "refused": False}


def render(template: jinja2.Template, request: dict[str, Any]) -> dict[str, Any]:
    """Renders piece by piece, and stops as soon as the text is longer than the limit."""
    now = datetime.fromisoformat(request["now"]) if request["now"] else datetime.now()
    context = dict(request["context"], strftime_now=now.strftime)
    limit = int(request["limit"])
    pieces: list[str] = []
    length = 0
    try:
        for piece in template.generate(context):
            length += len(piece)
            if length > limit:
                return {"error": f"its text is longer than {limit} characters", "refused": False}
            pieces.append(piece)
    except Exception as error:
        return _explain(error)
    return {"text": "".join(pieces)}


WARM_UP = r"""{% macro item(x) %}{{ x | tojson }}{% endmacro %}{% set space = namespace(count=0) %}
{% for n in range(3) %}{% if n == 1 %}{% continue %}{% endif %}{% set space.count = space.count + n %}
{{ item({'n\u00e9': n}) }}{% endfor %}{{ strftime_now('%d %b %Y') }}{{ 'a\n%s' | format('b') | upper | trim }}
{{ [3, 1] | sort | join(',') }}{{ 'a b' | urlencode }}{{ lipsum(1) }}{{ {'a': [1]} | pprint }}{{ '{:>4}'.format('x') }}
{{ missing.attribute }}"""


def warm_up() -> None:
    """Makes Jinja and Python load what they load on first use, while files can still be opened: codecs, error
    reporting, words.
    """
    environment = make_environment()
    render(environment.from_string(WARM_UP), {"context": {}, "limit": 10_000, "now": None})
    with contextlib.suppress(jinja2.TemplateError):
        environment.from_string("{% if %}")
    for codec in ("ascii", "latin-1", "idna", "punycode", "utf-16", "utf-8", "unicode_escape", "raw_unicode_escape"):
        "a".encode(codec)


def _limit_resources(memory_bytes: int) -> None:
    """After this the process can neither open a file or socket nor start another process."""
    limits = [
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 3),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_AS, memory_bytes),
    ]
    for kind, value in limits:
        # Some containers forbid lowering a limit; the deadline, which is the parent's, holds even so.
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(kind, (value, value))


def _answer(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which closes our input
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    first = sys.stdin.readline()
    if not first:
        return
    settings = json.loads(first)
    seconds = float(settings["seconds"])
    warm_up()
    _limit_resources(int(settings["memory_bytes"]))
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        template = make_environment().from_string(settings["template"])
    except Exception as error:
        _answer(_explain(error))
        return
    signal.setitimer(signal.ITIMER_REAL, 0)
    _answer({})
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            answer = render(template, json.loads(line))
        except MemoryError as error:
            answer = _explain(error)
        _answer(answer)
        signal.setitimer(signal.ITIMER_REAL, 0)


if __name__ == "__main__":
    main()
