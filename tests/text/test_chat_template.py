"""Chat templates: the same text as transformers, and limits that hold whatever the template does."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest
from tokenizer_zoo import byte_level
from transformers import PreTrainedTokenizerFast

from tessera_runtime.errors import InvalidRequest, TemplateError
from tessera_runtime.text.chat_template import RESERVED_NAMES, ChatTemplate, TemplateLimits

CHATML = """{% for message in messages %}
    {% if loop.first and messages[0]['role'] != 'system' %}
{{ '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}
    {% endif %}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{% endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}
{% endif %}"""

LLAMA3 = """{{- bos_token }}
{%- set date_string = date_string if date_string is defined else "26 Jul 2024" %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: " + date_string + "\\n\\n" + system_message }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim }}
        {{- '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- for call in message.tool_calls %}
            {{- '{"name": "' + call.function.name + '", "parameters": ' }}
            {{- call.function.arguments | tojson }}{{- "}" }}
        {%- endfor %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""

GEMMA = """{{ bos_token }}
{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}
{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}
{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}
{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}"""

QWEN3 = """{%- set ns = namespace(multi_step=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- if ns.multi_step and message.role == "user" %}{%- set ns.multi_step = false %}{%- set ns.last = loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "tool" %}{%- continue %}{%- endif %}
    {%- if message.reasoning_content is string %}{{- '<think>' + message.reasoning_content + '</think>' }}{%- endif %}
    {%- generation %}{{- message.role + ': ' + message.content }}{%- endgeneration %}
    {%- if loop.index > 3 %}{%- break %}{%- endif %}
{%- endfor %}
{{- ns.last }}{{- {'a': "<é>", 'b': [1, 2.5, none, true]} | tojson }}
{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>' }}{%- endif %}"""

TURN = [
    {"role": "user", "content": " What is <the> capital & of France? 你好 "},
    {"role": "assistant", "content": "Paris."},
    {"role": "user", "content": "Thanks\n"},
]
SYSTEM = [{"role": "system", "content": "Be brief. "}, *TURN]
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "x": "<&>"}}}]
CALLS: list[dict[str, Any]] = [
    TURN[0],
    {"role": "assistant", "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Zürich"}}}]},
]
REASONED = [TURN[0], {"role": "assistant", "content": "Paris.", "reasoning": "Easy."}, TURN[2]]
CASES: dict[str, tuple[str, list[dict[str, Any]], dict[str, Any]]] = {
    "chatml": (CHATML, TURN, {}),
    "chatml, system": (CHATML, SYSTEM, {}),
    "llama3": (LLAMA3, TURN, {}),
    "llama3, system and date": (LLAMA3, SYSTEM, {"date_string": "1 May 2026"}),
    "llama3, tools": (LLAMA3, SYSTEM, {"tools": TOOLS}),
    "llama3, calls": (LLAMA3, CALLS, {}),
    "gemma": (GEMMA, TURN, {}),
    "qwen3": (QWEN3, TURN * 2, {"enable_thinking": False}),
    "qwen3, reasoning": (QWEN3, REASONED, {}),
}


@pytest.fixture(scope="module")
def reference() -> PreTrainedTokenizerFast:
    make: Any = PreTrainedTokenizerFast
    tokenizer: PreTrainedTokenizerFast = make(tokenizer_object=byte_level(), bos_token="<s>", eos_token="</s>")
    return tokenizer


@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_the_text_is_the_one_transformers_renders(
    case: str, add_generation_prompt: bool, reference: PreTrainedTokenizerFast
) -> None:
    source, messages, extra = CASES[case]
    expected = reference.apply_chat_template(
        messages, chat_template=source, tokenize=False, add_generation_prompt=add_generation_prompt, **extra
    )
    variables = {name: value for name, value in extra.items() if name != "tools"}
    with ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"}) as template:
        text = template.render(
            messages, tools=extra.get("tools"), variables=variables, add_generation_prompt=add_generation_prompt
        )
    assert text == expected


def render(source: str, content: str = "hi", **limits: Any) -> str:
    with ChatTemplate(source, limits=TemplateLimits(**limits)) as template:
        return template.render([{"role": "user", "content": content}])


def test_a_refusal_of_the_template_is_its_own_sentence() -> None:
    with (
        ChatTemplate(GEMMA, {"bos_token": "<s>"}) as template,
        pytest.raises(TemplateError, match="refused the messages: System role not supported"),
    ):
        template.render(SYSTEM)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ self.__init__.__globals__ }}",
        "{{ messages.__class__ }}",
        "{{ (messages|attr('__class__')).__base__ }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ raise_exception.__globals__['sys'] }}",
        "{{ '{0.__class__.__mro__}'.format(1) }}",
        "{{ ''['__cl' ~ 'ass__'] ~ ''.__doc__ }}",
        "{% set n = namespace(__class__=1) %}{{ n }}",
        "{% set n = namespace() %}{% set n.__init__ = 1 %}",
        "{{ messages.append(1) }}",
        "{{ dict.fromkeys.__self__.__bases__ }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}{{ os }}",
    ],
)
def test_a_template_reaches_nothing_but_its_messages(source: str) -> None:
    try:
        text = render(source)
    except TemplateError:
        return
    assert not any(word in text for word in ("<class", "<module", "<function", "<built-in", "root:", "uid="))


