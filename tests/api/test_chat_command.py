"""`tessera chat`: with a package, with a server, through a pipe, and in a terminal."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from running_server import RunningServer
from toy_executor import ToyExecutor

from tessera.chatting import session as chat_session
from tessera.chatting.session import ChatSession, Conversation, shown
from tessera.cli.main import main
from tessera.errors import ServerRefused


class Echo:
    """Says what it was asked, and how many messages it knows."""

    name = "echo"
    interrupts_safely = True

    def __init__(self) -> None:
        self.heard: list[list[dict[str, str]]] = []

    def answer(self, messages: Any) -> Any:
        self.heard.append(list(messages))
        if messages[-1]["content"] == "fail":
            raise ServerRefused("It does not want to.")
        yield f"{len(messages)}:"
        if messages[-1]["content"] == "half":
            raise ServerRefused("It stopped.")
        yield messages[-1]["content"]

    def close(self) -> None: ...


def talk(text: str, system: str | None = None) -> tuple[Echo, ChatSession, bool]:
    partner = Echo()
    session = ChatSession(partner, Conversation(system), source=io.StringIO(text))
    return partner, session, session.run()


def test_lines_are_messages_and_answers_are_remembered(capsys: pytest.CaptureFixture[str]) -> None:
    partner, session, well = talk("one\n\ntwo\n")
    assert capsys.readouterr().out == "1:one\n3:two\n" and well
    assert [turn["role"] for turn in session.conversation.turns] == ["user", "assistant"] * 2
    assert partner.heard[1][1] == {"role": "assistant", "content": "1:one"}


def test_commands(capsys: pytest.CaptureFixture[str]) -> None:
    partner, session, well = talk("one\n/reset\n/system Be brief.\ntwo\n/what\n/exit\nthree\n")
    captured = capsys.readouterr()
    assert captured.out == "1:one\n2:two\n" and "/help lists them" in captured.err and well
    assert partner.heard[1][0] == {"role": "system", "content": "Be brief."}
    assert session.conversation.messages[0]["role"] == "system"


def test_fences_hold_several_lines(capsys: pytest.CaptureFixture[str]) -> None:
    partner, _, _ = talk('"""\nfirst\n\n/second\n"""\n"""one""" \n"""open to the\nend')
    assert [heard[-1]["content"] for heard in partner.heard] == ["first\n\n/second", "one", "open to the\nend"]


def test_an_answer_that_fails_leaves_no_trace(capsys: pytest.CaptureFixture[str]) -> None:
    _, session, well = talk("fail\nafter\nhalf\n")
    captured = capsys.readouterr()
    assert captured.out == "1:after\n3:\n" and "It does not want to." in captured.err and not well
    contents = [turn["content"] for turn in session.conversation.turns]
    assert contents == ["after", "1:after", "half", "3:"]


def test_a_model_cannot_steer_the_terminal() -> None:
    assert shown("a\x1b[2J\r\x9bb\tc\n👩\u200d👧") == "a\ufffd[2J\ufffd\ufffdb\tc\n👩\u200d👧"


def test_a_package_answers(
    package: Path, toy: ToyExecutor, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def chat(*options: str) -> str:
        monkeypatch.setattr(sys, "stdin", io.StringIO("The\n"))
        assert main(["chat", str(package), "--max-tokens", "9", *options]) == 0
        return capsys.readouterr().out

    assert chat("--temperature", "0") == chat("--temperature", "0") != "\n"
    assert chat("--seed", "1", "--temperature", "2") == chat("--seed", "1", "--temperature", "2")
    assert len({chat("--temperature", "2") for _ in range(4)}) > 1
    value = json.loads(chat("--temperature", "0", "--system", "s", "--json"))
    assert [message["role"] for message in value["messages"]] == ["system", "user", "assistant"]


def test_a_conversation_that_outgrows_the_context_is_an_error(
    package: Path, toy: ToyExecutor, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("The\n" + "The quick brown fox " * 30 + "\n"))
    assert main(["chat", str(package), "--max-tokens", "3", "--temperature", "0"]) == 1
    captured = capsys.readouterr()
    assert "the context holds 64" in captured.err and captured.out.strip()


def test_a_server_answers(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("The\nquick\n"))
    assert main(["chat", server.url, "--max-tokens", "9", "--temperature", "0", "--json"]) == 0
    messages = json.loads(capsys.readouterr().out)["messages"]
    asked: Any = {"model": "tiny", "max_tokens": 9, "temperature": 0}
    expected = server.client().chat.completions.create(messages=messages[:3], **asked)
    assert messages[3]["content"] == expected.choices[0].message.content


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("http://127.0.0.1:1",), "Is `tessera run` running there?"),
        (("http://x", "--threads", "1"), "--threads and --target are for a package"),
        (("nowhere", "--model", "m"), "for a URL"),
        (("nowhere",), "There is no package at 'nowhere'"),
    ],
)
def test_what_cannot_be_talked_to(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str) -> None:
    assert main(["chat", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_a_model_that_is_not_there(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("The\n"))
    assert main(["chat", server.url, "--model", "other"]) == 1
    assert "'other' does not exist" in capsys.readouterr().err


class Terminal:
    """The command in a terminal of its own."""

    def __init__(self, *arguments: str) -> None:
        self.ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tessera", "chat", *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=_take_terminal,
            env={**os.environ, "TERM": "dumb"},
        )
        os.close(theirs)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self.ours, text.encode())

    def until(self, text: str, seconds: float = 20.0) -> str:
        """What is shown up to and with this text; what was seen before does not count."""
        os.set_blocking(self.ours, False)
        deadline = time.monotonic() + seconds
        while text not in self.seen:
            assert time.monotonic() < deadline, f"no {text!r} in {self.seen!r}"
            try:
                self.seen += os.read(self.ours, 1 << 16).decode("utf-8", "replace")
            except BlockingIOError:
                time.sleep(0.01)
        before, _, self.seen = self.seen.partition(text)
        return before + text


def _take_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_in_a_terminal_ctrl_c_stops_an_answer_and_ctrl_d_ends(server: RunningServer) -> None:
    terminal = Terminal(server.url, "--max-tokens", "480", "--temperature", "0")
    try:
        terminal.until("> ")
        terminal.type("The quick brown fox\n")
        terminal.until("fox\r\n")
        time.sleep(0.15)
        terminal.type("\x03")
        terminal.until("\n> ")
        terminal.type("/help\n")
        assert "/reset" in terminal.until("lines")
        terminal.until("> ")
        terminal.type("\x03")
        terminal.until("ends the chat")
        terminal.until("> ")
        terminal.type("\x04")
        assert terminal.process.wait(20) == 0
    finally:
        terminal.process.kill()
        terminal.process.wait()
        os.close(terminal.ours)


def test_a_local_answer_is_asked_to_stop_rather_than_torn(monkeypatch: pytest.MonkeyPatch) -> None:
    import signal

    class Patient(Echo):
        interrupts_safely = False
        closed = False

        def answer(self, messages: Any) -> Any:
            try:
                for index in range(10):
                    if index == 3:
                        signal.raise_signal(signal.SIGINT)
                    yield str(index)
            finally:
                self.closed = True

    partner = Patient()
    session = ChatSession(partner, Conversation(), source=io.StringIO("go\n"))
    assert session.run() and partner.closed
    assert session.conversation.turns[-1]["content"] == "0123"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert chat_session.HELP.count("\n") > 3
