"""A terminal, or what stands in its place: lines come in, pieces of text go out, Ctrl-C is a wish and not an end."""

from __future__ import annotations

import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from types import FrameType

from rich.console import Console
from rich.text import Text

from bild.data.lines import Line, lines_of, problem
from bild.errors import InputError, writing

PROMPT = "> "
OTHER_ENCODING = "no text in this terminal's encoding"
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""What a terminal might take for a command: a model may write anything."""


class Stop:
    """Whether Ctrl-C was pressed."""

    asked = False


class Terminal:
    """stdin, stdout and stderr as a conversation needs them.

    Attributes:
        interactive: somebody types; else stdin is a file or a pipe, and nothing is asked.
        colours: whether stdout shows colours.
    """

    def __init__(self) -> None:
        # Python has no stdin where the shell closed it.
        self.interactive = sys.stdin is not None and sys.stdin.isatty()
        self._out = Console(soft_wrap=True, highlight=False)
        self._err = Console(stderr=True, soft_wrap=True, highlight=False)
        self.colours = self._out.is_terminal and self._out.color_system is not None and not self._out.no_color

    def lines(self) -> Iterator[Line]:
        """What is typed, or what stdin holds, line by line; ends with it.

        Raises:
            InputError: nobody types and there is no stdin.
        """
        if sys.stdin is None:
            raise InputError("there is no stdin to read turns from; run it in a terminal, or give a pipe")
        return self._typed() if self.interactive else lines_of(sys.stdin.buffer, "stdin")

    def show(self, piece: str, style: str) -> None:
        """A piece of an answer to stdout, now; its style where there are colours.

        Raises:
            InputError: stdout cannot be written.
            BrokenPipeError: nobody reads it any more.
        """
        safe = CONTROLS.sub("", piece) if self._out.is_terminal else piece
        with writing("stdout"):
            if self.colours:
                self._out.print(Text(safe, style=style), end="")
            else:
                print(safe, end="")
            if sys.stdout is not None:
                sys.stdout.flush()

    def note(self, text: str | Text) -> None:
        """A line to stderr."""
        self._err.print(text, markup=False)

    def _typed(self) -> Iterator[Line]:
        _edit_lines()
        for number in count(1):
            try:
                text = self._ask()
            except EOFError:
                self.note("")
                return
            except KeyboardInterrupt:
                self.note("\n/quit or Ctrl-D leaves; Ctrl-C stops an answer")
                continue
            except UnicodeError:
                yield Line(number, "", OTHER_ENCODING)
                continue
            yield Line(number, text, OTHER_ENCODING if problem(text) else None)

    def _ask(self) -> str:
        if sys.stdout is not None and sys.stdout.isatty():
            return input(PROMPT)
        # Answers go elsewhere: the prompt is not to be among them.
        print(PROMPT, end="", file=sys.stderr, flush=True)
        return input()


def _edit_lines() -> None:
    """Let arrow keys work, where Python has what that takes."""
    try:
        import readline  # noqa: F401
    except ImportError:
        return


@contextmanager
def stopping() -> Iterator[Stop]:
    """Turn the first Ctrl-C into a wish that is looked at between two pieces; the second breaks off at once.

    A pass through a network is so never cut in two, unless it takes too long for who presses twice.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def pressed(number: int, frame: FrameType | None) -> None:
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True

    before = signal.signal(signal.SIGINT, pressed)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