HOSTILE = {
    "endless loops": "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "one long call into C": "{% set s = 'a' * 30000000 %}{{ s.replace('a', 'b' * 9).count('ab') }}" * 200,
    "a power": "{{ 9 ** (9 ** 9) }}",
    "memory by repetition": "{{ 'x' * 10 ** 10 }}",
    "memory by a filter": "{{ 'a' | center(10 ** 10) }}",
    "memory by doubling": (
        "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}"
    ),
    "endless recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "endless text": "{% for i in range(100000) %}{{ 'x' * 1000 }}{% endfor %}",
    "a range beyond the sandbox": "{% for i in range(10 ** 9) %}{% endfor %}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_limits_hold_whatever_the_template_does(name: str) -> None:
    started = time.monotonic()
    with pytest.raises(TemplateError):
        render(HOSTILE[name], seconds=0.3, start_seconds=2.0, memory_bytes=1 << 29)
    assert time.monotonic() - started < 3.5


def test_memory_is_limited_in_itself() -> None:
    source = "{{ ('x' * 900000000) | length }}"
    assert render(source, seconds=10, memory_bytes=1 << 31) == "900000000"
    with pytest.raises(TemplateError, match="more memory"):
        render(source, seconds=10, memory_bytes=1 << 29)


def test_after_a_timeout_the_next_render_works_from_any_thread() -> None:
    source = "{% if messages[0].content == 'slow' %}" + HOSTILE["endless loops"] + "{% endif %}done"
    answers: list[str] = []
    with ChatTemplate(source, limits=TemplateLimits(seconds=0.3)) as template:

        def ask(content: str) -> None:
            try:
                answers.append(template.render([{"role": "user", "content": content}]))
            except TemplateError as error:
                answers.append(str(error))

        for content in ("slow", "fast"):
            thread = threading.Thread(target=ask, args=(content,))
            thread.start()
            thread.join(10)
    assert "longer than 0.3 s" in answers[0]
    assert answers[1] == "done"


def test_renders_from_many_threads_do_not_mix() -> None:
    with ChatTemplate("{{ messages[0].content }}") as template:
        results: dict[int, str] = {}

        def ask(index: int) -> None:
            results[index] = template.render([{"role": "user", "content": str(index) * 1000}])

        threads = [threading.Thread(target=ask, args=(index,)) for index in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    assert results == {index: str(index) * 1000 for index in range(8)}


def test_the_length_of_the_text_is_limited_and_long_messages_are_not_a_problem() -> None:
    assert len(render("{{ messages[0].content }}", "x" * 1_000_000)) == 1_000_000
    with pytest.raises(TemplateError, match="longer than 100 characters"):
        render("{{ messages[0].content }}", "x" * 101, characters=100)


@pytest.mark.parametrize("name", sorted(RESERVED_NAMES))
def test_a_request_cannot_replace_what_the_template_relies_on(name: str) -> None:
    template = ChatTemplate("{{ messages }}")
    with pytest.raises(InvalidRequest, match=name):
        template.render([], variables={name: "mine"})


def test_what_is_not_json_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="JSON"):
        ChatTemplate("x").render([{"role": "user", "content": object()}])


def test_a_template_that_does_not_compile_says_where() -> None:
    with pytest.raises(TemplateError, match=r"cannot be compiled.*line 2"):
        render("\n{% if %}")


def test_the_date_is_the_callers_or_the_present_one() -> None:
    with ChatTemplate("{{ strftime_now('%d %B %Y') }}") as template:
        assert template.render([], now=datetime(2026, 5, 1)) == "01 May 2026"
    with ChatTemplate("{{ strftime_now('%Y-%m-%d %H') }}") as template:
        before, text, after = datetime.now(), template.render([]), datetime.now()
    assert text in {moment.strftime("%Y-%m-%d %H") for moment in (before, after)}


def test_the_rendering_process_is_started_early_and_ends_with_its_parent() -> None:
    script = (
        "import os, signal\n"
        "from tessera_runtime.text.chat_template import ChatTemplate\n"
        "template = ChatTemplate('x')\n"
        "template.start()\n"
        "template.render([])\n"
        "print(template._worker._process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    process = int(done.stdout)
    deadline = time.monotonic() + 5
    while _alive(process) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _alive(process)


def _alive(process: int) -> bool:
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TESSERA_TEST_SECRET", "do-not-tell")
    yield


def test_the_rendering_process_has_no_environment() -> None:
    template = ChatTemplate("x")
    template.render([])
    assert template._worker is not None
    with open(f"/proc/{template._worker._process.pid}/environ", "rb") as file:
        assert b"do-not-tell" not in file.read()
    template.close()
    assert os.environ["TESSERA_TEST_SECRET"] == "do-not-tell"
