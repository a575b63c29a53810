"""A conversation in a terminal, or through a pipe: messages in, answers out as they come."""

from __future__ import annotations

import select
import signal
import sys
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import TextIO

from tessera.chatting.partners import Partner
from tessera_runtime.errors import RequestError

HELP = '''/reset         forget the conversation
/system TEXT   set what the model is told before it; without TEXT, show it
/help          show this
/exit          end (so does Ctrl-D); Ctrl-C stops an answer
"""            begins and ends a message of several lines'''
FENCE = '"""'
PASTE_SECONDS = 0.02
"""Lines that are there so soon after the one before were pasted, not typed."""


@dataclass
class Conversation:
    """What was said."""

    system: str | None = None
    turns: list[dict[str, str]] = field(default_factory=list)

    @property
    def messages(self) -> list[dict[str, str]]:
        """As a model gets it."""
        opening = [{"role": "system", "content": self.system}] if self.system else []
        return [*opening, *self.turns]


class ChatSession:
    """Reads from `source` until it ends. Whether it talks to a person decides about prompts and remarks."""

    def __init__(
        self,
        partner: Partner,
        conversation: Conversation,
        *,
        source: TextIO | None = None,
        quiet: bool = False,
    ) -> None:
        self._partner = partner
        self.conversation = conversation
        self._source = source or sys.stdin
        self._by_hand = not quiet and self._source.isatty() and sys.stdout.isatty()
        self._quiet = quiet

    def run(self) -> bool:
        """Answers message after message until the end of the input or `/exit`. Whether every answer came."""
        if self._by_hand:
            _edit_lines()
            print(f"{self._partner.name}\nType a message, or /help.")
        all_well = True
        for message in self._messages():
            if message.startswith("/"):
                if not self._obey(message):
                    break
            elif message.strip():
                all_well = self._answer(message) and all_well
        return all_well

    def _answer(self, message: str) -> bool:
        turns = self.conversation.turns
        turns.append({"role": "user", "content": message})
        pieces: list[str] = []
        try:
            with _interrupts(raising=self._partner.interrupts_safely) as interrupted:
                answer = self._partner.answer(self.conversation.messages)
                try:
                    for piece in answer:
                        pieces.append(piece)
                        self._write(piece)
                        if interrupted():
                            break
                finally:
                    close: Callable[[], None] | None = getattr(answer, "close", None)
                    if close is not None:
                        close()
        except KeyboardInterrupt:
            if not self._by_hand:
                raise
        except RequestError as error:
            # Without an answer, the message would stand twice when it is tried again.
            if not pieces:
                turns.pop()
            self._write("\n" if pieces else "")
            print(f"error: {error}", file=sys.stderr, flush=True)
            if pieces:
                turns.append({"role": "assistant", "content": "".join(pieces)})
            return False
        self._write("\n")
        turns.append({"role": "assistant", "content": "".join(pieces)})
        return True

    def _obey(self, line: str) -> bool:
        """Whether to go on."""
        command, _, rest = line.strip().partition(" ")
        if command in ("/exit", "/quit"):
            return False
        if command == "/reset":
            self.conversation.turns.clear()
            self._remark("Forgotten.")
        elif command == "/system":
            if rest.strip():
                self.conversation.system = rest.strip()
                self._remark("Set.")
            else:
                self._remark(self.conversation.system or "There is no system message.")
        elif command == "/help":
            self._remark(HELP)
        else:
            print(f"There is no command {command[:40]!r}; /help lists them.", file=sys.stderr, flush=True)
        return True

    def _messages(self) -> Iterator[str]:
        """A message is a line, lines that were pasted together, or what stands between two fences."""
        while True:
            try:
                line = self._line("> ")
            except KeyboardInterrupt:
                if not self._by_hand:
                    raise
                print("\nCtrl-D or /exit ends the chat.")
                continue
            if line is None:
                if self._by_hand:
                    print()
                return
            if line.lstrip().startswith(FENCE):
                yield self._fenced(line.lstrip()[len(FENCE) :])
                continue
            lines = [line]
            while self._by_hand and select.select([self._source], [], [], PASTE_SECONDS)[0]:
                more = self._line("")
                if more is None:
                    break
                lines.append(more)
            yield "\n".join(lines)

    def _fenced(self, first: str) -> str:
        lines: list[str] = []
        line: str | None = first
        while line is not None:
            if line.rstrip().endswith(FENCE):
                lines.append(line.rstrip()[: -len(FENCE)])
                break
            lines.append(line)
            line = self._line(". ")
        return "\n".join(lines).strip("\n")

    def _line(self, prompt: str) -> str | None:
        """The next line without its end; None at the end of the input."""
        if self._by_hand:
            try:
                return input(prompt)
            except EOFError:
                return None
        line = self._source.readline()
        return line.rstrip("\r\n") if line else None

    def _write(self, text: str) -> None:
        if self._quiet:
            return
        encoding = sys.stdout.encoding or "utf-8"
        sys.stdout.write(shown(text).encode(encoding, "replace").decode(encoding))
        sys.stdout.flush()

    def _remark(self, text: str) -> None:
        if self._by_hand:
            print(text)


def shown(text: str) -> str:
    """The text without control characters but line ends and tabs: a model must not steer the terminal."""
    return "".join(char if char in "\n\t" or unicodedata.category(char) != "Cc" else "\ufffd" for char in text)


def _edit_lines() -> None:
    """Gives `input` a history and keys to edit with, where Python was built with them."""
    try:
        import readline
    except ImportError:
        return
    readline.set_history_length(1000)


@contextmanager
def _interrupts(*, raising: bool) -> Iterator[Callable[[], bool]]:
    """Ctrl-C in the block: raises at once, or is remembered, and only a second one raises. Gives a function that says
    whether it was pressed.
    """
    pressed = False

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if raising or pressed:
            raise KeyboardInterrupt
        pressed = True

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)
